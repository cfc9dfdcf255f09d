from __future__ import annotations

import json

import pytest
from conftest import chat

from trainer.chats import parse_chat, read_chats
from trainer.errors import TrainerError

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def called(**changes) -> dict:
    """A record with a tool call, its first assistant message changed."""
    call = {"role": "assistant", "content": "", "tool_calls": [CALL]} | changes
    return {"messages": [USER, call, {"role": "tool", "content": "12 °C", "name": "weather"}, ANSWER], "tools": [TOOL]}


def test_plain_records_keep_role_and_content_alone(tmp_path):
    """Metadata, nulls and `train: true` leave no trace in what is read."""
    record = {"messages": [USER | {"name": None}, ANSWER | {"train": True, "tool_calls": None}], "source": "x"}
    file = tmp_path / "train.jsonl"
    file.write_text(json.dumps(record) + "\n\n", encoding="utf-8")
    (read,) = read_chats(file)
    assert (read.messages, read.tools, read.where) == ((USER, ANSWER), (), "train.jsonl line 1")


def test_tool_calls_tools_and_flags_are_read():
    """Calls stay structured, tools beside the messages, and what is context only is marked."""
    read = parse_chat(json.dumps(called(train=False, content=None)), "row")
    assert read.messages[1] == {"role": "assistant", "content": "", "tool_calls": [CALL], "train": False}
    assert read.messages[2] == {"role": "tool", "content": "12 °C", "name": "weather"}
    assert read.tools == (TOOL,)


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ("{", "not JSON"),
        ({"messages": []}, "no list of messages"),
        (chat("Hi"), "no assistant message"),
        ({"messages": [USER, ANSWER | {"train": False}]}, "`train: false` on every"),
        ({"messages": [USER, ANSWER | {"train": "no"}]}, "message 2 has train 'no'"),
        ({"messages": [USER | {"role": "human"}, ANSWER]}, "message 1 has the role 'human'"),
        ({"messages": [USER | {"content": ["Hi"]}, ANSWER]}, r"message 1 \(user\) has no text"),
        ({"messages": [USER | {"content": "\ud800"}, ANSWER]}, "half a surrogate pair"),
        ({"messages": [USER | {"tool_calls": [CALL]}, ANSWER]}, "only an assistant"),
        (called(tool_calls={"name": "x"}), "not a list"),
        (called(tool_calls=[{"function": {"name": "x", "arguments": "{}"}}]), "tool call 1 has no function"),
        (called(tool_calls=[{"function": {"arguments": {}}}]), "the name of tool call 1"),
        (called() | {"tools": {"name": "x"}}, "tools that are not a list"),
        (called() | {"tools": [{"name": "x"}]}, "tool 1 has no function"),
    ],
)
def test_what_is_no_chat_is_refused_by_place(record, reason):
    """Every refusal is one line with the file, the line and what is wrong."""
    line = record if isinstance(record, str) else json.dumps(record)
    with pytest.raises(TrainerError, match=reason) as refused:
        parse_chat(line, "train.jsonl line 7")
    assert "train.jsonl line 7" in str(refused.value)
    assert "\n" not in str(refused.value)
