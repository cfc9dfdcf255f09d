"""A quick look at local data files, for a person who is about to configure a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.shapes import Conversation, to_conversation
from trainer.data.sources import FileSource, choose_shape, open_files
from trainer.data.values import RejectedRecordError

_MAX_SAMPLED = 2000
_LEAST_SAMPLED = 50
# Beyond this size the number of records is estimated from those sampled.
_MAX_COUNTED_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSummary:
    """What a data file holds, or all the files of a folder or a pattern.

    Args:
        shape: messages, sharegpt, alpaca or prompt-completion; auto when the files differ.
        format: jsonl, json, csv or parquet; of the first file.
        num_files: how many files there are.
        num_records: all records; an estimate when is_estimate.
        num_sampled: records that were read into conversations for the rest of the summary.
        num_with_tools: those that call tools or define some.
        num_with_parts: those with content in parts.
        fields: the columns seen, in order.
        example: the first usable conversation's messages, or None.
        rejected_reasons: (file, line, reason) of the first unusable records among the sampled.
        num_rejected: unusable records among the sampled.
        mean_chars, max_chars: characters of a conversation.
        mean_messages: messages of a conversation.
    """

    shape: str
    format: str
    num_files: int
    num_records: int
    is_estimate: bool
    num_sampled: int
    num_with_tools: int
    num_with_parts: int
    fields: tuple[str, ...]
    example: list[dict[str, Any]] | None
    rejected_reasons: tuple[tuple[str, int, str], ...]
    num_rejected: int
    mean_chars: float
    max_chars: int
    mean_messages: float


def inspect_source(path: str | Path, *, max_reasons: int = 20) -> SourceSummary:
    """Look at a file, a folder or a pattern; JSONL, JSON and CSV need the standard library alone, Parquet pyarrow.

    Raises:
        TrainerError: a file cannot be read or has no known shape.
    """
    files = open_files(str(path))
    look = _Look(max_reasons, max(_LEAST_SAMPLED, _MAX_SAMPLED // len(files)))
    num_bytes = sum(source.num_bytes for source in files)
    for source in files:
        look.at(source, is_counted=num_bytes <= _MAX_COUNTED_BYTES)
    totals, usable = look.totals, look.totals["usable"] or 1
    return SourceSummary(
        shape=look.shapes[0] if len(set(look.shapes)) == 1 else "auto",
        format=files[0].format,
        num_files=len(files),
        num_records=totals["records"],
        is_estimate=totals["estimates"] > 0,
        num_sampled=totals["sampled"],
        num_with_tools=totals["tools"],
        num_with_parts=totals["parts"],
        fields=tuple(look.fields),
        example=look.example,
        rejected_reasons=tuple(look.reasons),
        num_rejected=totals["rejected"],
        mean_chars=round(totals["chars"] / usable, 1),
        max_chars=look.max_chars,
        mean_messages=round(totals["messages"] / usable, 1),
    )


class _Look:
    """What was seen so far."""

    def __init__(self, max_reasons: int, max_sampled: int) -> None:
        self.totals: Counter[str] = Counter()
        self.shapes: list[str] = []
        self.fields: dict[str, None] = {}
        self.reasons: list[tuple[str, int, str]] = []
        self.example: list[dict[str, Any]] | None = None
        self.max_chars = 0
        self._max_reasons = max_reasons
        self._max_sampled = max_sampled

    def at(self, source: FileSource, *, is_counted: bool) -> None:
        """Sample the first records of a file, and count the others or estimate how many there are."""
        shape = choose_shape(source)
        self.shapes.append(shape)
        num_records = 0
        for line, record in source.records():
            num_records += 1
            if num_records <= self._max_sampled:
                self._sample(source, line, record, shape)
            elif not is_counted and source.read_bytes:
                num_records = num_records * source.num_bytes // source.read_bytes
                self.totals["estimates"] += 1
                break
        self.totals["records"] += num_records

    def _sample(self, source: FileSource, line: int, record: Any, shape: str) -> None:
        self.totals["sampled"] += 1
        self.fields.update(dict.fromkeys(record if isinstance(record, dict) else ()))
        try:
            conversation = _conversation(record, shape)
        except RejectedRecordError as error:
            self.totals["rejected"] += 1
            if len(self.reasons) < self._max_reasons:
                self.reasons.append((source.name, line, str(error)))
            return
        messages = conversation.messages
        self.example = self.example or messages
        num_chars = sum(len(message["content"]) for message in messages)
        self.totals.update(chars=num_chars, messages=len(messages), usable=1)
        self.totals["tools"] += conversation.has_tools
        self.totals["parts"] += _has_parts(record)
        self.max_chars = max(self.max_chars, num_chars)


def _has_parts(record: dict[str, Any]) -> bool:
    """Whether a turn of the record has its content in parts."""
    turns = (turn for column in record.values() if isinstance(column, list) for turn in column)
    return any(isinstance(turn, dict) and isinstance(turn.get("content"), list) for turn in turns)


def _conversation(record: Any, shape: str) -> Conversation:
    if isinstance(record, RejectedRecordError):
        raise record
    return to_conversation(record, shape)
