"""Checkpoints of one run: which one is whole, and whether the folder belongs to this run.

The folder may be a mounted blob container, so nothing in it is renamed: a checkpoint is whole when its marker, written
last, is there.
"""

from __future__ import annotations

import json
import logging
import re
import shutil
import zipfile
from pathlib import Path

from trainer.errors import TrainerError
from trainer.files import write_in_place

log = logging.getLogger(__name__)

_OWNER = "run.json"
_MARKER = "complete.json"


def claim_checkpoints(folder: Path, fingerprint: str) -> None:
    """Mark the folder as this run's.

    Raises:
        TrainerError: it holds checkpoints of a run with other data, base model or settings.
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
                f"Checkpoint folder {folder} belongs to a run with other data, base model or settings.",
                "Give another --checkpoint-dir, or delete that folder.",
                "configuration",
            )
    write_in_place(owner, json.dumps({"fingerprint": fingerprint}) + "\n")


def mark_complete(checkpoint: Path, step: int) -> None:
    """Say that everything of a checkpoint is written."""
    write_in_place(checkpoint / _MARKER, json.dumps({"step": step}) + "\n")


def discard_broken(folder: Path) -> None:
    """Remove the checkpoints that cannot be resumed from: what is left of one must not pass for a later one's."""
    for step, path in _numbered(folder):
        if checkpoint_problem(path, step):
            shutil.rmtree(path, ignore_errors=True)


def last_complete_checkpoint(folder: Path) -> tuple[Path, int] | None:
    """Find the newest checkpoint that can be resumed from, with its step; older ones stand in for broken ones."""
    for step, path in reversed(_numbered(folder)):
        problem = checkpoint_problem(path, step)
        if problem is None:
            return path, step
        log.warning("Skipped checkpoint=%s reason=%s", path.name, problem)
    return None


def checkpoint_problem(path: Path, step: int) -> str | None:
    """Say why a checkpoint cannot be resumed from, or None."""
    if not (path / _MARKER).is_file():
        return "it was not finished"
    try:
        state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return f"trainer_state.json is unreadable: {error}"
    if state.get("global_step") != step:
        return f"trainer_state.json is of step {state.get('global_step')}"
    weights = sorted(path.glob("*.safetensors"))
    if not weights:
        return "it has no weights"
    for file in weights:
        if problem := _weights_problem(file):
            return problem
    for name in ("optimizer.pt", "scheduler.pt"):
        if not zipfile.is_zipfile(path / name):
            return f"{name} is not whole"
    return None


def _numbered(folder: Path) -> list[tuple[int, Path]]:
    matches = ((re.fullmatch(r"checkpoint-(\d+)", path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted((int(match[1]), path) for match, path in matches if match and path.is_dir())


def _weights_problem(file: Path) -> str | None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:  # compares the header with the file's size
            tensors.keys()
    except (SafetensorError, OSError) as error:
        return f"{file.name} is not whole: {error}"
    return None
