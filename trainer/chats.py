"""Reads prepared chats: canonical JSONL, one conversation a line, every refusal by file and line."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError

Message = dict[str, Any]

_ROLES = ("system", "user", "assistant", "tool")
_FIX = 'Each line is {"messages": [{"role": ..., "content": ...}, ...]}; trainer.data writes it.'
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Chat:
    """One conversation and where it stands.

    Args:
        messages: role and content; an assistant's may have tool_calls and `train: false` (context only), a tool's
            name and tool_call_id. Keys without a value are absent.
        where: file and line, for messages to a person.
        tools: what the assistant may call, as objects of the OpenAI API.
    """

    messages: tuple[Message, ...]
    where: str
    tools: tuple[dict[str, Any], ...] = ()


def read_chats(path: Path) -> list[Chat]:
    """Read every conversation of a canonical JSONL file.

    Raises:
        TrainerError: the file cannot be read, holds no chat, or a line is not a chat.
    """
    chats = list(iterate_chats(path))
    if not chats:
        raise TrainerError(f"{path} holds no chat.", "Give a file with at least one conversation.")
    return chats


def require_chats(path: Path) -> None:
    """Look at the first conversation of a file, which may be larger than the memory.

    Raises:
        TrainerError: as read_chats, for what can be told from it.
    """
    if next(iterate_chats(path), None) is None:
        raise TrainerError(f"{path} holds no chat.", "Give a file with at least one conversation.")


def iterate_chats(path: Path) -> Iterator[Chat]:
    """Yield the conversations of a canonical JSONL file, which may be larger than the memory.

    Raises:
        TrainerError: as read_chats, but an empty file yields nothing.
    """
    try:
        with open(path, encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield parse_chat(line, f"{path.name} line {number}")
    except UnicodeDecodeError as error:
        raise TrainerError(f"{path} is not UTF-8: {error.reason}.", "Prepare it with trainer.data.") from error
    except OSError as error:
        raise TrainerError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error


def parse_chat(line: str | bytes, where: str) -> Chat:
    """Read the conversation of one line.

    Raises:
        TrainerError: the line is not a chat; names where and what is wrong.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise TrainerError(f"{where} is not JSON: {error}.", _FIX) from error
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise TrainerError(f"{where} has no list of messages.", _FIX)
    read = tuple(_message(message, f"{where} message {number}") for number, message in enumerate(messages, start=1))
    answers = [message for message in read if message["role"] == "assistant"]
    if not answers:
        raise TrainerError(f"{where} has no assistant message, so there is nothing to learn from it.", _FIX)
    if not any(message.get("train", True) for message in answers):
        raise TrainerError(f"{where} has `train: false` on every assistant message.", "Leave the row out.")
    return Chat(read, where, _tools(record.get("tools"), where))


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise TrainerError(f"{where} is not an object with a text role and content.", _FIX)
    role, content = message["role"], message.get("content")
    if role not in _ROLES:
        raise TrainerError(f"{where} has the role {role[:40]!r}; known are {', '.join(_ROLES)}.", _FIX)
    calls = message.get("tool_calls")
    if content is None and calls:
        content = ""
    if not isinstance(content, str):
        raise TrainerError(f"{where} ({role}) has no text as its content.", _FIX)
    if not content.isascii() and _SURROGATE.search(content):
        raise TrainerError(f"{where} ({role}) contains half a surrogate pair, which is not text.", "Correct the row.")
    read: Message = {"role": role, "content": content}
    if calls:
        if role != "assistant":
            raise TrainerError(f"{where} ({role}) has tool_calls; only an assistant calls tools.", _FIX)
        read["tool_calls"] = _tool_calls(calls, where)
    for key in ("name", "tool_call_id"):
        if role == "tool" and message.get(key) is not None:
            read[key] = _text(message[key], f"{where}: {key}")
    train = message.get("train")
    if not isinstance(train, bool | None):
        raise TrainerError(f"{where} has train {str(train)[:40]!r}; it must be true or false.", "Correct the row.")
    if train is False and role == "assistant":
        read["train"] = False
    return read


def _tool_calls(calls: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(calls, list):
        raise TrainerError(f"{where} has tool_calls that are not a list.", _FIX)
    read: list[dict[str, Any]] = []
    for number, call in enumerate(calls, start=1):
        function = call.get("function") if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("arguments"), dict):
            raise TrainerError(
                f"{where}: tool call {number} has no function with an object of arguments.",
                'A call is {"type": "function", "function": {"name": ..., "arguments": {...}}}.',
            )
        name = _text(function.get("name"), f"{where}: the name of tool call {number}")
        kept = {"type": "function", "function": {"name": name, "arguments": function["arguments"]}}
        if isinstance(call.get("id"), str):
            kept["id"] = call["id"]
        read.append(kept)
    return read


def _tools(tools: Any, where: str) -> tuple[dict[str, Any], ...]:
    if not tools:
        return ()
    if not isinstance(tools, list):
        raise TrainerError(f"{where} has tools that are not a list.", _FIX)
    for number, tool in enumerate(tools, start=1):
        function = tool.get("function") if isinstance(tool, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise TrainerError(
                f"{where}: tool {number} has no function with a name.",
                'A tool is {"type": "function", "function": {"name": ..., "parameters": {...}}}.',
            )
    return tuple(tools)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value:
        raise TrainerError(f"{what} is not a text.", "Correct the row.")
    return value
