"""A quick look at a local data file, for a person who is about to configure a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.shapes import to_conversation
from trainer.data.sources import FileSource, choose_shape
from trainer.data.values import RejectedRecordError

_MAX_SAMPLED = 2000
# Beyond this size the number of records is estimated from those sampled.
_MAX_COUNTED_BYTES = 256 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceSummary:
    """What a data file holds.

    Args:
        shape: messages, sharegpt, alpaca or prompt-completion.
        format: jsonl, json, csv or parquet.
        num_records: all records; an estimate when is_estimate.
        num_sampled: records that were read into conversations for the rest of the summary.
        fields: the columns seen, in order.
        example: the first usable conversation's messages, or None.
        rejected_reasons: (line, reason) of the first unusable records among the sampled.
        num_rejected: unusable records among the sampled.
        mean_chars, max_chars: characters of a conversation.
        mean_messages: messages of a conversation.
    """

    shape: str
    format: str
    num_records: int
    is_estimate: bool
    num_sampled: int
    fields: tuple[str, ...]
    example: list[dict[str, str]] | None
    rejected_reasons: tuple[tuple[int, str], ...]
    num_rejected: int
    mean_chars: float
    max_chars: int
    mean_messages: float


def inspect_source(path: str | Path, *, max_reasons: int = 20) -> SourceSummary:
    """Look at a local file; JSONL, JSON and CSV need the standard library alone, Parquet needs pyarrow.

    Raises:
        TrainerError: the file cannot be read or has no known shape.
    """
    source = FileSource(path)
    shape = choose_shape(source)
    fields: dict[str, None] = {}
    totals: Counter[str] = Counter()
    reasons: list[tuple[int, str]] = []
    example, num_records, is_estimate, max_chars = None, 0, False, 0
    for line, record in source.records():
        num_records += 1
        if num_records > _MAX_SAMPLED:
            if source.num_bytes > _MAX_COUNTED_BYTES and source.read_bytes:
                num_records, is_estimate = num_records * source.num_bytes // source.read_bytes, True
                break
            continue
        fields.update(dict.fromkeys(record if isinstance(record, dict) else ()))
        try:
            messages = _messages(record, shape)
        except RejectedRecordError as error:
            totals["rejected"] += 1
            reasons += [(line, str(error))] if len(reasons) < max_reasons else []
            continue
        example = example or messages
        num_chars = sum(len(message["content"]) for message in messages)
        totals.update(chars=num_chars, messages=len(messages), usable=1)
        max_chars = max(max_chars, num_chars)
    usable = totals["usable"] or 1
    return SourceSummary(
        shape=shape,
        format=source.format,
        num_records=num_records,
        is_estimate=is_estimate,
        num_sampled=min(num_records, _MAX_SAMPLED),
        fields=tuple(fields),
        example=example,
        rejected_reasons=tuple(reasons),
        num_rejected=totals["rejected"],
        mean_chars=round(totals["chars"] / usable, 1),
        max_chars=max_chars,
        mean_messages=round(totals["messages"] / usable, 1),
    )


def _messages(record: Any, shape: str) -> list[dict[str, str]]:
    if isinstance(record, RejectedRecordError):
        raise record
    return to_conversation(record, shape).messages
