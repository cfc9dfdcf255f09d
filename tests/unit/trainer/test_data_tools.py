"""Tool calls, tool results, tool definitions, system columns and flags of every dialect become one canonical record."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from trainer.chats import parse_chat
from trainer.data import split
from trainer.data.__main__ import main
from trainer.data.shapes import Conversation, shape_of, to_conversation
from trainer.data.values import RejectedRecordError

USER = {"role": "user", "content": "How warm is it in Oslo and 东京?"}
ANSWER = {"role": "assistant", "content": "4 and 19 degrees."}
RESULT = {"role": "tool", "content": '{"celsius": 4}'}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


def _call(city: str, **more: Any) -> dict[str, Any]:
    return {**more, "type": "function", "function": {"name": "weather", "arguments": {"city": city}}}


def _calls(*calls: dict[str, Any], content: str = "", **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls), **more}


def _as_text(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "arguments": json.dumps(function["arguments"], ensure_ascii=False)}}


def _bare(city: str) -> str:
    return json.dumps({"name": "weather", "arguments": {"city": city}})


OSLO, TOKYO = _call("Oslo"), _call("东京")
CALLED = [USER, _calls(OSLO), RESULT, ANSWER]

# dialect -> (the raw record, its canonical messages)
CALLING: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "OpenAI": (
        {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [_as_text(OSLO)]}, RESULT, ANSWER]},
        CALLED,
    ),
    "arguments as an object": ({"messages": [USER, _calls(OSLO), RESULT, ANSWER]}, CALLED),
    "no content at all": (
        {"messages": [USER, {"role": "assistant", "tool_calls": [OSLO]}, RESULT, ANSWER]},
        CALLED,
    ),
    "content beside the call": (
        {"messages": [USER, _calls(OSLO, content="Let me look."), RESULT, ANSWER]},
        [USER, _calls(OSLO, content="Let me look."), RESULT, ANSWER],
    ),
    "OpenAI's earlier function_call": (
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "function_call": _as_text(OSLO)["function"]},
                {"role": "function", "name": "weather", "content": '{"celsius": 4}'},
                ANSWER,
            ]
        },
        [USER, _calls(OSLO), {**RESULT, "name": "weather"}, ANSWER],
    ),
    "several calls, tied to their results by ids": (
        {
            "messages": [
                USER,
                _calls(_call("Oslo", id="a"), _call("东京", id="b"), _call("Rome", id="c")),
                {**RESULT, "tool_call_id": "b"},
                {**RESULT, "tool_call_id": "a"},
                ANSWER,
            ]
        },
        [
            USER,
            _calls(_call("Oslo", id="a"), _call("东京", id="b"), _call("Rome")),
            {**RESULT, "tool_call_id": "b"},
            {**RESULT, "tool_call_id": "a"},
            ANSWER,
        ],
    ),
    "an id of a result without one of a call": (
        {"messages": [USER, _calls(OSLO), {**RESULT, "tool_call_id": "b"}, ANSWER]},
        CALLED,
    ),
    "a conversation that ends with a call": ({"messages": [USER, _calls(OSLO)]}, [USER, _calls(OSLO)]),
    "a call after the answer to another": (
        {"messages": [USER, _calls(OSLO), RESULT, _calls(TOKYO), RESULT, ANSWER]},
        [USER, _calls(OSLO), RESULT, _calls(TOKYO), RESULT, ANSWER],
    ),
    "a function that returns nothing": (
        {"messages": [USER, _calls(OSLO), {"role": "tool", "content": ""}, ANSWER]},
        [USER, _calls(OSLO), {"role": "tool", "content": ""}, ANSWER],
    ),
    "ShareGPT": (
        {
            "conversations": [
                {"from": "human", "value": USER["content"]},
                {"from": "function_call", "value": _bare("Oslo")},
                {"from": "observation", "value": '{"celsius": 4}'},
                {"from": "gpt", "value": ANSWER["content"]},
            ]
        },
        CALLED,
    ),
    "ShareGPT, words and two calls in three turns": (
        {
            "conversations": [
                {"from": "human", "value": USER["content"]},
                {"from": "gpt", "value": "Let me look."},
                {"from": "function_call", "value": _bare("Oslo")},
                {"from": "function_call", "value": f"[{_bare('东京')}]"},
                {"from": "observation", "value": '{"celsius": 4}'},
                {"from": "gpt", "value": ANSWER["content"]},
            ]
        },
        [USER, _calls(OSLO, TOKYO, content="Let me look."), RESULT, ANSWER],
    ),
    "no arguments": (
        {"messages": [USER, _calls({"function": {"name": "now", "arguments": ""}}, {"name": "then"})]},
        [USER, _calls(*({"type": "function", "function": {"name": n, "arguments": {}}} for n in ("now", "then")))],
    ),
    "calls as JSON text": ({"messages": [USER, _calls() | {"tool_calls": json.dumps([OSLO])}]}, [USER, _calls(OSLO)]),
}


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., list[dict[str, Any]]]:
    """Prepare a file, and read back both sides."""

    def prepare(source: Path) -> list[dict[str, Any]]:
        assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 0
        written = b"".join((tmp_path / "out" / name).read_bytes() for name in ("train.jsonl", "test.jsonl"))
        return [json.loads(line) for line in written.splitlines()]

    return prepare


def _read(record: dict[str, Any]) -> Conversation:
    return to_conversation(record, str(shape_of(record)))


@pytest.mark.parametrize("dialect", CALLING)
def test_tool_calls_stay_structured(dialect: str) -> None:
    """Calls of any dialect come out as OpenAI's, arguments as an object where they are one."""
    record, messages = CALLING[dialect]
    assert _read(record).messages == messages


def test_the_trainer_reads_what_was_prepared(prepare: Callable[..., list[dict[str, Any]]], tmp_path: Path) -> None:
    """Every record of every dialect is one that the trainer takes, with the calls and the tools it had."""
    for name, shape in (("messages", "messages"), ("conversations", "sharegpt")):
        records = [record | {"tools": [WEATHER]} for record, _ in CALLING.values() if name in record] * 8
        lines = [json.dumps(record | {"system": f"{n}"}) + "\n" for n, record in enumerate(records)]
        (tmp_path / "c.jsonl").write_text("".join(lines))
        written = prepare(tmp_path / "c.jsonl")
        assert len(written) == len(lines) and shape_of(records[0]) == shape
        for record in written:
            chat = parse_chat(json.dumps(record), "here")
            assert [*chat.messages] == record["messages"] and [*chat.tools] == [WEATHER]


TOOLS: dict[str, Any] = {
    "OpenAI": [WEATHER],
    "JSON text": json.dumps([WEATHER]),
    "one as JSON text": json.dumps(WEATHER["function"]),
    "a list of JSON texts": [json.dumps(WEATHER)],
    "functions alone": [WEATHER["function"]],
    "OpenAI's responses": [{"type": "function", **WEATHER["function"]}],
}


@pytest.mark.parametrize("form", TOOLS)
def test_tool_definitions_become_openais(form: str) -> None:
    """A column `tools` in any form becomes a list of OpenAI's objects; empty, it is as if it were not there."""
    assert _read({"messages": CALLED, "tools": TOOLS[form]}).tools == [WEATHER]
    assert _read({"messages": CALLED, "functions": [WEATHER["function"]]}).tools == [WEATHER]
    for empty in ("", "[]", [], None):
        conversation = _read({"messages": [USER, ANSWER], "tools": empty})
        assert (conversation.tools, conversation.metadata) == ([], {})


def test_a_column_of_functions_that_defines_none_is_carried() -> None:
    """`functions` of another meaning stays its owner's."""
    assert _read({"messages": [USER, ANSWER], "functions": ["cooking"]}).metadata == {"functions": ["cooking"]}


SYSTEM = {"role": "system", "content": "Be brief."}
PAIR = {"prompt": USER["content"], "completion": ANSWER["content"]}
SHAREGPT = {"conversations": [{"from": "human", "value": USER["content"]}, {"from": "gpt", "value": ANSWER["content"]}]}


@pytest.mark.parametrize("column", ["system", "system_prompt", "system_message"])
@pytest.mark.parametrize("record", [{"messages": [USER, ANSWER]}, PAIR, SHAREGPT], ids=["messages", "pair", "sharegpt"])
def test_a_system_prompt_in_a_column_is_the_first_message(record: dict[str, Any], column: str) -> None:
    """Whatever the shape; one that is empty, or no text, is none."""
    conversation = _read({column: "Be brief.", **record})
    assert conversation.messages == [SYSTEM, USER, ANSWER]
    assert conversation.metadata == {}
    assert _read({column: " ", **record}).messages == [USER, ANSWER]
    assert _read({column: 7, **record}).messages == [USER, ANSWER]


def test_a_system_message_of_its_own_wins_over_a_column() -> None:
    """The column is then carried, for nothing may be lost; an empty message gives way to the column."""
    conversation = _read({"system": "Be kind.", "messages": [SYSTEM, USER, ANSWER]})
    assert conversation.messages == [SYSTEM, USER, ANSWER]
    assert conversation.metadata == {"system": "Be kind."}
    conversation = _read({"system": "Be brief.", "messages": [{**SYSTEM, "content": ""}, USER, ANSWER]})
    assert conversation.messages == [SYSTEM, USER, ANSWER]


@pytest.mark.parametrize(("flag", "value"), [("weight", 0), ("train", False), ("train", 0)])
def test_a_message_that_is_not_to_be_learned_is_marked(flag: str, value: Any) -> None:
    """OpenAI's weight and the flag train become `train: false`; 1, true and null leave no mark."""
    first = {**ANSWER, "content": "Wrong."}
    turns = [USER, {**first, flag: value}, USER, {**ANSWER, "weight": 1, "train": None}]
    assert _read({"messages": turns}).messages == [USER, {**first, "train": False}, USER, ANSWER]


BAD_TURNS: dict[str, tuple[list[dict[str, Any]], str]] = {
    "no function name": ([USER, _calls({"type": "function"})], "tool call 1 of message 2 has no function name"),
    "arguments that are no JSON": (
        [USER, _calls({"name": "run", "arguments": "ls -l {"})],
        "the arguments of tool call 1 of message 2 are the text 'ls -l {', not an object as JSON",
    ),
    "arguments as a list": ([USER, _calls({"name": "f", "arguments": [1]})], "are a list, not an object"),
    "calls that are text": ([USER, {**ANSWER, "tool_calls": "f(x)"}], "are text, but not JSON"),
    "a user after a call": ([USER, _calls(OSLO), USER, ANSWER], "'user'; after a tool call comes 'tool'"),
    "a result of another's call": (
        [USER, _calls(_call("Oslo", id="a")), {**RESULT, "tool_call_id": "x"}, ANSWER],
        "message 3 answers a tool call that was not made",
    ),
    "no words and no call": ([USER, {"role": "assistant", "content": "", "tool_calls": []}], "is empty"),
    "NUL in an argument": ([USER, _calls(_call("a\0b"))], "a tool call of message 2 contains a NUL"),
    "half a surrogate in an argument": ([USER, _calls(_call("\ud800"))], "half a surrogate pair"),
    "nothing to learn": ([USER, {**ANSWER, "weight": 0}], "every assistant message is marked not to be learned"),
    "half a weight": ([USER, {**ANSWER, "weight": 0.5}], "the 'weight' of message 2 is the number 0.5, not 0 or 1"),
    "a flag that is text": ([USER, {**ANSWER, "train": "no"}], "the 'train' of message 2 is the text 'no'"),
    "a user to be learned": ([{**USER, "train": True}, ANSWER], "message 1 (user) is marked to be learned"),
    "an image beside text": (
        [{"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image_url"}]}, ANSWER],
        "part 2 of the content of message 1 is of type 'image_url'; only text",
    ),
}


@pytest.mark.parametrize("kind", BAD_TURNS)
def test_what_no_model_could_learn_from_is_refused_with_its_reason(kind: str) -> None:
    """Each reason names the message and what is wrong with it."""
    turns, reason = BAD_TURNS[kind]
    with pytest.raises(RejectedRecordError) as caught:
        _read({"messages": turns})
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("hammer", "is the text 'hammer', not a list of tools"),
        (["hammer"], "tool 1 of 'tools' is the text 'hammer'"),
        ([7], "is the number 7"),
        ([{"type": "retrieval"}], "is of type 'retrieval'; only functions"),
        ([{"type": "function", "function": {}}], "tool 1 of 'tools' has no function name"),
        ([{"name": "a\0b"}], "NUL"),
    ],
)
def test_tools_that_define_nothing_are_refused(tools: Any, reason: str) -> None:
    """A column `tools` would reach the chat template, so what it holds must be definitions."""
    with pytest.raises(RejectedRecordError) as caught:
        _read({"messages": [USER, ANSWER], "tools": tools})
    assert reason in str(caught.value)


def test_the_key_of_a_plain_conversation_has_not_moved() -> None:
    """The side of a conversation follows from its key, so the key of one without tools is for ever what it was."""
    assert split.content_key([USER, ANSWER]).hex() == "1ad236b2d59fe61cec6efa5ff04b58b7"
    assert split.content_key([USER, {**ANSWER, "train": False}]) == split.content_key([USER, ANSWER])
    with_ids = [USER, _calls(_call("Oslo", id="a")), {**RESULT, "tool_call_id": "a"}, ANSWER]
    assert split.content_key(with_ids) == split.content_key(CALLED)
    keys = {split.content_key(CALLED), split.content_key([USER, _calls(TOKYO), RESULT, ANSWER])}
    keys |= {split.content_key([USER, ANSWER]), split.content_key([USER, ANSWER], [WEATHER])}
    assert len(keys) == 4


def test_arrow_adds_nothing_to_calls(tmp_path: Path, prepare: Callable[..., list[dict[str, Any]]]) -> None:
    """From Parquet, where every call has every other's arguments as nulls, a record is what it is from JSON."""
    pyarrow = pytest.importorskip("pyarrow")
    other = {"type": "function", "function": {"name": "add", "arguments": {"a": 1, "b": 2}}}
    rows = [{"messages": [USER, _calls(call), RESULT, {**ANSWER, "content": str(n)}], "tools": [WEATHER]}
            for n, call in enumerate([OSLO, other] * 20)]  # fmt: skip
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), tmp_path / "c.parquet")
    assert sorted(map(str, prepare(tmp_path / "c.parquet"))) == sorted(map(str, rows))
