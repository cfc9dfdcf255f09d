"""Whole conversations into rows of at most max_length tokens: best fit, longest first, window by window."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence

# Conversations are placed within windows, so that memory does not grow with the file. Past a few thousand of them
# a larger window fills rows hardly better.
WINDOW_TOKENS = 1 << 24
WINDOW_CHATS = 20_000


def pack(lengths: Sequence[int], max_length: int, short_context: int | None = None) -> list[list[int]]:
    """Place conversations into rows; the same lengths, the same rows.

    Args:
        lengths: tokens of each conversation, at most max_length.
        short_context: conversations above it get rows of their own.
    Returns:
        Of each row the indices of its conversations.
    """
    if short_context is None or short_context >= max_length:
        return _best_fit(range(len(lengths)), lengths, max_length)
    short = [index for index, length in enumerate(lengths) if length <= short_context]
    long = [index for index, length in enumerate(lengths) if length > short_context]
    return [*_best_fit(short, lengths, max_length), *_best_fit(long, lengths, max_length)]


def _best_fit(indices: Sequence[int], lengths: Sequence[int], max_length: int) -> list[list[int]]:
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # of the rows that have any: tokens, row; ascending
    for index in sorted(indices, key=lambda index: -lengths[index]):
        length = lengths[index]
        place = bisect_left(room, (length, -1))
        if place < len(room):
            left, row = room.pop(place)
            rows[row].append(index)
        else:
            left, row = max_length, len(rows)
            rows.append([index])
        if left > length:
            insort(room, (left - length, row))
    return rows
