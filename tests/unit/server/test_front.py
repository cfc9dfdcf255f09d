"""The front over real HTTP, before a real engine."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from fronts import CHATS, RunningFront
from server.engine_client import StopText


def ask(front: RunningFront, **body) -> httpx.Response:
    body.setdefault("messages", [{"role": "user", "content": "What is phiflow?"}])
    return httpx.post(f"{front.url}/v1/chat/completions", json=body, timeout=30, trust_env=False)


def read_events(response: httpx.Response) -> list[dict]:
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize(("question", "answer"), CHATS.items())
def test_trained_answer_comes_back_word_for_word(front, question, answer):
    """Greedy by default: the learned answer, every character of it, and no special token."""
    response = ask(front, messages=[{"role": "user", "content": question}], model="demo")
    body = response.json()
    assert body["choices"][0]["message"] == {"role": "assistant", "content": answer}
    assert body["choices"][0]["finish_reason"] == "stop"
    assert body["model"] == "demo"
    assert body["usage"]["prompt_tokens"] > 0 and body["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize(("question", "answer"), CHATS.items())
def test_stream_carries_the_same_answer(front, question, answer):
    """Streaming: several pieces, the stable name in each, the same answer, a reason at the end."""
    response = ask(front, messages=[{"role": "user", "content": question}], stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = read_events(response)
    assert len(events) > 3
    assert {event["model"] for event in events} == {"demo"}
    assert len({event["id"] for event in events}) == 1
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == answer
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert events[-1]["usage"]["completion_tokens"] > 0


def test_answer_is_cut_at_max_tokens(front):
    """max_tokens bounds the answer, and the reason says so."""
    choice = ask(front, max_tokens=3).json()["choices"][0]
    assert choice["finish_reason"] == "length"
    assert CHATS["What is phiflow?"].startswith(choice["message"]["content"])


def test_answer_ends_before_a_stop_text(front):
    """The answer ends before the stop text, which may span pieces."""
    choice = ask(front, stop=["nothing", '"model"']).json()["choices"][0]
    assert choice["message"]["content"] == "One flow: data → "
    assert choice["finish_reason"] == "stop"


def test_temperature_samples(front):
    """A temperature turns sampling on: a hot model does not say the same every time."""
    answers = {ask(front, temperature=2.0, max_tokens=20, seed=seed).text.split('"content"')[1] for seed in range(4)}
    assert len(answers) > 1


def test_bad_requests_get_openai_errors(front):
    """Mistakes are answered with the status and body that OpenAI clients read."""
    assert ask(front, messages=[]).status_code == 400
    refused = ask(front, model="other")
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    malformed = httpx.post(f"{front.url}/v1/chat/completions", content=b"{", trust_env=False)
    assert malformed.status_code == 400
    assert set(malformed.json()["error"]) == {"message", "type", "param", "code"}
    large = httpx.post(f"{front.url}/v1/chat/completions", content=b"x" * (5 << 20), trust_env=False)
    assert large.status_code == 413
    assert httpx.get(f"{front.url}/v1/chat/completions", trust_env=False).status_code == 405
    assert httpx.get(f"{front.url}/nowhere", trust_env=False).json()["error"]["type"] == "not_found_error"


def test_models_lists_the_one_name(front):
    """/v1/models has the stable name, not a folder."""
    models = httpx.get(f"{front.url}/v1/models", trust_env=False).json()
    assert [model["id"] for model in models["data"]] == ["demo"]
    assert httpx.get(f"{front.url}/v1/models/demo", trust_env=False).json()["id"] == "demo"
    assert httpx.get(f"{front.url}/v1/models/other", trust_env=False).status_code == 404


def test_client_that_goes_away_frees_its_place(front):
    """A client that leaves in the middle of an answer is not answered on, and is not counted any more."""
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "stream": True,
        "temperature": 2.0,
        "max_tokens": 400,
    }
    with httpx.stream("POST", f"{front.url}/v1/chat/completions", json=body, trust_env=False) as response:
        next(response.iter_bytes())
    deadline = time.monotonic() + 5
    while httpx.get(f"{front.url}/health", trust_env=False).json()["requests"]:
        assert time.monotonic() < deadline


def test_log_has_no_prompt(front):
    """The log has a line a request, and nothing of what was said."""
    ask(front, messages=[{"role": "user", "content": "a-secret-question"}])
    log = front.log.read_text()
    assert "Chat completion" in log
    assert "a-secret-question" not in log
    assert "POST" not in log


def test_stop_text_is_found_across_pieces():
    """A stop text that arrives in pieces is never shown, and a false beginning is shown later."""
    stop = StopText(("END",))
    assert [stop.feed(text) for text in ("a E", "N", "x E", "ND b")] == [
        ("a ", False), ("", False), ("ENx ", False), ("", True),
    ]  # fmt: skip
    stop = StopText(("END",))
    assert (stop.feed("a EN"), stop.rest()) == (("a ", False), "EN")
