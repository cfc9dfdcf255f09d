"""Jobs as detached processes: submitted by name, adopted by name, read from what they leave behind.

A job's folder holds `job.json` (what it is), `process.json`, `slot.json` and `exit.json` (written by
`job_runner.py`), `log.txt`, `logs/` (the trainer's events, result and error) and `model/`. Checkpoints
are kept by the job's key, so that the next attempt starts from them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tasks.platforms.errors import JobFailedError, NotFoundError, PhiflowError
from tasks.platforms.events import parse_events, with_progress
from tasks.platforms.local import job_runner
from tasks.platforms.local.files import copy_folder, file_lock, read_json, write_json
from tasks.platforms.local.processes import spawn_detached
from tasks.platforms.local.state import KEEP_BYTECODE, Home, project_folder
from tasks.platforms.refs import COMMAND_DIR, JobKind, JobRef, JobSpec, JobState, JobStatus, Origin

_START_SECONDS = 10.0
_CANCEL_GRACE_SECONDS = 30.0
_TAIL_LINES = 15
_TAIL_BYTES = 16_384
_ATTEMPT = re.compile(r"-a(\d+)$")


class Jobs:
    """The jobs of one state folder.

    Args:
        tracking: gives a training job's environment variables for MLflow, by job and run name; called when it starts.
    """

    def __init__(self, home: Home, tracking: Callable[[str, str], dict[str, str]]) -> None:
        self._home = home
        self._tracking = tracking

    def submit(self, spec: JobSpec, run_id: str) -> JobRef:
        """Start the next attempt, unless one runs or has completed."""
        with file_lock(self._home.folder("jobs") / f".{spec.key}.lock", 60, f"job {spec.key}"):
            last = self.latest(spec.key)
            if last is None:
                return self._start(spec, 1, run_id, "there was no job with this content")
            if not (self._folder(last) / "process.json").exists():
                # Whoever was starting it held this lock and is gone; a runner it did start keeps the job's own lock.
                return self._start(spec, last.attempt, run_id, f"job {last.name} was named but never started")
            status = self.read(last)
            if status.state == JobState.COMPLETED:
                return _with_reason(last, f"job {last.name} has completed with the same content")
            if not status.state.ended:
                self._add_run(last, run_id)
                return _with_reason(last, f"job {last.name} is {status.state}: adopted")
            step = self._last_checkpoint(spec.key)
            start = f"starts from checkpoint step {step}" if step else "starts from the base model"
            reason = f"attempt {last.attempt} {status.state} ({status.error}); attempt {last.attempt + 1} {start}"
            return self._start(spec, last.attempt + 1, run_id, reason)

    def latest(self, key: str) -> JobRef | None:
        """The last attempt under a key."""
        found = [read_json(path) for path in self._home.folder("jobs").glob(f"{key}*/job.json") if _is_of(path, key)]
        return _ref(max(found, key=lambda job: job["attempt"])) if found else None

    def running(self, run: str = "") -> tuple[JobRef, ...]:
        """Jobs that have not ended, all or those of one run, by its id or its configuration's name."""
        jobs = [read_json(path) for path in self._home.folder("jobs").glob("*/job.json")]
        refs = [_ref(job) for job in jobs if not run or run in job["runs"] or run == job["run_name"]]
        return tuple(ref for ref in refs if not self.read(ref).state.ended)

    def read(self, job: JobRef) -> JobStatus:
        """Say what a job is doing from its folder; a process that vanished without a record was killed."""
        folder = self._folder(job)
        alive = _holds_lock(folder / "alive.lock")
        if not alive and not (folder / "process.json").exists():
            alive = time.time() - (folder / "job.json").stat().st_mtime < _START_SECONDS
        if alive:
            started = (folder / "slot.json").exists()
            state = JobState.RUNNING if started else JobState.QUEUED
            return _progress(state, folder, read_events(folder))
        record = read_json(folder / "exit.json", {})
        complete = (folder / "logs" / "result.json").exists()
        if job.kind == JobKind.TRAINING:
            complete = complete and (folder / "model").is_dir()
        if complete and record.get("returncode", 0) == 0:
            return _progress(JobState.COMPLETED, folder, read_events(folder))
        error, fix, is_input_error = _why(folder, record)
        if (folder / "cancel.json").exists():
            by = read_json(folder / "cancel.json").get("by", "")
            return JobStatus(state=JobState.CANCELLED, error=f"cancelled by {by}", fix=fix)
        return JobStatus(
            state=JobState.FAILED,
            error=error,
            fix=fix,
            is_input_error=is_input_error,
            log_tail=tail(folder / "log.txt"),
        )

    def cancel(self, job: JobRef, by: str) -> JobStatus:
        """SIGTERM, then after a grace SIGKILL; the trainer uses the grace to write a checkpoint."""
        folder = self._folder(job)
        if self.read(job).state.ended:
            return self.read(job)
        write_json(folder / "cancel.json", {"by": by})
        for number, wait in ((15, _CANCEL_GRACE_SECONDS), (9, 5.0)):
            pid = read_json(folder / "process.json", {}).get("pid")
            with contextlib.suppress(ProcessLookupError):
                if pid and number == 15:
                    os.kill(pid, number)
                elif pid:
                    os.killpg(pid, number)
            deadline = time.monotonic() + wait
            while time.monotonic() < deadline:
                if not _holds_lock(folder / "alive.lock"):
                    return self.read(job)
                time.sleep(0.1)
        return self.read(job)

    def result(self, job: JobRef) -> dict[str, Any]:
        """`result.json`, with the model's location as it is on this machine."""
        folder = self._folder(job)
        try:
            result = read_json(folder / "logs" / "result.json")
        except FileNotFoundError as error:
            raise JobFailedError(f"Job {job.name} left no result.", fix="Run the same command again.") from error
        result["model_location"] = str(folder / "model")
        result["result_file"] = str(folder / "logs" / "result.json")
        return result

    def events(self, job: JobRef) -> tuple[dict[str, Any], ...]:
        """The trainer's events so far."""
        return tuple(read_events(self._folder(job)))

    def mlflow_run(self, job: JobRef) -> str:
        """The MLflow run made for the job, or an empty string."""
        return str(read_json(self._folder(job) / "job.json").get("mlflow_run", ""))

    def runs_of(self, job: JobRef) -> tuple[str, ...]:
        """The runs that want the job."""
        return tuple(read_json(self._folder(job) / "job.json")["runs"])

    def data_of(self, job: JobRef) -> str:
        """The training file the job was given."""
        return str(read_json(self._folder(job) / "job.json").get("train_file", ""))

    def _folder(self, job: JobRef) -> Path:
        folder = self._home.path("jobs", job.name)
        if not folder.is_dir():
            raise NotFoundError(f"There is no job {job.name} in {self._home.root}.")
        return folder

    def _start(self, spec: JobSpec, attempt: int, run_id: str, reason: str) -> JobRef:
        name = spec.key if attempt == 1 else f"{spec.key}-a{attempt}"
        folder = self._home.folder("jobs", name)
        (folder / "logs").mkdir(exist_ok=True)
        write_json(folder / "train.json", json.loads(spec.settings))
        if spec.command_dir:
            copy_folder(Path(spec.command_dir), folder / COMMAND_DIR)
        code = self._home.snapshot(project_folder("trainer"), "trainer")
        environment = self._tracking(name, spec.run_name) if spec.kind == JobKind.TRAINING else {}
        write_json(
            folder / "job.json",
            {
                "name": name,
                "key": spec.key,
                "attempt": attempt,
                "kind": str(spec.kind),
                "data_digest": spec.data.digest,
                "train_file": spec.data.train_file,
                "url": environment.get("PHIFLOW_JOB_URL", folder.as_uri()),
                "mlflow_run": environment.get("MLFLOW_RUN_ID", ""),
                "run_name": spec.run_name,
                "runs": [run_id],
            },
        )
        python = str(Path(spec.environment.location) / "bin" / "python")
        command = [python, "-u", "-m", *self._arguments(spec, folder)]
        slots = [str(self._home.folder("compute")), str(spec.compute.max_instances)]
        environment |= {"PYTHONPATH": str(code), "PHIFLOW_JOB_NAME": name, **spec.provenance, **KEEP_BYTECODE}
        _spawn([sys.executable, "-I", job_runner.__file__, str(folder), *slots, "--", *command], folder, environment)
        return _with_reason(_ref(read_json(folder / "job.json")), reason, reused=False)

    def _arguments(self, spec: JobSpec, folder: Path) -> list[str]:
        if spec.kind == JobKind.EVALUATION:
            return [
                *("trainer.evaluate", "--model-dir", spec.model.location),
                *("--eval-file", spec.data.test_file, "--config", str(folder / "train.json")),
                *("--output", str(folder / "logs" / "result.json")),
            ]
        return [
            *("trainer", "--base-model", spec.model.location),
            *(("--base-model-revision", spec.model.revision) if spec.model.revision else ()),
            *("--train-file", spec.data.train_file, "--eval-file", spec.data.test_file),
            *("--model-output-dir", str(folder / "model"), "--log-dir", str(folder / "logs")),
            *("--checkpoint-dir", str(self._home.folder("checkpoints", spec.key))),
            *("--config", str(folder / "train.json")),
            *("--num-processes", str(spec.processes_per_node)),
        ]

    def _add_run(self, job: JobRef, run_id: str) -> None:
        path = self._folder(job) / "job.json"
        record = read_json(path)
        if run_id not in record["runs"]:
            write_json(path, record | {"runs": [*record["runs"], run_id]})

    def _last_checkpoint(self, key: str) -> int | None:
        steps = [
            int(path.name.rpartition("-")[2])
            for path in self._home.path("checkpoints", key).glob("checkpoint-*")
            if path.name.rpartition("-")[2].isdigit()
        ]
        return max(steps, default=None)


def _is_of(path: Path, key: str) -> bool:
    return _ATTEMPT.sub("", path.parent.name) == key or path.parent.name == key


def _ref(record: dict[str, Any]) -> JobRef:
    return JobRef(
        name=record["name"],
        key=record["key"],
        attempt=record["attempt"],
        kind=JobKind(record["kind"]),
        data_digest=record["data_digest"],
        url=record["url"],
        origin=Origin(reused=True, reason="found"),
    )


def _with_reason(job: JobRef, reason: str, *, reused: bool = True) -> JobRef:
    return dataclasses.replace(job, origin=Origin(reused=reused, reason=reason))


def _spawn(command: list[str], folder: Path, environment: dict[str, str]) -> None:
    spawn_detached(command, cwd=folder, log_file=folder / "log.txt", env={**os.environ, **environment})
    deadline = time.monotonic() + _START_SECONDS
    while not (folder / "process.json").exists():
        if time.monotonic() > deadline:
            raise PhiflowError(f"Job {folder.name} did not start.", fix=f"Read {folder / 'log.txt'}.")
        time.sleep(0.02)


def _holds_lock(path: Path) -> bool:
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The trainer's events so far; none when it wrote none."""
    try:
        text = (folder / "logs" / "events.jsonl").read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    return parse_events(text.splitlines())


def _progress(state: JobState, folder: Path, events: list[dict[str, Any]]) -> JobStatus:
    return with_progress(JobStatus(state=state, log_tail=() if events else tail(folder / "log.txt")), events)


def _why(folder: Path, record: dict[str, Any]) -> tuple[str, str, bool]:
    said = read_json(folder / "logs" / "error.json", None)
    if said:
        return str(said["message"]), str(said.get("fix", "")), said.get("kind") in ("configuration", "data")
    log = f"Read {folder / 'log.txt'}."
    if not record:
        return "its process was killed", "Run the same command again: it continues from the last checkpoint.", False
    if record["returncode"] < 0:
        return f"its process was killed by signal {-record['returncode']}", log, False
    lines = tail(folder / "log.txt")
    return f"it ended with exit code {record['returncode']}: {lines[-1] if lines else 'no output'}", log, False


def tail(path: Path) -> tuple[str, ...]:
    """The last lines of a log, however large it is."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return tuple(file.read().decode("utf-8", "replace").splitlines()[-_TAIL_LINES:])
    except FileNotFoundError:
        return ()
