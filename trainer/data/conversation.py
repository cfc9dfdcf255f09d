"""One conversation: turns of any dialect become canonical messages, or a reason why they cannot."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from typing import Any

from trainer.data.tool_calls import calls_in_content, calls_of, settle_ids, strings_in
from trainer.data.values import RejectedRecordError, kind_of, text_of

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
    "tool_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "observation": "tool",
}
_MAY_FOLLOW = {
    None: ("system", "user"),
    "system": ("user",),
    "user": ("assistant",),
    "assistant": ("user", "tool"),
    "tool": ("tool", "assistant"),
}
# Roles whose turns hold nothing but calls, as JSON.
_CALLING = ("function_call", "tool_call")
_SURROGATE = re.compile("[\ud800-\udfff]")


Message = dict[str, Any]


def canonical_messages(turns: Any, column: str) -> list[Message]:
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
    messages: list[Message] = []
    for number, turn in enumerate(turns, 1):
        message = _message(turn, f"message {number}")
        if not _joined(messages, message, turn):
            messages.append(message)
    # Many data sets carry an empty system message for "none"; keeping it would teach the model a blank one.
    if messages[0]["role"] == "system" and not messages[0]["content"].strip():
        del messages[0]
    _require_text(messages)
    _require_order(messages)
    if any(len(message) > 2 for message in messages):
        settle_ids(messages)
        _require_learned(messages)
    return messages


def with_system(turns: Any, prompt: Any) -> tuple[Any, bool]:
    """Put a system prompt before the turns, unless they begin with one of their own; and whether it was put there."""
    if not isinstance(turns, list):
        return turns, False
    first = next(iter(turns), None)
    if isinstance(first, dict) and _ROLES.get(str(first.get("role", first.get("from"))).lower()) == "system":
        own = first.get("content", first.get("value"))
        if own and not (isinstance(own, str) and not own.strip()):
            return turns, bool(own == prompt)
        turns = turns[1:]
    return [{"role": "system", "content": prompt}, *turns], True


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


def _message(turn: Any, where: str) -> Message:
    role = _role(turn, where)
    text_key = "content" if "content" in turn else "value" if "value" in turn else None
    content = turn[text_key] if text_key else None
    calls = []
    if role == "assistant":
        calls = calls_of(turn, where)
        if not calls and text_key and _named(turn) in _CALLING and (calls := calls_in_content(content)):
            content = ""
    if text_key is None and not calls:
        raise RejectedRecordError(f"{where} has no content; its keys are {', '.join(map(repr, turn))}")
    text = "" if content is None and calls else text_of(content, f"the content of {where}")
    message: Message = {"role": role, "content": text}
    if calls:
        message["tool_calls"] = calls
    if role == "tool":
        message |= {key: turn[key] for key in ("name", "tool_call_id") if isinstance(turn.get(key), str) and turn[key]}
    if not _is_learned(turn, role, where):
        message["train"] = False
    return message


def _role(turn: Any, where: str) -> str:
    if not isinstance(turn, dict):
        raise RejectedRecordError(f"{where} is {kind_of(turn)}, not an object with role and content")
    if "role" not in turn and "from" not in turn:
        raise RejectedRecordError(f"{where} has no role; its keys are {', '.join(map(repr, turn)) or 'none'}")
    named = turn.get("role", turn.get("from"))
    role = _ROLES.get(named.lower()) if isinstance(named, str) else None
    if role is None:
        shown = repr(named[:40]) if isinstance(named, str) else kind_of(named)
        near = difflib.get_close_matches(str(named).lower(), _ROLES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "known are system, user, assistant and tool"
        raise RejectedRecordError(f"{where} has the unknown role {shown}; {hint}")
    return role


def _named(turn: dict[str, Any]) -> str:
    return str(turn.get("role", turn.get("from"))).lower()


def _joined(messages: list[Message], message: Message, turn: dict[str, Any]) -> bool:
    """Whether a turn of nothing but calls went into the assistant's message before it, which it belongs to."""
    before = messages[-1] if messages else {}
    if "tool_calls" not in message or message["content"] or _named(turn) not in _CALLING:
        return False
    if before.get("role") != "assistant" or before.get("train") != message.get("train"):
        return False
    before["tool_calls"] = before.get("tool_calls", []) + message["tool_calls"]
    return True


def _is_learned(turn: dict[str, Any], role: str, where: str) -> bool:
    """What OpenAI's `weight` and the flag `train` of a turn say; without them an assistant's turn is learned."""
    for key, values in (("weight", (0, 1)), ("train", (False, True))):
        value = turn.get(key)
        if value is None:
            continue
        if value not in values:
            known = "0 or 1" if key == "weight" else "true or false"
            raise RejectedRecordError(f"the {key!r} of {where} is {kind_of(value)}, not {known}")
        if role == "assistant" and not value:
            return False
        if key == "train" and value and role != "assistant":
            raise RejectedRecordError(f"{where} ({role}) is marked to be learned; only assistant messages are")
    return True


def _require_text(messages: list[Message]) -> None:
    for number, message in enumerate(messages, 1):
        content = message["content"]
        where = f"the content of message {number} ({message['role']})"
        # A call says enough without words, and a function may return nothing.
        if not content.strip() and "tool_calls" not in message and message["role"] != "tool":
            raise RejectedRecordError(f"{where} is empty")
        require_characters(content, where)
        for text in strings_in(message["tool_calls"]) if "tool_calls" in message else ():
            require_characters(text, f"a tool call of message {number}")


def require_characters(text: str, where: str) -> None:
    """Refuse what no tokenizer reads as the text it is."""
    if "\0" in text:
        raise RejectedRecordError(f"{where} contains a NUL character")
    if not text.isascii() and _SURROGATE.search(text):
        raise RejectedRecordError(f"{where} contains half a surrogate pair, which is not text")


def _require_order(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        only = "only a system message" if set(roles) <= {"system"} else "no assistant message to learn from"
        raise RejectedRecordError(f"the conversation has {only}")
    before, asked = None, False
    for number, message in enumerate(messages, 1):
        role = message["role"]
        allowed = ("tool",) if asked else _MAY_FOLLOW[before]
        if role not in allowed:
            after = "after a tool call" if asked else f"after {before}" if before else "at the start"
            raise RejectedRecordError(
                f"message {number} has the role {role!r}; {after} comes {' or '.join(map(repr, allowed))}"
            )
        before, asked = role, "tool_calls" in message
    if before != "assistant":
        raise RejectedRecordError(f"the last message has the role {before!r}; a conversation ends with 'assistant'")


def _require_learned(messages: list[Message]) -> None:
    if all("train" in message for message in messages if message["role"] == "assistant"):
        raise RejectedRecordError("every assistant message is marked not to be learned")


def _dicts(turns: Any) -> Iterable[dict[str, Any]]:
    return (turn for turn in turns if isinstance(turn, dict)) if isinstance(turns, list) else ()
