"""Which files a name stands for: a file, a folder of data files, or a pattern; needs the standard library alone."""

from __future__ import annotations

import glob
import os
from pathlib import Path

# Extension of a data file -> its format.
EXTENSIONS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}


def is_pattern(name: str) -> bool:
    """Whether a name is a pattern, and not a file or folder that is called so."""
    return glob.has_magic(name) and not os.path.lexists(os.path.expanduser(name))


def list_files(name: str) -> list[Path]:
    """The files of a name, sorted, so that their order is the same everywhere.

    A folder stands for the data files in it, a pattern (`*`, `?`, `[...]`, `**`) for the files that match; neither
    for hidden ones, and either may be empty. Any other name stands for itself, whether there is such a file or not.

    Raises:
        OSError: the folder cannot be read.
    """
    path = Path(name).expanduser()
    if os.path.isdir(path):
        return sorted(file for file in path.iterdir() if file.suffix.lower() in EXTENSIONS and _is_shown(file))
    if not is_pattern(name):
        return [path]
    folder = Path(path.anchor)
    parts = list(path.parts[len(folder.parts) :])
    while len(parts) > 1 and (folder / parts[0]).is_dir():  # a folder above may have a name that reads as a pattern
        folder /= parts.pop(0)
    found = glob.glob(os.path.join(*parts), root_dir=folder, recursive=True)
    return sorted({folder / match for match in found if _is_shown(folder / match)})


def _is_shown(path: Path) -> bool:
    return path.is_file() and not path.name.startswith(".")
