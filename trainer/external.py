"""`train.command`: another program trains, with this trainer's own arguments; what it leaves is checked, never trusted.

It writes a model folder; scoring it, comparing it with the base and packaging it are done here, the same for everyone.
"""

from __future__ import annotations

import json
import logging
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_model import resolve_base_model
from trainer.checkpoints import claim_checkpoints
from trainer.command_output import Events, Output, is_number
from trainer.curves import Curves
from trainer.errors import EXIT_PREEMPTED, TrainerError
from trainer.interruption import die_with_parent
from trainer.job import Reporting, TrainJob
from trainer.ranks import is_first, world_size

log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True)
class Trained:
    """What a program left.

    Args:
        model: Hugging Face folder.
        folder: holds it, and goes with it.
        summary: what it said of the training, for result.json.
    """

    model: Path
    folder: Path
    summary: dict[str, Any]


@contextmanager
def trained_by_command(job: TrainJob, reporting: Reporting) -> Iterator[Trained]:
    """Run the program; what it left is there while within.

    Raises:
        TrainerError: it cannot be started, failed, or left no model; or this process was asked to end.
    """
    if is_first():
        claim_checkpoints(job.checkpoint_dir, job.fingerprint())  # it must not go on from another run's
    with _work_folder(job.model_output_dir) as folder:
        output, logs, config = folder / "model", folder / "logs", folder / "train.json"
        logs.mkdir(parents=True, exist_ok=True)
        config.write_text(json.dumps(job.config.to_dict(), indent=1) + "\n", encoding="utf-8")
        arguments = [
            *_words(job.config.command),
            *("--base-model", job.base_model),
            *(("--base-model-revision", job.revision) if job.revision else ()),
            *("--train-file", str(job.train_file.absolute()), "--eval-file", str(job.eval_file.absolute())),
            *("--model-output-dir", str(output), "--checkpoint-dir", str(job.checkpoint_dir)),
            *("--log-dir", str(logs), "--config", str(config)),
        ]
        begun = time.monotonic()
        losses = _run(arguments, _working_folder(job.config.command_dir), logs, reporting)
        seconds = round(time.monotonic() - begun, 2)
        numbers, curve = _said(logs / "result.json")
        summary = {"command": job.config.command, "seconds": seconds, **numbers, "curves": Curves(loss=curve or losses)}
        yield Trained(_model_folder(output), folder, summary)


@contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    """A folder beside the model, where there is room for one; the same for all processes that train together."""
    folder = target.with_name(f".{target.name}.command")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:  # only the model's own folder is writable
        folder = Path(tempfile.gettempdir()) / f"phiflow{folder.name}"
    if world_size() == 1:
        shutil.rmtree(folder, ignore_errors=True)  # an earlier attempt's
    try:
        yield folder
    finally:
        if is_first():
            shutil.rmtree(folder, ignore_errors=True)


def _words(command: str) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise TrainerError(
            f"train.command is not a command line: {error}: {command!r}.", "Correct its quotes.", "configuration"
        ) from error
    if not words:
        raise TrainerError("train.command is empty.", "Name a program, or leave it out.", "configuration")
    return words


def _working_folder(command_dir: str) -> Path | None:
    if command_dir and not Path(command_dir).is_dir():
        raise TrainerError(
            f"train.command_dir {command_dir} is not a folder.", "Name the folder of the command.", "configuration"
        )
    return Path(command_dir).absolute() if command_dir else None


def _run(arguments: list[str], folder: Path | None, logs: Path, reporting: Reporting) -> list[list[float]]:
    """Run the program in a process group of its own until it ends; a signal to this process is passed on to it.

    Returns:
        The losses that it told as progress, by step.
    """
    reporting.events.stage("training")
    log.info("Started %s", shlex.join(arguments))
    # A plain `python` is this one: the training environment's.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    try:
        process = subprocess.Popen(
            arguments,
            cwd=folder,
            env={**os.environ, "PATH": path, "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=lambda: die_with_parent(signal.SIGKILL),
        )
    except OSError as error:
        raise TrainerError(
            f"train.command cannot be started: {arguments[0]}: {error.strerror}.",
            "Check its name, or give the path of its interpreter.",
            "configuration",
        ) from error
    output, events = Output(process.stdout), Events(logs / "events.jsonl")
    try:
        with reporting.interruption.deferred():
            _follow(process, events, reporting)
    finally:
        _end_group(process)
        output.join()
    _require_success(process.returncode, logs, output.last_line)
    return events.losses


def _follow(process: subprocess.Popen[bytes], events: Events, reporting: Reporting) -> None:
    passed_on = False
    while process.poll() is None:
        if reporting.interruption.requested and not passed_on:
            passed_on = True
            os.killpg(process.pid, signal.SIGTERM)
        events.relay(reporting)
        time.sleep(_POLL_SECONDS)
    events.relay(reporting)


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """Whatever of it still runs, ends: a program that is gone leaves no workers behind."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _require_success(returncode: int, logs: Path, last_line: str) -> None:
    if returncode == 0:
        return
    if returncode == EXIT_PREEMPTED:
        raise TrainerError("train.command was stopped from outside.", "Run the same command again.", "preempted")
    said = _object(logs / "error.json")
    how = f"was ended by {signal.Signals(-returncode).name}" if returncode < 0 else f"ended with exit code {returncode}"
    raise TrainerError(
        f"train.command {how}: {said.get('message') or last_line}",
        str(said.get("fix") or "Its whole output is above, and in the job's log."),
        "configuration",
    )


def _model_folder(output: Path) -> Path:
    """The folder with configuration and weights that the program left, in Hugging Face's or MLflow's layout."""
    wanted = "a folder with config.json, the weights and the tokenizer at --model-output-dir"
    if not output.is_dir() or not any(output.iterdir()):
        raise TrainerError("train.command ended well but wrote no model.", f"It must write {wanted}.", "configuration")
    if (output / "adapter_config.json").is_file():
        raise TrainerError(
            "train.command left a LoRA adapter without its model.",
            f"It must merge it and write {wanted}.",
            "configuration",
        )
    try:
        return Path(resolve_base_model(str(output)))
    except TrainerError as error:
        raise TrainerError(
            "train.command left a folder without config.json and weights beside it, but "
            f"{', '.join(sorted(path.name for path in output.iterdir())[:6])}.",
            f"It must write {wanted}.",
            "configuration",
        ) from error


def _said(result: Path) -> tuple[dict[str, float], list[list[float]]]:
    """What the program tells of its training: numbers under `train`, and `loss_curve`; its scores are not taken."""
    told = _object(result) if result.exists() else {}
    if result.exists() and not told:
        raise TrainerError(
            "train.command left a result.json that is no JSON object.", "Write one, or none at all.", "configuration"
        )
    train = told.get("train")
    numbers = {key: value for key, value in train.items() if is_number(value)} if isinstance(train, dict) else {}
    return numbers, _curve(told.get("loss_curve"))


def _curve(points: Any) -> list[list[float]]:
    pairs = points if isinstance(points, list) else []
    return [[p[0], p[1]] for p in pairs if isinstance(p, list) and len(p) == 2 and all(map(is_number, p))]


def _object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}
