"""The output folder of a data preparation: whole or absent, and never over somebody else's files."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal

from trainer.errors import TrainerError


def require_replaceable(output_dir: Path) -> None:
    if output_dir.is_dir():
        if any(output_dir.iterdir()) and not (output_dir / "manifest.json").is_file():
            raise TrainerError(
                f"The output folder {output_dir} holds other files, which would be lost.",
                "Name an empty or new folder.",
            )
    elif output_dir.exists():
        raise TrainerError(f"The output folder {output_dir} is a file.", "Name a folder.")


@contextlib.contextmanager
def whole_or_absent(output_dir: Path) -> Iterator[Path]:
    """A folder beside the wanted one, renamed to it on success and removed on any failure."""
    folder = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        yield folder
        folder.chmod(0o755)  # mkdtemp gives 700; the job that reads it may be another user's
        if output_dir.exists():
            before = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-old-", dir=output_dir.parent))
            os.replace(output_dir, before)
            os.replace(folder, output_dir)
            shutil.rmtree(before, ignore_errors=True)
        else:
            os.replace(folder, output_dir)
    except BaseException:  # Ctrl-C and SIGTERM too must not leave a part behind
        shutil.rmtree(folder, ignore_errors=True)
        raise


@contextlib.contextmanager
def durable(path: Path, mode: Literal["wb", "ab"] = "wb") -> Iterator[BinaryIO]:
    with open(path, mode, buffering=1 << 18) as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_durably(path: Path, text: str) -> None:
    with durable(path) as file:
        file.write(text.encode("utf-8"))
