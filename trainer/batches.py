"""Rows of tokens, and batches of them: one row without padding, or rows of one width."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from trainer.chat_template import IGNORED, EncodedChat

# Attention that needs a mask of every token by every other: rows of one width keep it small.
_PADDED = ("sdpa", "eager")


@dataclass(frozen=True, slots=True)
class Row:
    """One or several conversations that are trained on together.

    Args:
        input_ids, labels: of all of them, one behind the other; -100 where nothing is learned.
        lengths: tokens of each.
        lines: of each in the training file, counted from 1, for a person; empty where they are not known.
    """

    input_ids: Sequence[int] | np.ndarray
    labels: Sequence[int] | np.ndarray
    lengths: Sequence[int] | np.ndarray
    lines: Sequence[int] | np.ndarray


def rows_of(chats: Sequence[EncodedChat]) -> list[Row]:
    """A row for each conversation."""
    return [Row(chat.input_ids, chat.labels, (len(chat.input_ids),), ()) for chat in chats]


def row_lengths(rows: Any) -> np.ndarray:
    """Tokens of each row; a dataset on disk tells them without reading its rows."""
    if hasattr(rows, "row_lengths"):
        return rows.row_lengths
    return np.array([len(rows[index].input_ids) for index in range(len(rows))], np.int64)


def chat_lengths(rows: Any) -> np.ndarray:
    """Tokens of each conversation."""
    if hasattr(rows, "chat_lengths"):
        return rows.chat_lengths
    return np.array([int(length) for index in range(len(rows)) for length in rows[index].lengths], np.int64)


def collator(
    attention: str, pad_token_id: int, short_context: int | None = None
) -> Callable[[Sequence[Row]], dict[str, Any]]:
    """How rows become a batch for that attention; see `pad`."""
    return partial(pad, pad_token_id=pad_token_id, short_context=short_context) if is_padded(attention) else flatten


def is_padded(attention: str) -> bool:
    """Whether rows must be of one width for it, so that batches of like lengths save work."""
    return attention in _PADDED


def flatten(rows: Sequence[Row]) -> dict[str, Any]:
    """A batch: every conversation of the rows in one row of 1 x tokens, with what says where each begins."""
    lengths = np.concatenate([np.asarray(row.lengths, dtype=np.int64) for row in rows])
    ends = np.concatenate([[0], lengths.cumsum()])
    input_ids, labels = (
        np.concatenate([np.asarray(getattr(row, name), dtype=np.int64) for row in rows])
        for name in ("input_ids", "labels")
    )
    labels[ends[:-1]] = IGNORED  # nothing precedes a conversation's first token
    cu_seq_lens = torch.from_numpy(ends.astype(np.int32))
    longest = int(lengths.max())
    return {
        "input_ids": torch.from_numpy(input_ids)[None],
        "labels": torch.from_numpy(labels)[None],
        "position_ids": torch.from_numpy(_positions(lengths))[None],
        "cu_seq_lens_q": cu_seq_lens,
        "cu_seq_lens_k": cu_seq_lens,
        "max_length_q": longest,
        "max_length_k": longest,
        "lines": _lines(rows),
    }


def pad(rows: Sequence[Row], pad_token_id: int, short_context: int | None = None) -> dict[str, Any]:
    """A batch of rows x width; transformers finds where conversations begin by their positions.

    What is padded stands behind a row, where no conversation sees it. Behind a row of one conversation its positions
    go on, so that no mask is needed at all; behind others each pad is a conversation of its own.

    Args:
        short_context: tokens up to which a conversation has a longrope model's short factors; padding must not make it
            look longer.
    """
    width = max(len(row.input_ids) for row in rows)
    shape = (len(rows), width)
    input_ids, labels = np.full(shape, pad_token_id, dtype=np.int64), np.full(shape, IGNORED, dtype=np.int64)
    positions = np.zeros(shape, dtype=np.int64)
    for index, row in enumerate(rows):
        length, lengths = len(row.input_ids), np.asarray(row.lengths, dtype=np.int64)
        input_ids[index, :length], labels[index, :length] = row.input_ids, row.labels
        labels[index, lengths.cumsum() - lengths] = IGNORED
        positions[index, :length] = _positions(lengths)
        if len(lengths) == 1 and not (short_context and length <= short_context < width):
            positions[index] = np.arange(width)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(positions),
        "lines": _lines(rows),
    }


def _positions(lengths: np.ndarray) -> np.ndarray:
    """Each token's place in its conversation."""
    begins = lengths.cumsum() - lengths
    return np.arange(lengths.sum()) - begins.repeat(lengths)


def _lines(rows: Sequence[Row]) -> tuple[int, ...]:
    return tuple(int(line) for row in rows for line in row.lines)
