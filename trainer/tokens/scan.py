"""One look at a file: its digest, its lines, and where it can be divided."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from trainer.errors import TrainerError
from trainer.tokens.parts import Part

PART_BYTES = 1 << 21


@dataclass(frozen=True, slots=True)
class Scan:
    """A file in parts of whole lines.

    Args:
        sha256: of its content.
    """

    parts: tuple[Part, ...]
    num_lines: int
    sha256: str


def scan(path: Path, part_bytes: int = PART_BYTES) -> Scan:
    """Read the file once.

    Raises:
        TrainerError: it cannot be read.
    """
    digest = hashlib.sha256()
    parts: list[Part] = []
    start = position = 0
    line = 1
    try:
        with open(path, "rb") as file:
            while chunk := file.read(part_bytes):
                digest.update(chunk)
                end = chunk.rfind(b"\n") + 1
                if end:
                    parts.append(Part(start, position + end - start, line))
                    line += chunk.count(b"\n")
                    start = position + end
                position += len(chunk)
    except OSError as error:
        raise TrainerError(f"{path} cannot be read: {error.strerror}.", "Check the path.") from error
    if position > start:
        parts.append(Part(start, position - start, line))
        line += 1
    return Scan(tuple(parts), line - 1, digest.hexdigest())
