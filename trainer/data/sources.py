"""Where records come from: opening a file or a hub dataset by name, and finding its format and shape."""

from __future__ import annotations

import codecs
import difflib
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from trainer.data.options import DataOptions
from trainer.data.readers import READERS, RawRecord, read_lines
from trainer.data.shapes import KNOWN_COLUMNS, SHAPE_COLUMNS, explain_columns, shape_of
from trainer.data.values import RejectedRecordError
from trainer.errors import TrainerError

EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_FORMATS = "Give a JSONL, JSON, CSV or Parquet file."
_PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zX": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:#(.+))?")
_HUB_ONLY = ("config_name", "split", "revision")
# The shape and the columns are looked for in this many records at the start of the source.
_NUM_SHAPE_RECORDS = 100


class Source(Protocol):
    """A named stream of raw records that can be read several times."""

    name: str
    num_bytes: int
    read_bytes: int

    def records(self) -> Iterator[RawRecord]:
        """Yield (line or record number, record or RejectedRecordError)."""

    def describe(self) -> dict[str, Any]:
        """What the manifest says about the source."""


def open_source(name: str, options: DataOptions | None = None) -> Source:
    """Open what a name means: an existing path, else `owner/name` or `owner/name#split` on the hub.

    Raises:
        TrainerError: there is no such file or dataset, or the options do not fit it.
    """
    path = Path(name).expanduser()
    hub_id = _HUB_ID.fullmatch(name)
    if hub_id and path.suffix.lower() not in EXTENSIONS and not path.parent.exists():
        from trainer.data.hub import HubSource

        config_name, split, revision = (getattr(options, key, None) for key in _HUB_ONLY)
        if split and hub_id[2]:
            raise TrainerError(
                f"The data source {name} names a split, and split {split!r} is given too.",
                "Leave one of them out.",
                kind="configuration",
            )
        return HubSource(hub_id[1], config_name, hub_id[2] or split, revision)
    source = FileSource(path)
    for key in _HUB_ONLY:
        value = getattr(options, key, None)
        if value is not None:
            raise TrainerError(
                f"{key} {value!r} is for hub datasets, but the data source {name} is a local file.",
                f"Leave {key} out.",
                kind="configuration",
            )
    return source


def choose_shape(source: Source, wanted: str = "auto", group_by: str | None = None) -> str:
    """The shape of a source, from the columns of its first records.

    Raises:
        TrainerError: no known shape, or not the wanted one, or no such group key; names the columns seen.
    """
    columns: dict[str, None] = {}
    shape, is_group_seen, num_objects = None, False, 0
    for _, (_, record) in zip(range(_NUM_SHAPE_RECORDS), source.records(), strict=False):
        if isinstance(record, dict):
            num_objects += 1
            columns.update(dict.fromkeys(record))
            shape = shape or shape_of(record)
            is_group_seen = is_group_seen or group_by in record
    if num_objects == 0:
        return wanted if wanted != "auto" else "messages"  # every record will be rejected with its own reason
    if wanted != "auto" and not all(set(names) & set(columns) for names in SHAPE_COLUMNS[wanted]):
        need = " and ".join(" or ".join(map(repr, names[:3])) for names in SHAPE_COLUMNS[wanted])
        raise TrainerError(
            f"The data source {source.name} has not the shape {wanted}, which needs {need}.",
            explain_columns(columns),
        )
    if shape is None:
        raise TrainerError(
            f"The data source {source.name} has no columns of a known shape. {explain_columns(columns)}",
            "Known: messages, conversations, instruction and output, prompt and completion.",
        )
    if group_by is not None and not is_group_seen:
        raise TrainerError(
            f"The data source {source.name} has no column {group_by!r} to group by.",
            _seen(columns, group_by),
            kind="configuration",
        )
    return shape if wanted == "auto" else wanted


def _seen(columns: dict[str, None], wanted: str) -> str:
    near = difflib.get_close_matches(wanted, columns, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"Columns seen: {', '.join(map(repr, columns))}.{hint}"


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
            names = sorted(item.name for item in path.iterdir() if item.suffix.lower() in EXTENSIONS)[:5]
            inside = f" It holds {', '.join(names)}." if names else ""
            raise TrainerError(f"The data source {path} is a folder, not a file.{inside}", "Name one file.")
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
