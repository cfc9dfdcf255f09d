"""One side of the split while it is written: its rows in a file, and beside them what decides which of them stay.

Repeats and what is over a cap are known only late, so they are written first and left out afterwards, by copying
what stays. Memory holds one byte a row, and the keys of some rows at a time; the disk at most about twice the cap.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

from trainer.data.output import durable
from trainer.data.split import KEY_BYTES

_PASS_ROWS = 500_000
_BUCKET_BITS = 16
# A cap is applied when there are twice as many rows, so that each row is copied about once; and not for fewer.
_LEAST_ROWS = 10_000


class Row(NamedTuple):
    """What is kept of a row beside its line.

    Args:
        key: names its content; equal for repeats.
        copy: 0, or its number when a weight takes it several times.
        rank: the rows of the smallest ranks stay when there is a cap.
        source: the number of the source it is from.
    """

    key: bytes
    copy: int
    rank: int
    num_bytes: int
    num_messages: int
    source: int
    trimmed: bool


_FORM = struct.Struct(f"<{KEY_BYTES}sHQIIIB")


@dataclass(slots=True)
class SideTally:
    """What is in a finished side."""

    num_rows: int = 0
    num_messages: int = 0
    num_trimmed: int = 0
    by_source: Counter[int] = field(default_factory=Counter)


class Side:
    """The rows of one side.

    Args:
        path: the file of the rows.
        most: how many rows may stay; None: all.
        deduplicate: whether repeats go.
    """

    def __init__(self, path: Path, *, most: int | None = None, deduplicate: bool = False) -> None:
        self.path = path
        self.num_rows = 0
        self.num_repeats = 0
        self.num_over = 0
        self._most = most
        self._deduplicate = deduplicate
        self._highest_rank: int | None = None
        self._select_at = None if most is None else max(2 * most, _LEAST_ROWS)
        self._files = contextlib.ExitStack()
        self._open()

    def add(self, line: bytes, row: Row) -> None:
        """Append a row, unless the rows before it have shown that it will not stay."""
        if self._highest_rank is not None and row.rank > self._highest_rank:
            self.num_over += 1
            return
        self._lines.write(line)
        self._index.write(_FORM.pack(*row))
        self.num_rows += 1
        if self._select_at is not None and self.num_rows >= self._select_at:
            self._close()
            self._select()
            self._select_at = max(self._select_at, 2 * self.num_rows)
            self._open("ab")

    def finish(self) -> SideTally:
        """Leave out what does not stay; returns what does."""
        self._close()
        if self._deduplicate or self._most is not None:
            self._select()
        tally = SideTally()
        for row in self._rows():
            tally.num_rows += 1
            tally.num_messages += row.num_messages
            tally.num_trimmed += row.trimmed
            tally.by_source[row.source] += 1
        if not self._deduplicate:
            self.num_repeats = sum(not stays for stays in self._first_of_each())
        return tally

    def discard(self) -> None:
        """Close the files, and remove the one that nobody else needs."""
        self._close()
        self._index_path.unlink(missing_ok=True)

    @property
    def _index_path(self) -> Path:
        return self.path.with_name(f".{self.path.name}.index")

    def _open(self, mode: Literal["wb", "ab"] = "wb") -> None:
        self._lines: BinaryIO = self._files.enter_context(durable(self.path, mode))
        self._index: BinaryIO = self._files.enter_context(durable(self._index_path, mode))

    def _close(self) -> None:
        self._files.close()

    def _rows(self) -> Iterator[Row]:
        with open(self._index_path, "rb") as file:
            while block := file.read(_FORM.size * 4096):
                yield from map(Row._make, _FORM.iter_unpack(block))

    def _select(self) -> None:
        stays = self._first_of_each() if self._deduplicate else bytearray(b"\1") * self.num_rows
        num_distinct = sum(stays)
        self.num_repeats += self.num_rows - num_distinct
        if self._most is not None and num_distinct > self._most:
            self._keep_lowest(stays, self._most)
        self.num_over += num_distinct - sum(stays)
        if sum(stays) < self.num_rows:
            self._copy(stays)
            self.num_rows = sum(stays)

    def _first_of_each(self) -> bytearray:
        """One byte a row: whether no row before it has its content; keys are compared one range at a time."""
        stays = bytearray(self.num_rows)
        num_passes = min(256, self.num_rows // _PASS_ROWS + 1)
        for turn in range(num_passes):
            seen = set()
            for number, row in enumerate(self._rows()):
                if row.key[0] % num_passes == turn and (named := (row.key, row.copy)) not in seen:
                    seen.add(named)
                    stays[number] = 1
        return stays

    def _keep_lowest(self, stays: bytearray, most: int) -> None:
        """Leave the `most` rows of the smallest ranks, found by a histogram, so that not all ranks are in memory."""
        shift = 64 - _BUCKET_BITS
        buckets = Counter(row.rank >> shift for number, row in enumerate(self._rows()) if stays[number])
        bucket, before = 0, 0
        while before + buckets[bucket] < most:
            before += buckets[bucket]
            bucket += 1
        inside = sorted(
            row.rank for number, row in enumerate(self._rows()) if stays[number] and row.rank >> shift == bucket
        )
        highest = inside[most - before - 1]
        num_ties = most - before - sum(rank < highest for rank in inside)  # repeats share a rank; the first ones stay
        for number, row in enumerate(self._rows()):
            if stays[number] and row.rank >= highest:
                stays[number] = row.rank == highest and num_ties > 0
                num_ties -= stays[number]
        self._highest_rank = highest

    def _copy(self, stays: bytearray) -> None:
        lines, index = self.path.with_suffix(".kept"), self._index_path.with_suffix(".kept")
        with open(self.path, "rb") as old, durable(lines) as new, durable(index) as new_index:
            for number, row in enumerate(self._rows()):
                line = old.read(row.num_bytes)
                if stays[number]:
                    new.write(line)
                    new_index.write(_FORM.pack(*row))
        os.replace(lines, self.path)
        os.replace(index, self._index_path)
