"""Bytes into raw records: JSON Lines, JSON arrays and CSV, with memory bounded by one record.

What is wrong with one record is yielded in its place as a `RejectedRecordError`; what is wrong with the
file is a `TrainerError`.
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO

from trainer.data.shapes import KNOWN_COLUMNS
from trainer.data.values import RejectedRecordError
from trainer.errors import TrainerError

MAX_RECORD_BYTES = 8 * 1024 * 1024
# The only bytes that matter for finding where an element of an array ends, outside and inside of a string.
_OUTSIDE = re.compile(rb'["{}\[\],]')
_INSIDE = re.compile(rb'\\.|"', re.DOTALL)
_BLOCK_BYTES = 1 << 16

# (line, or number of the record; the record or why it is none)
RawRecord = tuple[int, Any]


def parse_record(raw: bytes) -> Any:
    """Parse one JSON value strictly; returns the value or the RejectedRecordError that says why not."""
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        return _not_utf8(raw, error)
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant)
    except RejectedRecordError as error:
        return error
    except json.JSONDecodeError as error:
        return RejectedRecordError(f"not valid JSON: {error.msg} at character {error.pos + 1}")
    except RecursionError:
        return RejectedRecordError("not usable JSON: nested too deeply")
    except ValueError as error:
        return RejectedRecordError(f"not usable JSON: {str(error).split(';')[0]}")


def read_lines(file: BinaryIO) -> Iterator[RawRecord]:
    """Yield one record a line; blank lines are skipped, a line over the limit is never loaded whole."""
    for number, line in _bounded_lines(file):
        if isinstance(line, RejectedRecordError):
            yield number, line
        elif line.strip():
            yield number, parse_record(line.strip(b" \t\r\n"))


def read_array(file: BinaryIO) -> Iterator[RawRecord]:
    """Yield the elements of one JSON array, each parsed by itself, so that one bad element harms no other."""
    number = 0
    for element, is_last in _array_elements(file):
        if is_last and number == 0 and element is not None and not element.strip():
            return  # []
        number += 1
        if element is None:
            yield number, _too_long()
        elif not element.strip():
            yield number, RejectedRecordError("nothing between two commas, or a comma too many")
        else:
            yield number, parse_record(element.strip())
        if is_last:
            if file.read(_BLOCK_BYTES).strip():
                yield number + 1, RejectedRecordError("there is text after the end of the JSON array")
            return
    yield number + 1, RejectedRecordError("the file ends before its JSON array does; is it cut off?")


def read_csv(file: BinaryIO) -> Iterator[RawRecord]:
    """Yield one object a row, its keys from the header."""
    start = file.tell()
    first = file.readline(_BLOCK_BYTES).decode("utf-8", errors="replace")
    file.seek(start)
    lines = _CsvLines(file)
    # A field may be as long as a record; the default limit is 128 KiB.
    csv.field_size_limit(MAX_RECORD_BYTES)
    rows = csv.reader(lines, delimiter=max(",;\t", key=first.count), strict=True)
    try:
        columns = _header(next(rows))
    except (RejectedRecordError, csv.Error) as error:
        raise TrainerError(f"The CSV header cannot be read: {error}.", "Save the file as UTF-8 CSV.") from None
    while True:
        number = lines.num_lines + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except RejectedRecordError as error:
            yield number, error
        except csv.Error as error:
            yield number, RejectedRecordError(f"not valid CSV: {error}")
        else:
            if any(row):
                yield number, _row(columns, row)


# format -> reader
READERS: dict[str, Callable[[BinaryIO], Iterator[RawRecord]]] = {
    "jsonl": read_lines,
    "json": read_array,
    "csv": read_csv,
}


class _Buffer:
    """The bytes of one element, given up beyond the limit so that memory stays bounded."""

    def __init__(self) -> None:
        self._bytes = bytearray()
        self._too_long = False

    def add(self, piece: bytes) -> None:
        self._too_long = self._too_long or len(self._bytes) + len(piece) > MAX_RECORD_BYTES
        if self._too_long:
            self._bytes.clear()
        else:
            self._bytes += piece

    def take(self) -> bytes | None:
        taken = None if self._too_long else bytes(self._bytes)
        self._bytes.clear()
        self._too_long = False
        return taken


def _array_elements(file: BinaryIO) -> Iterator[tuple[bytes | None, bool]]:
    depth, quoted, element = 0, False, _Buffer()
    while block := file.read(_BLOCK_BYTES):
        while block.endswith(b"\\") and (more := file.read(1)):  # never cut an escape in two
            block += more
        start = position = 0
        while match := (_INSIDE if quoted else _OUTSIDE).search(block, position):
            position, token = match.end(), match.group()
            if token == b'"':
                quoted = not quoted
            elif token in (b"[", b"{"):
                depth += 1
                start = position if depth == 1 else start
            elif token in (b"]", b"}", b","):
                depth -= token != b","
                if depth > 1 or (depth == 1 and token != b","):
                    continue
                element.add(block[start : match.start()])
                start = position
                if depth == 0:
                    file.seek(position - len(block), 1)  # what follows the array is the caller's to read
                    yield element.take(), True
                    return
                yield element.take(), False
        element.add(block[start:])


def _bounded_lines(file: BinaryIO) -> Iterator[tuple[int, bytes | RejectedRecordError]]:
    number = 0
    while line := file.readline(MAX_RECORD_BYTES + 1):
        number += 1
        if len(line) <= MAX_RECORD_BYTES or line.endswith(b"\n"):
            yield number, line
            continue
        while line and not line.endswith(b"\n"):
            line = file.readline(MAX_RECORD_BYTES)
        yield number, _too_long()


def _not_utf8(raw: bytes, error: UnicodeDecodeError) -> RejectedRecordError:
    return RejectedRecordError(f"not valid UTF-8: byte 0x{raw[error.start]:02x} at position {error.start + 1}")


def _too_long() -> RejectedRecordError:
    return RejectedRecordError(f"longer than {MAX_RECORD_BYTES // 2**20} MiB")


class _CsvLines:
    """Text lines for csv.reader, which passes on what `__next__` raises and can go on afterwards."""

    def __init__(self, file: BinaryIO) -> None:
        self._lines = _bounded_lines(file)
        self.num_lines = 0

    def __iter__(self) -> _CsvLines:
        return self

    def __next__(self) -> str:
        self.num_lines, raw = next(self._lines)
        if isinstance(raw, RejectedRecordError):
            raise raw
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(raw, error) from None


def _header(names: list[str]) -> list[str]:
    columns = []
    for name in names:
        plain = name.strip()
        columns.append(plain.lower() if plain.lower() in KNOWN_COLUMNS else plain)
    twice = next((name for name in columns if name and columns.count(name) > 1), None)
    if twice:
        raise TrainerError(f"The CSV header names the column {twice!r} twice.", "Rename one of them.")
    return columns


def _row(columns: list[str], row: list[str]) -> Any:
    if len(row) != len(columns):
        return RejectedRecordError(f"the row has {len(row)} fields, the header has {len(columns)}")
    # An unnamed column is the row number that spreadsheet and data frame exports add.
    return {name: cell for name, cell in zip(columns, row, strict=True) if name}


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise RejectedRecordError(f"the key {twice!r} appears twice in one object")
    return record


def _refuse_constant(name: str) -> Any:
    raise RejectedRecordError(f"not valid JSON: {name} is not a JSON number")
