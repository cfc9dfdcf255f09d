"""What the first process and the workers say to each other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from trainer.errors import TrainerError
from trainer.tokens.block import Block
from trainer.tokens.encoders import EncoderRefusedError


@dataclass(frozen=True, slots=True)
class Part:
    """Whole lines of a file, by where they stand in it, in bytes."""

    offset: int
    num_bytes: int
    first_line: int


@dataclass(frozen=True, slots=True)
class Failure:
    """What a worker says instead of a result."""

    error: type[Exception]
    arguments: tuple[str, ...]

    @classmethod
    def of(cls, error: TrainerError | EncoderRefusedError) -> Failure:
        """Describe an error so that it can be raised in another process."""
        if isinstance(error, TrainerError):
            return cls(TrainerError, (error.message, error.fix, error.kind))
        return cls(EncoderRefusedError, (str(error),))


def read_part(file: Any, part: Part) -> Block:
    """Read the lines of one part."""
    file.seek(part.offset)
    return Block(file.read(part.num_bytes), part.first_line)
