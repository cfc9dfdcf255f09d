"""An epoch's rows in equal shares, so that several processes do as many passes and no row is learned from twice."""

from __future__ import annotations

from typing import Any

from trainer.batches import Row, chat_lengths
from trainer.chat_template import IGNORED


class EvenRows:
    """A dataset of rows with so many more, in which nothing is learned, that a multiple divides its length.

    accelerate would repeat rows from the epoch's beginning to make the shares equal.
    """

    def __init__(self, rows: Any, multiple: int) -> None:
        self._rows = rows
        self._length = -(-len(rows) // multiple) * multiple

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:
        if index < len(self._rows):
            row: Row = self._rows[index]
            return row
        if index >= self._length:
            raise IndexError(index)
        first = self._rows[0].input_ids[:2]
        return Row(first, [IGNORED] * len(first), (len(first),), ())

    @property
    def chat_lengths(self) -> Any:
        """Tokens of each conversation that is learned from."""
        return chat_lengths(self._rows)
