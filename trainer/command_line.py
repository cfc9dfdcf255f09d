"""What the trainer's commands share: arguments, the configuration file, and failures as one line."""

from __future__ import annotations

import argparse
import errno
import json
import logging
import sys
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from trainer.config import TrainConfig, TrainConfigError
from trainer.console import Console, find_console
from trainer.errors import EXIT_INPUT, TrainerError
from trainer.interruption import Interrupted
from trainer.launch import is_launched
from trainer.ranks import is_first, world_size

_PEER_IS_GONE = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "NCCL communicator was aborted",
)
_MACHINE_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS}


class OneLineParser(argparse.ArgumentParser):
    """Argument parser whose refusals are one line."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and where help is."""
        self.exit(EXIT_INPUT, f"error: {message}. Try {self.prog} --help.\n")


@dataclass(slots=True)
class Outcome:
    """How a command ended."""

    exit_code: int = 0
    error: TrainerError | None = None


@contextmanager
def explained() -> Iterator[Outcome]:
    """Print whatever goes wrong within: one line for what a person can mend, a traceback for a bug."""
    outcome = Outcome()
    try:
        yield outcome
    except (Exception, Interrupted) as error:
        outcome.error = error.error if isinstance(error, Interrupted) else as_trainer_error(error)
        outcome.exit_code = outcome.error.exit_code
        if console := find_console():
            console.status("")
        if outcome.error.kind == "bug":
            traceback.print_exc()
        if not is_launched():  # else the launcher says it, once
            print(f"error: {outcome.error}", file=sys.stderr, flush=True)


def as_trainer_error(error: Exception) -> TrainerError:
    """Name the kind of any failure."""
    if isinstance(error, TrainerError):
        return error
    if isinstance(error, TrainConfigError):
        return TrainerError(str(error), kind="configuration")
    text = str(error)
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "can't allocate" in text:
        return TrainerError(
            f"Out of memory: {text.splitlines()[0] if text else type(error).__name__}",
            "Halve train.per_device_train_batch_size and double train.gradient_accumulation_steps, "
            "lower train.max_length, or set train.method to lora.",
            "out_of_memory",
        )
    if world_size() > 1 and any(words in text for words in _PEER_IS_GONE):
        return TrainerError(
            "Another process of this training has ended.",
            "Read its error; run the same command again to go on from the last checkpoint.",
            "preempted",
        )
    if isinstance(error, OSError) and error.errno in _MACHINE_ERRORS:
        return TrainerError(
            f"Cannot write or read {error.filename or 'a file'}: {error.strerror}.",
            "Free some space, or choose another folder.",
            "configuration",
        )
    return TrainerError(f"{type(error).__name__}: {text.splitlines()[0] if text else ''}", kind="bug")


def read_config(path: Path | None) -> TrainConfig:
    """Read the train section from a JSON file; None means the defaults.

    Raises:
        TrainerError, TrainConfigError: the file or a value in it cannot be used.
    """
    if path is None:
        return TrainConfig()
    try:
        values = json.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else f"it is not JSON: {error}"
        raise TrainerError(
            f"Configuration {path} cannot be read: {reason}.", "Check --config.", "configuration"
        ) from error
    config = TrainConfig.from_dict(values)
    if config.command_dir:  # it travels beside the file that names it
        config = replace(config, command_dir=str((path.parent / config.command_dir).absolute()))
    return config


def require_file(path: Path, option: str) -> None:
    """Refuse an input that is not a readable file.

    Raises:
        TrainerError: names the option and the path.
    """
    if path.is_dir():
        raise TrainerError(f"{option} {path} is a directory.", "Give a JSONL file.", "configuration")
    try:
        path.open("rb").close()
    except OSError as error:
        raise TrainerError(
            f"{option} {path} cannot be read: {error.strerror}.", "Check the path.", "configuration"
        ) from error


def log_to_console() -> None:
    """Show the trainer's own lines on standard output; libraries, and all processes but the first, from warnings up."""
    logging.getLogger("trainer").addHandler(Console())
    logging.getLogger("trainer").setLevel(logging.INFO if is_first() else logging.WARNING)
    # What the libraries will drop in their next versions is for whoever raises the pins.
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(transformers|trl|peft|mlflow)\b")
