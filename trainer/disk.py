"""Space on a disk: what is needed and what is free, said before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path

from trainer.errors import TrainerError


def shown_bytes(size: float) -> str:
    """A size for a person, in powers of ten as disks are sold."""
    for unit, most in (("GB", 1e9), ("MB", 1e6)):
        if size >= most:
            return f"{size / most:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def require_space(folder: Path, checkpoint_bytes: int, most: int) -> None:
    """Refuse a folder that cannot hold so many checkpoints at a time.

    Raises:
        TrainerError: says what is needed, what is free, where, and how to need less.
    """
    usage = shutil.disk_usage(folder)
    if not usage.total or usage.free >= checkpoint_bytes * most:  # some mounts do not know their size
        return
    each = f"{most} at a time, {shown_bytes(checkpoint_bytes)} each" if most > 1 else "the next one"
    raise TrainerError(
        f"The checkpoints need {shown_bytes(checkpoint_bytes * most)} ({each}) in {folder}, where "
        f"{shown_bytes(usage.free)} are free.",
        "Free some space, lower train.save_total_limit, set train.method to lora, or give another --checkpoint-dir.",
        "configuration",
    )
