"""Checkpoints of one run: which one is whole, which may go, and whether the folder belongs to this run.

The folder may be a mounted blob container, so nothing in it is renamed: a checkpoint is whole when its marker, written
last, is there and every file it lists has the size and the sha256 that it names. saving.py writes them.
"""

from __future__ import annotations

import json
import logging
import os
import re
import shutil
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError
from trainer.files import sha256_file, write_in_place

log = logging.getLogger(__name__)

_OWNER = "run.json"
_MARKER = "complete.json"
_HASHING_THREADS = 8
_SECONDS_WORTH_A_LINE = 5.0


def claim_checkpoints(folder: Path, fingerprint: str) -> None:
    """Mark the folder as this run's.

    Raises:
        TrainerError: it holds checkpoints of a run with other data, base model, settings or number of processes.
    """
    owner = folder / _OWNER
    if owner.is_file():
        try:
            claimed = json.loads(owner.read_text(encoding="utf-8")).get("fingerprint")
        except (ValueError, AttributeError):
            claimed = None
        if claimed == fingerprint:
            return
        if _numbered(folder):
            raise TrainerError(
                f"Checkpoint folder {folder} belongs to a run with other data, base model, settings or number of "
                "processes.",
                "Give another --checkpoint-dir, or delete that folder.",
                "configuration",
            )
    write_in_place(owner, json.dumps({"fingerprint": fingerprint}) + "\n")


def written_files(checkpoint: Path, rank: int) -> dict[str, dict[str, Any]]:
    """Size and sha256 of each file that this process wrote, by its path in the checkpoint.

    Read back at once, large files still come from memory, and no process reads what another machine wrote.
    """
    files = (path for path in checkpoint.rglob("*") if path.is_file() and path.name != _MARKER)
    names = [path.relative_to(checkpoint).as_posix() for path in files if _writer(path.name) == rank]
    digests = _digests(checkpoint, names)
    return {name: {"size": (checkpoint / name).stat().st_size, "sha256": digests[name]} for name in sorted(names)}


def mark_complete(checkpoint: Path, step: int, files: Mapping[str, Mapping[str, Any]]) -> None:
    """Say that everything of a checkpoint is written, and what."""
    write_in_place(checkpoint / _MARKER, json.dumps({"step": step, "files": files}, indent=1) + "\n")


def discard_checkpoint(checkpoint: Path) -> None:
    """Remove a checkpoint, its marker first: what a kill leaves of it was not finished."""
    (checkpoint / _MARKER).unlink(missing_ok=True)
    shutil.rmtree(checkpoint, ignore_errors=True)


def prune(folder: Path, newest: int, most: int, needed: Collection[str]) -> None:
    """Keep the last `most` finished checkpoints up to the newest step, and those needed, by name.

    What was not finished goes, and what is of a later step: it could not be resumed from.
    """
    numbered = _numbered(folder)
    finished = [path for step, path in numbered if step <= newest and (path / _MARKER).is_file()]
    for _, path in numbered:
        if path not in finished[-most:] and path.name not in needed:
            discard_checkpoint(path)


def last_complete_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Find the newest checkpoint that can be resumed from, with its step; older ones stand in for broken ones.

    What is broken is named and removed: what is left of it must not pass for a later one's.
    """
    for step, path in reversed(_numbered(folder)):
        begun = time.monotonic()
        try:
            problem = checkpoint_problem(path, step)
        except OSError as error:  # a disk that fails to read now may read later
            name = Path(error.filename or path).name
            log.warning("Skipped checkpoint=%s reason=%s cannot be read: %s", path.name, name, error.strerror)
            continue
        seconds = time.monotonic() - begun
        if problem is None:
            if seconds > _SECONDS_WORTH_A_LINE:
                log.info("Verified checkpoint=%s seconds=%.0f", path.name, seconds)
            return path, step
        log.warning("Skipped checkpoint=%s reason=%s", path.name, problem)
        discard_checkpoint(path)
    return None


def checkpoint_problem(path: Path, step: int) -> str | None:
    """Say why a checkpoint cannot be resumed from, naming the file, or None.

    Raises:
        OSError: a file is there and cannot be read.
    """
    if not (path / _MARKER).is_file():
        return "it was not finished"
    try:
        marker = json.loads((path / _MARKER).read_text(encoding="utf-8"))
        found, files = marker["step"], dict(marker["files"])
    except (ValueError, KeyError, TypeError) as error:
        return f"{_MARKER} is unreadable: {type(error).__name__}: {error}"
    if found != step:
        return f"{_MARKER} is of step {found}"
    for name, written in files.items():
        try:
            size = (path / name).stat().st_size
        except FileNotFoundError:
            return f"{name} is missing"
        if size != written["size"]:
            return f"{name} has {size:,} of {written['size']:,} bytes"
    digests = _digests(path, list(files))
    changed = [name for name, written in files.items() if digests[name] != written["sha256"]]
    return f"{changed[0]} is not what was written: its sha256 differs" if changed else None


def _digests(folder: Path, names: list[str]) -> dict[str, str]:
    """sha256 of each file, several at a time, the largest first."""
    names = sorted(names, key=lambda name: -(folder / name).stat().st_size)
    with ThreadPoolExecutor(min(_HASHING_THREADS, os.cpu_count() or 1)) as pool:
        return dict(zip(names, pool.map(lambda name: sha256_file(folder / name), names), strict=True))


def _writer(name: str) -> int:
    """The rank of the process that wrote a file: what each writes for itself carries its rank."""
    found = re.match(r"(?:rng_state_|progress_|__)(\d+)[_.]", name)
    return int(found[1]) if found else 0


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())
