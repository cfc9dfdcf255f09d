"""What a single value of a record is: its kind in words, its text, and the reason why it cannot be used."""

from __future__ import annotations

from typing import Any


class RejectedRecordError(ValueError):
    """A record that cannot be used; the message is the reason, for a person."""


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


def without_nulls(value: Any) -> Any:
    """A value without the null fields that Arrow adds to every struct of a column for what another row's has."""
    if isinstance(value, dict):
        return {key: without_nulls(inner) for key, inner in value.items() if inner is not None}
    return [without_nulls(inner) for inner in value] if isinstance(value, list) else value
