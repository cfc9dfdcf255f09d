"""One conversation: turns of any dialect become canonical messages, or a reason why they cannot."""

from __future__ import annotations

import contextlib
import difflib
import json
import re
from collections.abc import Iterable
from typing import Any

# Dialects in the wild -> the four canonical roles.
_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "observation": "tool",
}
_MAY_FOLLOW = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
_SURROGATE = re.compile("[\ud800-\udfff]")


class RejectedRecordError(ValueError):
    """A record that cannot be used; the message is the reason, for a person."""


def canonical_messages(turns: Any, column: str) -> list[dict[str, str]]:
    """Turn a list of turns into checked messages.

    Args:
        turns: dicts with role and content, or with from and value.
        column: where they came from, for the reasons.
    Raises:
        RejectedRecordError: the first thing that is wrong.
    """
    if not isinstance(turns, list):
        raise RejectedRecordError(f"{column!r} is {kind_of(turns)}, not a list of messages")
    if not turns:
        raise RejectedRecordError(f"{column!r} is empty")
    messages = [_message(turn, f"message {number}") for number, turn in enumerate(turns, 1)]
    # Many data sets carry an empty system message for "none"; keeping it would teach the model a blank one.
    if messages[0]["role"] == "system" and not messages[0]["content"].strip():
        del messages[0]
    _require_text(messages)
    _require_order(messages)
    return messages


def trim_to_exchange(turns: Any) -> tuple[Any, bool]:
    """Drop what comes before the first user turn and after the last assistant turn.

    ShareGPT exports are cut out of longer chats, so they often begin with an answer or end with a question.

    Returns:
        The turns and whether any was dropped; anything odd is left for `canonical_messages` to name.
    """
    roles = [_ROLES.get(str(turn.get("from", turn.get("role"))).lower()) for turn in _dicts(turns)]
    if not isinstance(turns, list) or len(roles) != len(turns) or not {"user", "assistant"} <= set(roles):
        return turns, False
    head = 1 if roles[0] == "system" else 0
    first = head
    while roles[first] == "assistant":
        first += 1
    last = len(roles)
    while roles[last - 1] == "user":
        last -= 1
    trimmed = turns[:head] + turns[first:last]
    if len(trimmed) - head < 2 or len(trimmed) == len(turns):
        return turns, False
    return trimmed, True


def text_of(content: Any, where: str) -> str:
    """The text of a content value: a string, or a list of text parts joined by line breaks."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RejectedRecordError(f"{where} is {kind_of(content)}, not text")
    texts = []
    for number, part in enumerate(content, 1):
        if not isinstance(part, dict):
            raise RejectedRecordError(f"part {number} of {where} is {kind_of(part)}, not a text part")
        kind = part.get("type", "text")
        if kind not in ("text", "input_text", "output_text"):
            raise RejectedRecordError(f"part {number} of {where} is of type {kind!r}; only text can be trained on")
        if not isinstance(part.get("text"), str):
            raise RejectedRecordError(f"the text of part {number} of {where} is {kind_of(part.get('text'))}, not text")
        texts.append(part["text"])
    return "\n".join(texts)


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return f"the number {str(value)[:20]}"
    if isinstance(value, str):
        return f"the text {value[:20]!r}"
    return "a list" if isinstance(value, list) else "an object"


def _message(turn: Any, where: str) -> dict[str, str]:
    if not isinstance(turn, dict):
        raise RejectedRecordError(f"{where} is {kind_of(turn)}, not an object with role and content")
    role_key = "role" if "role" in turn else "from" if "from" in turn else None
    if role_key is None:
        raise RejectedRecordError(f"{where} has no role; its keys are {', '.join(map(repr, turn)) or 'none'}")
    named = turn[role_key]
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        shown = repr(named[:40]) if isinstance(named, str) else kind_of(named)
        near = difflib.get_close_matches(str(named).lower(), _ROLES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "known are system, user, assistant and tool"
        raise RejectedRecordError(f"{where} has the unknown role {shown}; {hint}")
    text_key = "content" if "content" in turn else "value" if "value" in turn else None
    calls = turn.get("tool_calls")
    if role == "assistant" and calls:
        return {"role": role, "content": _with_tool_calls(turn.get(text_key or ""), calls, where)}
    if text_key is None:
        raise RejectedRecordError(f"{where} has no content; its keys are {', '.join(map(repr, turn))}")
    return {"role": role, "content": text_of(turn[text_key], f"the content of {where}")}


def _with_tool_calls(content: Any, calls: Any, where: str) -> str:
    """Write tool calls into the text, one `<tool_call>` line each, as the Hermes and Qwen templates do."""
    lines = [] if content is None or content == "" else [text_of(content, f"the content of {where}")]
    for number, call in enumerate(calls if isinstance(calls, list) else [calls], 1):
        function = call.get("function", call) if isinstance(call, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise RejectedRecordError(f"tool call {number} of {where} has no function name")
        arguments = function.get("arguments", {})
        if isinstance(arguments, str):
            with contextlib.suppress(ValueError):  # what is no JSON is kept as the text it is
                arguments = json.loads(arguments)
        body = json.dumps({"name": function["name"], "arguments": arguments}, ensure_ascii=False)
        lines.append(f"<tool_call>{body}</tool_call>")
    return "\n".join(lines)


def _require_text(messages: list[dict[str, str]]) -> None:
    for number, message in enumerate(messages, 1):
        content = message["content"]
        where = f"the content of message {number} ({message['role']})"
        if not content.strip():
            raise RejectedRecordError(f"{where} is empty")
        if "\0" in content:
            raise RejectedRecordError(f"{where} contains a NUL character")
        if _SURROGATE.search(content):
            raise RejectedRecordError(f"{where} contains half a surrogate pair, which is not text")


def _require_order(messages: list[dict[str, str]]) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        only = "only a system message" if set(roles) <= {"system"} else "no assistant message to learn from"
        raise RejectedRecordError(f"the conversation has {only}")
    before = None
    for number, role in enumerate(roles, 1):
        allowed = _MAY_FOLLOW[before]
        if role not in allowed:
            after = f"after {before}" if before else "at the start"
            raise RejectedRecordError(
                f"message {number} has the role {role!r}; {after} comes {' or '.join(map(repr, allowed))}"
            )
        before = role
    if before != "assistant":
        raise RejectedRecordError(f"the last message has the role {before!r}; a conversation ends with 'assistant'")


def _dicts(turns: Any) -> Iterable[dict[str, Any]]:
    return (turn for turn in turns if isinstance(turn, dict)) if isinstance(turns, list) else ()
