"""What a chat completion may ask for."""

from __future__ import annotations

import json

import pytest
from fronts import CONTEXT_TOKENS
from server.chat_request import DEFAULT_MAX_TOKENS, parse_request
from server.errors import RequestRefusedError
from server.model_folder import ModelFolder

USER = [{"role": "user", "content": "What is phiflow?"}]
TOOL = {"type": "function", "function": {"name": "weather"}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": "{}"}}
BROKEN_CALL = {"type": "function", "function": {"name": "weather", "arguments": "{"}}
BAD_BODIES = {
    "malformed": (b"{bad", None, 400),
    "not UTF-8": (b'{"messages": "\xff"}', None, 400),
    "too deep": (b"[" * 100_000, None, 400),
    "a list": (b"[]", None, 400),
    "no messages": ({}, "messages", 400),
    "empty messages": ({"messages": []}, "messages", 400),
    "messages is text": ({"messages": "hi"}, "messages", 400),
    "message is text": ({"messages": ["hi"]}, "messages[0]", 400),
    "no role": ({"messages": [{"content": "hi"}]}, "messages[0].role", 400),
    "wrong role": ({"messages": [{"role": "robot", "content": "hi"}]}, "messages[0].role", 400),
    "role is a list": ({"messages": [{"role": ["user"], "content": "hi"}]}, "messages[0].role", 400),
    "no content": ({"messages": [{"role": "user"}]}, "messages[0].content", 400),
    "content is a number": ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", 400),
    "an image": (
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": "x"}]}]},
        "messages[0].content[0]",
        400,
    ),
    "lone surrogate": (b'{"messages": [{"role": "user", "content": "\\ud800"}]}', "messages", 400),
    "only system": ({"messages": [{"role": "system", "content": "hi"}]}, "messages[0].role", 400),
    "tool calls": (
        {"messages": [{"role": "assistant", "content": "x", "tool_calls": [{}]}, *USER]},
        "messages[0].tool_calls",
        400,
    ),
    "other model": ({"messages": USER, "model": "gpt-9"}, "model", 404),
    "model is a number": ({"messages": USER, "model": 9}, "model", 404),
    "unknown field": ({"messages": USER, "temprature": 1}, "temprature", 400),
    "tools": ({"messages": USER, "tools": [{}]}, "tools", 400),
    "tools that the template leaves out": ({"messages": USER, "tools": [TOOL]}, "tools", 400),
    "a forced call": ({"messages": USER, "tools": [TOOL], "tool_choice": "required"}, "tool_choice", 400),
    "calls that the template leaves out": (
        {"messages": [{"role": "assistant", "tool_calls": [CALL]}, *USER]},
        "messages",
        400,
    ),
    "arguments that are no JSON": (
        {"messages": [{"role": "assistant", "tool_calls": [BROKEN_CALL]}, *USER]},
        "messages[0].tool_calls",
        400,
    ),
    "a user's call": ({"messages": [{**USER[0], "tool_calls": [CALL]}]}, "messages[0].tool_calls", 400),
    "a legacy call": (
        {"messages": [{"role": "assistant", "content": "x", "function_call": {"name": "x"}}, *USER]},
        "messages[0].function_call",
        400,
    ),
    "two answers": ({"messages": USER, "n": 2}, "n", 400),
    "hot": ({"messages": USER, "temperature": 2.1}, "temperature", 400),
    "temperature is text": ({"messages": USER, "temperature": "1"}, "temperature", 400),
    "temperature is NaN": (
        b'{"messages":[{"role":"user","content":"a"}],"temperature":NaN}',
        "temperature",
        400,
    ),
    "top_p": ({"messages": USER, "top_p": -1}, "top_p", 400),
    "no tokens": ({"messages": USER, "max_tokens": 0}, "max_tokens", 400),
    "max_tokens is true": ({"messages": USER, "max_tokens": True}, "max_tokens", 400),
    "stop is a number": ({"messages": USER, "stop": 5}, "stop", 400),
    "empty stop": ({"messages": USER, "stop": [""]}, "stop", 400),
    "stream is text": ({"messages": USER, "stream": "yes"}, "stream", 400),
    "seed": ({"messages": USER, "seed": 1.5}, "seed", 400),
    "too much asked": ({"messages": USER, "max_tokens": CONTEXT_TOKENS}, "messages", 400),
    "too long": ({"messages": [{"role": "user", "content": "word " * CONTEXT_TOKENS}]}, "messages", 400),
}


def parse(model_dir, body):
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return parse_request(raw, model_name="demo", folder=ModelFolder.read(model_dir))


@pytest.mark.parametrize(("body", "param", "status"), BAD_BODIES.values(), ids=BAD_BODIES)
def test_bad_request_is_refused(model_dir, body, param, status):
    """A body that is wrong is refused in one line, with the field's name."""
    with pytest.raises(RequestRefusedError) as refused:
        parse(model_dir, body)
    assert (refused.value.status, refused.value.param) == (status, param)
    assert "\n" not in refused.value.message


def test_context_refusal_gives_the_numbers(model_dir):
    """A request over the context is told the context, the prompt and what was asked for."""
    with pytest.raises(
        RequestRefusedError, match=rf"{CONTEXT_TOKENS} tokens.*have \d+ and {CONTEXT_TOKENS} tokens"
    ) as refused:
        parse(model_dir, {"messages": USER, "max_tokens": CONTEXT_TOKENS})
    assert refused.value.code == "context_length_exceeded"


def test_defaults_are_greedy(model_dir):
    """A request that says nothing of sampling is answered greedily, within the context."""
    request = parse(model_dir, {"messages": USER})
    assert (request.temperature, request.stream) == (0.0, False)
    assert request.max_tokens == min(DEFAULT_MAX_TOKENS, CONTEXT_TOKENS - request.num_prompt_tokens)


def test_harmless_fields_are_dropped(model_dir):
    """What OpenAI clients send beside the question does not stop it."""
    extra = {
        "user": "u",
        "metadata": {},
        "n": 1,
        "tools": None,
        "tool_choice": "auto",
        "frequency_penalty": 0.0,
        "stream_options": None,
    }
    assert parse(model_dir, {"model": "demo", "messages": USER, **extra}) == parse(model_dir, {"messages": USER})


def test_text_parts_are_joined(model_dir):
    """Content in text parts is the same as the text itself, a line for each part, as in training."""
    parts = [{"type": "text", "text": "What is"}, {"type": "text", "text": "phiflow?"}]
    lines = [{"role": "user", "content": "What is\nphiflow?"}]
    assert parse(model_dir, {"messages": [{"role": "user", "content": parts}]}) == parse(model_dir, {"messages": lines})
