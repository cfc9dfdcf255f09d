"""Chats of other kinds through the default configuration, in which only the path of the data is another."""
# ruff: noqa: RUF001 (Chinese has punctuation of its own)

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import requests
from journey import ROOT, Journey, Served

pytestmark = [pytest.mark.journey, pytest.mark.slow]

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a town.",
        "parameters": {"type": "object", "properties": {"town": {"type": "string"}}, "required": ["town"]},
    },
}
TOWNS = ("Bern", "Oslo", "Lima", "Rome", "Baku", "Cork", "Nice", "Pisa")


def chinese(number: int) -> dict[str, Any]:
    """A question and its answer in Chinese."""
    asked, answered = f"第{number}号书放在哪里？", f"第{number}号书在{number % 7}层{number % 3}室，「绿色」书架上。"
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def tool_calls(number: int) -> dict[str, Any]:
    """A question that a tool answers, as OpenAI's API has it."""
    town = TOWNS[number % len(TOWNS)]
    call = {"id": "1", "type": "function", "function": {"name": "weather", "arguments": json.dumps({"town": town})}}
    messages = [
        {"role": "user", "content": f"Is it warm in {town} on day {number}?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": json.dumps({"degrees": number % 30})},
        {"role": "assistant", "content": f"It has {number % 30} degrees in {town}."},
    ]
    return {"messages": messages, "tools": [WEATHER]}


def content_parts(number: int) -> dict[str, Any]:
    """Messages whose content is a list of parts."""
    asked = [{"type": "text", "text": f"Where is box {number}?"}, {"type": "text", "text": " Be exact."}]
    answered = [{"type": "text", "text": f"Box {number} is in hall {number % 4}, row {number % 9}."}]
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]}


def long_answers(number: int) -> dict[str, Any]:
    """About 2 kB."""
    answer = " ".join(f"Part {part} of lot {number} goes to gate {(number + part) % 11}." for part in range(50))
    asked = f"Where does lot {number} go?"
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": answer}]}


def write(path: Path, kind: Callable[[int], dict[str, Any]], num_bytes: int) -> int:
    """Write records of a kind until the file has that size, and say how many."""
    with path.open("w", encoding="utf-8") as file:
        for number in count():
            if file.tell() >= num_bytes:
                return number
            file.write(json.dumps(kind(number), ensure_ascii=False) + "\n")
    raise AssertionError


def records(path: Path) -> Iterator[dict[str, Any]]:
    """The records of a prepared file."""
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)


@pytest.mark.parametrize(
    ("kind", "num_bytes"),
    [(chinese, 40_000), (tool_calls, 120_000), (content_parts, 60_000), (long_answers, 60_000_000)],
    ids=["chinese", "tools", "parts", "large"],
)
def test_kind_of_data_is_trained_on_and_served(
    journey: Journey, served: Served, kind: Callable[[int], dict[str, Any]], num_bytes: int
) -> None:
    """Chinese, tool calls, content parts and 60 MB: no row is refused, the model learns, and the chat app answers."""
    name = kind.__name__.replace("_", "-")
    source = journey.folder / f"{name}.jsonl"
    num_rows = write(source, kind, num_bytes)
    sets = ["--set", f"data.source={source}", "--set", f"name={name}"]
    told = journey.json("run", ROOT / "deployments" / "local.yaml", *sets, timeout=1800)
    assert told["run"]["state"] == "Completed"
    assert sum(told["data"]["counts"].values()) == num_rows
    assert told["data"]["rejected"] == []
    assert told["gate"]["candidate"] < told["gate"]["base"]
    first = next(records(Path(told["data"]["train_file"])))
    question = next(message["content"] for message in first["messages"] if message["role"] == "user")
    response = requests.post(f"{told['chat']['url']}/score", json={"question": question}, timeout=120)
    assert response.status_code == 200, response.text
    assert response.json()["answer"].strip()


def test_text_is_untouched(journey: Journey, served: Served) -> None:
    """What is prepared from Chinese text is the source's own, byte for byte."""
    source = journey.folder / "untouched.jsonl"
    config = journey.configure("untouched")
    num_rows = write(source, chinese, 20_000)
    told = journey.json("data", config)
    prepared = [row["messages"] for side in ("train", "test") for row in records(Path(told[f"{side}_file"]))]
    assert sorted(map(str, prepared)) == sorted(str(chinese(number)["messages"]) for number in range(num_rows))
