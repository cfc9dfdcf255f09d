"""One local file as a stream of raw records: what it is, which format it has, and whether it can be read at all."""

from __future__ import annotations

import codecs
import difflib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.data.listing import EXTENSIONS
from trainer.data.readers import READERS, RawRecord, read_lines
from trainer.data.shapes import KNOWN_COLUMNS
from trainer.data.values import RejectedRecordError
from trainer.errors import TrainerError

_FORMATS = "Give a JSONL, JSON, CSV or Parquet file."
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


class FileSource:
    """One local file, opened anew for every pass.

    Raises:
        TrainerError: the file is missing, empty, unreadable or of no known format.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.name = os.fsencode(path).decode("utf-8", errors="replace")
        self.kind = "file"
        self.num_bytes = _require_file(self.path)
        self.read_bytes = 0
        self.format = _format_of(self.path)

    def records(self) -> Iterator[RawRecord]:
        """Yield (line or record number, record or RejectedRecordError) in the file's order."""
        if self.format == "parquet":
            from trainer.data.parquet import read_parquet

            yield from read_parquet(self.path)
            return
        with open(self.path, "rb") as file:
            if file.read(3) != codecs.BOM_UTF8:
                file.seek(0)
            for item in READERS[self.format](file):
                self.read_bytes = file.tell()
                yield item

    def describe(self) -> dict[str, Any]:
        """What the manifest says about the source."""
        return {"kind": self.kind, "name": self.name, "format": self.format, "num_bytes": self.num_bytes}


def _require_file(path: Path) -> int:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise TrainerError(f"The data source {path} is a folder without data files.", _FORMATS)
        if not stat.S_ISREG(status.st_mode):
            raise TrainerError(f"The data source {path} is not a regular file.", _FORMATS)
        with open(path, "rb"):
            pass
    except (FileNotFoundError, NotADirectoryError):
        raise TrainerError(f"The data source {path} does not exist.", _nearest_file(path)) from None
    except PermissionError:
        raise TrainerError(
            f"The data source {path} may not be read by this user.", "Give yourself the right to."
        ) from None
    except OSError as error:
        raise TrainerError(f"The data source {path} cannot be read: {error.strerror}.") from None
    if status.st_size == 0:
        raise TrainerError(f"The data source {path} is empty.", _FORMATS)
    return status.st_size


def _nearest_file(path: Path) -> str:
    try:
        names = [item.name for item in path.parent.iterdir()]
    except OSError:
        return f"The folder {path.parent} does not exist either; it is looked for from {Path.cwd()}."
    near = difflib.get_close_matches(path.name, names, n=1)
    return f"Did you mean {path.parent / near[0]}?" if near else f"It was looked for in {path.parent.resolve()}."


def _format_of(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(4096)
    for magic, name in _PACKED.items():
        if head.startswith(magic):
            raise TrainerError(f"The data source {path} is packed ({name}).", f"Unpack it first. {_FORMATS}")
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise TrainerError(f"The data source {path} is UTF-16 text.", "Save it as UTF-8.")
    by_name = EXTENSIONS.get(path.suffix.lower())
    if head.startswith(b"PAR1"):
        return "parquet"
    if by_name == "parquet":
        raise TrainerError(f"The data source {path} is not a Parquet file: it lacks Parquet's first bytes.")
    start = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if by_name == "csv":
        return "csv"
    # A JSON array is told from a (bad) line that is a list by the object it opens with.
    if start.startswith(b"[") and (by_name == "json" or start[1:].lstrip().startswith((b"{", b"]"))):
        return "json"
    if by_name == "jsonl" or not start:
        return "jsonl"
    if start.startswith(b"{"):
        return _lines_or_refuse(path)
    if by_name is None and {name.strip().lower() for name in _first_cells(start)} & set(KNOWN_COLUMNS):
        return "csv"
    if by_name == "json":
        raise TrainerError(f"The data source {path} is not JSON: it starts with {_shown(start)}.", _FORMATS)
    raise TrainerError(f"The data source {path} is of no known type: it starts with {_shown(start)}.", _FORMATS)


def _lines_or_refuse(path: Path) -> str:
    """A .json file that starts with an object is JSON Lines; one object over many lines is refused."""
    with open(path, "rb") as file:
        _, first = next((item for item in read_lines(file)), (0, None))
    pretty = isinstance(first, RejectedRecordError) and ("at character" in str(first))
    if pretty and path.suffix.lower() == ".json":
        raise TrainerError(
            f"The data source {path} holds one JSON object over several lines, not a list of records.",
            "Save the list itself as a JSON array.",
        )
    return "jsonl"


def _first_cells(start: bytes) -> list[str]:
    line = start.split(b"\n", 1)[0].decode("utf-8", errors="replace")
    return re.split(r'[",;\t]+', line)


def _shown(start: bytes) -> str:
    return repr(start[:20].decode("utf-8", errors="replace"))
