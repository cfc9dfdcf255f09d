"""What the named sources are: local files and hub datasets, each opened, with its shape and its weight."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from trainer.data.listing import EXTENSIONS, is_pattern, list_files
from trainer.data.local_file import FileSource
from trainer.data.options import DataOptions, SourceOptions
from trainer.data.readers import RawRecord
from trainer.data.shapes import SHAPE_COLUMNS, explain_columns, shape_of
from trainer.errors import TrainerError

_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:#(.+))?")
_HUB_ONLY = ("config", "split", "revision")
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


@dataclass(frozen=True, slots=True)
class Input:
    """An opened source, the shape of its records and how often each is trained on."""

    source: Source
    shape: str
    weight: float

    def describe(self) -> dict[str, Any]:
        """What the manifest says about the source and its part in the whole."""
        return {"resolved_revision": None, **self.source.describe(), "shape": self.shape, "weight": self.weight}


def open_inputs(options: DataOptions) -> list[Input]:
    """Open every source of the options, files in their order.

    Raises:
        TrainerError: there is no such file or dataset, one is named twice, or the options do not fit it.
    """
    hub_defaults = {"config": options.config_name, "split": options.split, "revision": options.revision}
    _require_hub_set(options, hub_defaults)
    inputs, seen = [], set()
    for wanted in options.sources:
        if is_hub_id(wanted.source):
            given: dict[str, Any] = {key: getattr(wanted, key) or hub_defaults[key] for key in _HUB_ONLY}
            wanted = replace(wanted, **given)
        for source in open_source(wanted, streaming=options.streaming):
            described = str(source.describe())
            if described in seen:
                raise TrainerError(
                    f"The data source {source.name} is named twice.",
                    "Name it once; its weight says how often it is trained on.",
                    kind="configuration",
                )
            seen.add(described)
            inputs.append(_input(source, wanted, options))
    return inputs


def open_tests(options: DataOptions) -> list[Input]:
    """Open the files or the dataset of the test source; none when the test side is a share of the sources."""
    if options.test_source is None:
        return []
    opened = open_source(options.test_source, streaming=options.streaming)
    return [_input(source, options.test_source, options) for source in opened]


def open_source(wanted: SourceOptions, *, streaming: bool = False) -> list[Source]:
    """Open what a name means: existing files, else `owner/name` or `owner/name#split` on the hub.

    Raises:
        TrainerError: there is no such file or dataset, or the options do not fit it.
    """
    if is_hub_id(wanted.source):
        return [_open_dataset(wanted, streaming)]
    for key in _HUB_ONLY:
        if (value := getattr(wanted, key)) is not None:
            raise _not_for_files(key, value, wanted.source)
    return [*open_files(wanted.source)]


def open_files(name: str) -> list[FileSource]:
    """Open the files that a name stands for, at least one.

    Raises:
        TrainerError: there are none, or one cannot be read.
    """
    try:
        files = list_files(name)
    except OSError as error:
        raise TrainerError(f"The folder {name} cannot be read: {error.strerror}.") from None
    if not files and is_pattern(name):
        raise TrainerError(f"The data source {name} matches no file.", f"It was looked for from {Path.cwd()}.")
    return [FileSource(path) for path in files or [Path(name).expanduser()]]


def is_hub_id(name: str) -> bool:
    """Whether a name is one of a hub dataset and not of a file."""
    path = Path(name).expanduser()
    found = _HUB_ID.fullmatch(name)
    return bool(found and path.suffix.lower() not in EXTENSIONS and not path.parent.exists())


def _open_dataset(wanted: SourceOptions, streaming: bool) -> Source:
    from trainer.data.hub import HubSource

    found = _HUB_ID.fullmatch(wanted.source)
    assert found is not None
    if wanted.split and found[2]:
        raise TrainerError(
            f"The data source {wanted.source} names a split, and split {wanted.split!r} is given too.",
            "Leave one of them out.",
            kind="configuration",
        )
    return HubSource(replace(wanted, source=found[1], split=found[2] or wanted.split), streaming=streaming)


def _require_hub_set(options: DataOptions, hub_defaults: dict[str, str | None]) -> None:
    """Settings of hub datasets, and no hub dataset among the sources: something was meant that does not happen."""
    if any(is_hub_id(wanted.source) for wanted in options.sources):
        return
    for key, value in hub_defaults.items():
        if value is not None:
            raise _not_for_files("config_name" if key == "config" else key, value, options.label)
    if options.streaming and not (options.test_source and is_hub_id(options.test_source.source)):
        raise _not_for_files("streaming", True, options.label)


def _not_for_files(key: str, value: Any, name: str) -> TrainerError:
    return TrainerError(
        f"{key} {value!r} is for hub datasets, but the data source {name} is a local file.",
        f"Leave {key} out.",
        kind="configuration",
    )


def _input(source: Source, wanted: SourceOptions, options: DataOptions) -> Input:
    shape = choose_shape(source, wanted.shape or options.shape, options.group_by)
    return Input(source, shape, float(wanted.weight))


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
