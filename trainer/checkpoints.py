"""Checkpoints of one run: which one is whole, and whether the folder belongs to this run."""

from __future__ import annotations

import json
import logging
import re
import zipfile
from pathlib import Path

from trainer.errors import TrainerError
from trainer.files import write_atomic

log = logging.getLogger(__name__)

_OWNER = "run.json"


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
        if claimed != fingerprint and _numbered(folder):
            raise TrainerError(
                f"Checkpoint folder {folder} belongs to a run with other data, base model or settings.",
                "Give another --checkpoint-dir, or delete that folder.",
                "configuration",
            )
    write_atomic(owner, json.dumps({"fingerprint": fingerprint}) + "\n")


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
