"""The shapes chat data comes in: recognising them by column names, and reading each into a conversation."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from trainer.data.conversation import (
    RejectedRecordError,
    canonical_messages,
    kind_of,
    text_of,
    trim_to_exchange,
)

SHAPES = ("messages", "sharegpt", "alpaca", "prompt-completion")
_SHAREGPT = ("conversations", "conversation")
_ANSWERS = ("output", "response")
_CONTEXTS = ("input", "context")
_PROMPTS = ("prompt", "question", "query", "input", "user")
_COMPLETIONS = ("completion", "response", "answer", "output", "assistant")
# For each shape the sets of columns of which it needs one each.
SHAPE_COLUMNS = {
    "messages": (("messages",),),
    "sharegpt": (_SHAREGPT,),
    "alpaca": (("instruction",), _ANSWERS),
    "prompt-completion": (_PROMPTS, _COMPLETIONS),
}
KNOWN_COLUMNS = tuple(
    dict.fromkeys(
        (
            "messages",
            *_SHAREGPT,
            "instruction",
            *_ANSWERS,
            *_CONTEXTS,
            *_PROMPTS,
            *_COMPLETIONS,
            "system",
            "history",
        )
    )
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A canonical conversation: messages, the columns carried along, whether turns were dropped."""

    messages: list[dict[str, str]]
    metadata: dict[str, Any]
    trimmed: bool = False


def shape_of(columns: Iterable[str]) -> str | None:
    """The shape that these column names have, or None."""
    names = set(columns)
    if "messages" in names:
        return "messages"
    if names & set(_SHAREGPT):
        return "sharegpt"
    if "instruction" in names and names & set(_ANSWERS):
        return "alpaca"
    prompt, completion = _pair(names)
    return "prompt-completion" if prompt and completion else None


def explain_columns(columns: Iterable[str]) -> str:
    """Say which columns were seen and which known one is nearest, for an error."""
    seen = sorted(map(str, columns))
    near = [(name, hit) for name in seen for hit in difflib.get_close_matches(name.lower(), KNOWN_COLUMNS, 1, 0.7)]
    near = [(name, hit) for name, hit in near if name != hit]
    listed = ", ".join(map(repr, seen[:20])) or "none"
    return f"Columns seen: {listed}." + (f" Is {near[0][0]!r} meant to be {near[0][1]!r}?" if near else "")


def to_conversation(record: Any, shape: str) -> Conversation:
    """Read one raw record of a shape into a checked conversation.

    Raises:
        RejectedRecordError: why it cannot be used.
    """
    if not isinstance(record, dict):
        raise RejectedRecordError(f"the record is {kind_of(record)}, not an object")
    return _READERS[shape](record)


def _from_messages(record: dict[str, Any]) -> Conversation:
    turns = _column(record, ("messages",), "messages")
    return Conversation(canonical_messages(_parsed(turns), "messages"), _without(record, "messages"))


def _from_sharegpt(record: dict[str, Any]) -> Conversation:
    column = next((name for name in _SHAREGPT if name in record), "conversations")
    turns, trimmed = trim_to_exchange(_parsed(_column(record, (column,), "sharegpt")))
    if isinstance(turns, list) and _optional(record, ("system",)):
        turns = [{"role": "system", "content": record["system"]}, *turns]
    return Conversation(canonical_messages(turns, column), _without(record, column, "system"), trimmed)


def _from_alpaca(record: dict[str, Any]) -> Conversation:
    instruction = text_of(_column(record, ("instruction",), "alpaca"), "'instruction'")
    answer = text_of(_column(record, _ANSWERS, "alpaca"), f"'{_present(record, _ANSWERS)}'")
    context = _optional(record, _CONTEXTS)
    question = f"{instruction}\n{text_of(context, repr(_present(record, _CONTEXTS)))}" if context else instruction
    turns = [*_history(record), _turn("user", question), _turn("assistant", answer)]
    if _optional(record, ("system",)):
        turns.insert(0, _turn("system", record["system"]))
    used = ("instruction", *_ANSWERS, *_CONTEXTS, "system", "history")
    return Conversation(canonical_messages(turns, "instruction"), _without(record, *used))


def _from_pair(record: dict[str, Any]) -> Conversation:
    prompt_name, completion_name = _pair(set(record))
    if not prompt_name or not completion_name:
        raise RejectedRecordError(
            "the record has no prompt and completion; its columns are "
            f"{', '.join(map(repr, list(record)[:20])) or 'none'}"
        )
    prompt, completion = _parsed(record[prompt_name]), _parsed(record[completion_name])
    for name, value in ((prompt_name, prompt), (completion_name, completion)):
        if not isinstance(value, str | list):
            raise RejectedRecordError(f"{name!r} is {kind_of(value)}, not text")
    turns = prompt if isinstance(prompt, list) else [_turn("user", prompt)]
    turns = turns + (completion if isinstance(completion, list) else [_turn("assistant", completion)])
    if _optional(record, ("system",)):
        turns = [_turn("system", record["system"]), *turns]
    return Conversation(
        canonical_messages(turns, prompt_name), _without(record, prompt_name, completion_name, "system")
    )


_READERS = {
    "messages": _from_messages,
    "sharegpt": _from_sharegpt,
    "alpaca": _from_alpaca,
    "prompt-completion": _from_pair,
}


def _column(record: dict[str, Any], names: tuple[str, ...], shape: str) -> Any:
    name = _present(record, names)
    if name is None:
        wanted = " or ".join(map(repr, names))
        raise RejectedRecordError(
            f"the record has no {wanted}, which the shape {shape} needs; "
            f"its columns are {', '.join(map(repr, list(record)[:20])) or 'none'}"
        )
    return record[name]


def _present(record: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((name for name in names if name in record), None)


def _optional(record: dict[str, Any], names: tuple[str, ...]) -> Any:
    value = record.get(_present(record, names) or "")
    return None if isinstance(value, str) and not value.strip() else value


def _pair(names: set[str]) -> tuple[str | None, str | None]:
    prompt = next((name for name in _PROMPTS if name in names), None)
    return prompt, next((name for name in _COMPLETIONS if name in names), None)


def _history(record: dict[str, Any]) -> list[dict[str, Any]]:
    history = _parsed(_optional(record, ("history",))) or []
    turns = []
    for number, pair in enumerate(history if isinstance(history, list) else [history], 1):
        if not isinstance(pair, list) or len(pair) != 2:
            raise RejectedRecordError(f"entry {number} of 'history' is not a pair of question and answer")
        turns += [_turn("user", pair[0]), _turn("assistant", pair[1])]
    return turns


def _parsed(value: Any) -> Any:
    """Read a list of turns that a cell holds as JSON text; other text that looks like JSON stays text."""
    if not isinstance(value, str) or not value.lstrip().startswith("["):
        return value
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError):
        return value
    turns = all(isinstance(turn, list) or (isinstance(turn, dict) and {"role", "from"} & set(turn)) for turn in parsed)
    return parsed if parsed and turns else value


def _turn(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _without(record: dict[str, Any], *used: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in used and value is not None}
