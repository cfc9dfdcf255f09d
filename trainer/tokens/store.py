"""Packed rows in an Arrow file that is mapped into memory, and whether the file is whole.

The folder may be a mounted blob container, so nothing is renamed: the rows are written from beginning to end, and the
file beside them, written last, says that they are whole and what they are.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import zlib
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trainer.chat_template import IGNORED
from trainer.errors import TrainerError
from trainer.files import write_in_place
from trainer.tokens.plan import TokenSummary

if TYPE_CHECKING:
    from trainer.batches import Row

log = logging.getLogger(__name__)

# Rows written together; one is read without looking at the others.
_BATCH_ROWS = 512


class RowWriter:
    """Appends rows to an Arrow file; use it within `rows_written`."""

    def __init__(self, path: Path) -> None:
        import pyarrow

        self._arrow = pyarrow
        self._schema = pyarrow.schema(
            [
                ("input_ids", pyarrow.list_(pyarrow.int32())),
                ("learned", pyarrow.list_(pyarrow.bool_())),
                ("lengths", pyarrow.list_(pyarrow.int32())),
                ("lines", pyarrow.list_(pyarrow.int64())),
            ]
        )
        self._file = pyarrow.OSFile(str(path), "wb")
        self._writer = pyarrow.ipc.new_file(self._file, self._schema)

    def write(self, ids: np.ndarray, learned: np.ndarray, lengths: np.ndarray, lines: np.ndarray, sizes: Any) -> None:
        """Append rows, their conversations one behind the other.

        Args:
            ids, learned: of all tokens.
            lengths, lines: of all conversations.
            sizes: conversations in each row.
        """
        chats = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        tokens = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])[chats]
        for first in range(0, len(sizes), _BATCH_ROWS):
            last = min(first + _BATCH_ROWS, len(sizes))
            inner, outer = slice(tokens[first], tokens[last]), slice(chats[first], chats[last])
            columns = [
                self._lists(tokens[first : last + 1], ids[inner]),
                self._lists(tokens[first : last + 1], learned[inner]),
                self._lists(chats[first : last + 1], lengths[outer]),
                self._lists(chats[first : last + 1], lines[outer]),
            ]
            self._writer.write_batch(self._arrow.record_batch(columns, schema=self._schema))

    def _lists(self, ends: np.ndarray, values: np.ndarray) -> Any:
        offsets = self._arrow.array((ends - ends[0]).astype(np.int32))
        return self._arrow.ListArray.from_arrays(offsets, self._arrow.array(values))

    def close(self) -> None:
        """End the file; without it there is none."""
        self._writer.close()
        self._file.close()


@contextmanager
def rows_written(path: Path) -> Iterator[RowWriter]:
    """Write rows to a file that is there, and not yet marked whole, afterwards; after an error it is not.

    Raises:
        TrainerError: the disk is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    marker(path).unlink(missing_ok=True)
    try:
        writer = RowWriter(path)
        yield writer
        writer.close()
    except BaseException as error:
        path.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            raise TrainerError(
                f"The disk of {path.parent} is full; the tokens of a file take about as many bytes as its text.",
                "Free space there, or give another --checkpoint-dir.",
                "configuration",
            ) from error
        raise


def mark_whole(path: Path, summary: TokenSummary) -> None:
    """Say that a file is whole, and what it holds."""
    facts = {"crc32": _crc32(path), "num_bytes": path.stat().st_size, "summary": dataclasses.asdict(summary)}
    write_in_place(marker(path), json.dumps(facts) + "\n")


def read_rows(path: Path) -> TokenRows | None:
    """The rows of a file; None when there is none, or it is not whole."""
    try:
        facts = json.loads(marker(path).read_text(encoding="utf-8"))
        summary = TokenSummary(**{name: _frozen(value) for name, value in facts["summary"].items()})
        if facts["num_bytes"] == path.stat().st_size and facts["crc32"] == _crc32(path):
            return TokenRows(path, summary)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("Discarded tokens path=%s reason=%s", path, type(error).__name__)
        return None
    log.warning("Discarded tokens path=%s reason=its content is not what was written", path)
    return None


class TokenRows:
    """Rows of a tokenised file, read when asked for; the file stays where it is.

    Args:
        whole_rows: False: every conversation is a row of its own.
    """

    def __init__(self, path: Path, summary: TokenSummary, whole_rows: bool = True) -> None:
        self.path = path
        self.summary = summary
        self._whole_rows = whole_rows
        self._learned_ids: set[int] | None = None
        self._open()

    def _open(self) -> None:
        import pyarrow

        reader = pyarrow.ipc.open_file(pyarrow.memory_map(str(self.path)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        sizes = [batch.num_rows for batch in self._batches]
        self._ends = np.cumsum(sizes).tolist()
        if not self._whole_rows:
            counts = [batch.column("lengths").value_lengths().to_numpy() for batch in self._batches]
            self._chat_ends = np.cumsum(np.concatenate([np.empty(0, np.int64), *counts]))

    def __getstate__(self) -> tuple[Path, TokenSummary, bool]:
        return self.path, self.summary, self._whole_rows

    def __setstate__(self, state: tuple[Path, TokenSummary, bool]) -> None:
        self.path, self.summary, self._whole_rows = state
        self._learned_ids = None
        self._open()

    def packed(self) -> TokenRows:
        """The rows as they are in the file."""
        return TokenRows(self.path, self.summary)

    def chats(self) -> TokenRows:
        """The same conversations, each a row of its own."""
        return TokenRows(self.path, self.summary, whole_rows=False)

    def learns(self, token: int) -> bool:
        """Whether a token is learned anywhere."""
        if self._learned_ids is None:
            found: set[int] = set()
            for batch in self._batches:
                ids, flags = (
                    batch.column(name).flatten().to_numpy(zero_copy_only=False) for name in ("input_ids", "learned")
                )
                found.update(np.unique(ids[flags]).tolist())
            self._learned_ids = found
        return token in self._learned_ids

    @property
    def row_lengths(self) -> np.ndarray:
        """Tokens of each row, without reading the rows."""
        if not self._whole_rows:
            return self.chat_lengths
        lengths = [batch.column("input_ids").value_lengths().to_numpy() for batch in self._batches]
        return np.concatenate([np.empty(0, np.int32), *lengths])

    @property
    def chat_lengths(self) -> np.ndarray:
        """Tokens of each conversation."""
        lengths = [batch.column("lengths").flatten().to_numpy() for batch in self._batches]
        return np.concatenate([np.empty(0, np.int32), *lengths])

    def __len__(self) -> int:
        return (self._ends[-1] if self._ends else 0) if self._whole_rows else self.summary.num_chats

    def __getitem__(self, index: int) -> Row:
        if index < 0:
            index += len(self)
        if not 0 <= index < len(self):
            raise IndexError(index)
        if self._whole_rows:
            return self._row(index)
        row = int(np.searchsorted(self._chat_ends, index, side="right"))
        first = int(self._chat_ends[row - 1]) if row else 0
        return _chat_of(self._row(row), index - first)

    def _row(self, index: int) -> Row:
        from trainer.batches import Row

        number = bisect_right(self._ends, index)
        batch, place = self._batches[number], index - (self._ends[number - 1] if number else 0)
        ids, learned, lengths, lines = (
            batch.column(name)[place].values.to_numpy(zero_copy_only=False)
            for name in ("input_ids", "learned", "lengths", "lines")
        )
        ids = ids.astype(np.int64)
        return Row(ids, np.where(learned, ids, IGNORED), lengths.tolist(), lines.tolist())


def _chat_of(row: Row, number: int) -> Row:
    from trainer.batches import Row

    start = sum(row.lengths[:number])
    part = slice(start, start + row.lengths[number])
    one = slice(number, number + 1)
    return Row(row.input_ids[part], row.labels[part], row.lengths[one], row.lines[one])


def _crc32(path: Path) -> int:
    """Tells damage, which is all it is for, several times as fast as a digest."""
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _frozen(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def marker(path: Path) -> Path:
    """The file that says that the other is whole."""
    return path.with_suffix(".json")
