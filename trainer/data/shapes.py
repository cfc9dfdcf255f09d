"""The shapes chat data comes in: recognising them by column names, and reading each into a conversation."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from trainer.data.conversation import Message, canonical_messages, require_characters, trim_to_exchange, with_system
from trainer.data.tool_calls import canonical_tools, strings_in
from trainer.data.values import RejectedRecordError, kind_of, text_of, without_nulls

SHAPES = ("messages", "sharegpt", "alpaca", "prompt-completion")
_SHAREGPT = ("conversations", "conversation")
_ANSWERS = ("output", "response")
_CONTEXTS = ("input", "context")
_PROMPTS = ("prompt", "question", "query", "input", "user")
_SYSTEMS = ("system", "system_prompt", "system_message")
_TOOLS = ("tools", "functions")
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
            *_SYSTEMS,
            *_TOOLS,
            "history",
        )
    )
)


@dataclass(frozen=True, slots=True)
class Conversation:
    """A canonical conversation.

    Args:
        tools: the definitions of the functions it may call.
        metadata: the columns carried along.
        trimmed: whether turns were dropped.
    """

    messages: list[Message]
    metadata: dict[str, Any]
    tools: list[dict[str, Any]] = field(default_factory=list)
    trimmed: bool = False

    @property
    def has_tools(self) -> bool:
        """Whether it defines tools or calls one."""
        return bool(self.tools) or any("tool_calls" in message for message in self.messages)


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


def _conversation(
    record: dict[str, Any], turns: Any, column: str, used: Iterable[str], trimmed: bool = False
) -> Conversation:
    """Check the turns of a record, with the system prompt and the tools that other columns of it hold."""
    used = set(used)
    name = next((name for name in _SYSTEMS if _is_prompt(record.get(name))), None)
    if name is not None:
        turns, is_used = with_system(turns, text_of(record[name], repr(name)))
        used |= {name} if is_used else set()
    messages = canonical_messages(turns, column)
    tools: list[dict[str, Any]] = []
    for name in _TOOLS:
        if name in record and (name == "tools" or _defines_functions(record[name])):
            used.add(name)
            tools = tools or _tools(record[name], name)
    return Conversation(messages, _without(record, used), tools, trimmed)


def without_null_fields(record: dict[str, Any]) -> dict[str, Any]:
    """A row without the nulls that Arrow puts into every turn and tool for a field that another row's has."""
    nested = {name: without_nulls(record[name]) for name in KNOWN_COLUMNS if isinstance(record.get(name), list)}
    return {**record, **nested} if nested else record


def _is_prompt(value: Any) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, list) and bool(value) and all(isinstance(part, dict) and "text" in part for part in value)


def _defines_functions(value: Any) -> bool:
    """Whether a column `functions` is what OpenAI called `tools` before, and not something of its owner's."""
    return isinstance(value, list) and all(isinstance(item, dict) and "name" in item for item in value)


def _tools(value: Any, name: str) -> list[dict[str, Any]]:
    if value is None or value == [] or (isinstance(value, str) and not value.strip()):
        return []
    tools = canonical_tools(value, name)
    for text in strings_in(tools):
        require_characters(text, repr(name))
    return tools


def _from_messages(record: dict[str, Any]) -> Conversation:
    turns = _parsed(_column(record, ("messages",), "messages"))
    return _conversation(record, turns, "messages", ("messages",))


def _from_sharegpt(record: dict[str, Any]) -> Conversation:
    column = next((name for name in _SHAREGPT if name in record), "conversations")
    turns, trimmed = trim_to_exchange(_parsed(_column(record, (column,), "sharegpt")))
    return _conversation(record, turns, column, (column, *_blank_system(record)), trimmed)


def _from_alpaca(record: dict[str, Any]) -> Conversation:
    instruction = text_of(_column(record, ("instruction",), "alpaca"), "'instruction'")
    answer = text_of(_column(record, _ANSWERS, "alpaca"), f"'{_present(record, _ANSWERS)}'")
    context = _optional(record, _CONTEXTS)
    question = f"{instruction}\n{text_of(context, repr(_present(record, _CONTEXTS)))}" if context else instruction
    turns = [*_history(record), _turn("user", question), _turn("assistant", answer)]
    used = ("instruction", *_ANSWERS, *_CONTEXTS, "history", *_blank_system(record))
    return _conversation(record, turns, "instruction", used)


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
    return _conversation(record, turns, prompt_name, (prompt_name, completion_name, *_blank_system(record)))


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


def _blank_system(record: dict[str, Any]) -> tuple[str, ...]:
    return () if _is_prompt(record.get("system")) else ("system",)


def _without(record: dict[str, Any], used: Iterable[str]) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in used and value is not None}
