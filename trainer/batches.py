"""Rows of tokens, and batches of them as one row without padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.chat_template import IGNORED, EncodedChat


@dataclass(frozen=True, slots=True)
class Row:
    """One or several conversations that are trained on together.

    Args:
        input_ids, labels: of all of them, one behind the other; -100 where nothing is learned.
        lengths: tokens of each.
        lines: of each in the training file, counted from 1, for a person; empty where they are not known.
    """

    input_ids: Sequence[int]
    labels: Sequence[int]
    lengths: Sequence[int]
    lines: Sequence[int]


def rows_of(chats: Sequence[EncodedChat]) -> list[Row]:
    """A row for each conversation."""
    return [Row(chat.input_ids, chat.labels, (len(chat.input_ids),), ()) for chat in chats]


def flatten(rows: Sequence[Row]) -> dict[str, Any]:
    """A batch: every conversation of the rows in one row of 1 x tokens, with what says where each begins."""
    lengths = torch.tensor([length for row in rows for length in row.lengths])
    ends = torch.cat([torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)])
    labels = torch.tensor([label for row in rows for label in row.labels])
    labels[ends[:-1]] = IGNORED  # nothing precedes a conversation's first token
    num_tokens = int(ends[-1])
    positions = torch.arange(num_tokens) - ends[:-1].repeat_interleave(lengths)
    longest = int(lengths.max())
    return {
        "input_ids": torch.tensor([token for row in rows for token in row.input_ids])[None],
        "labels": labels[None],
        "position_ids": positions[None],
        "cu_seq_lens_q": ends.to(torch.int32),
        "cu_seq_lens_k": ends.to(torch.int32),
        "max_length_q": longest,
        "max_length_k": longest,
        "lines": tuple(line for row in rows for line in row.lines),
    }
