"""Waiting for a job: what it does goes into the log and an artifact, how it failed into the error.

The wait outlives faults of the network for as long as `PATIENCE_SECONDS`; a wait that is begun again submits nothing.
"""

from __future__ import annotations

import time
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact

from tasks.platforms.errors import (
    Failure,
    JobFailedError,
    JobInputError,
    JobInterruptedError,
    TransientPlatformError,
)
from tasks.platforms.port import Platform
from tasks.platforms.refs import JobRef, JobSpec, JobState, JobStatus
from tasks.step import log

LINE_SECONDS = 5.0
# A line that says the same again: somebody waits for a queue that may be hours long.
REPEAT_SECONDS = 60.0
PATIENCE_SECONDS = 3600.0


def finish_job(platform: Platform, spec: JobSpec, run_id: str) -> JobRef:
    """Submit or adopt the job and wait for its end; what the platform interrupts is tried again.

    Raises:
        JobFailedError: says why the last attempt left no result.
    """
    for left in reversed(range(spec.max_attempts)):
        job = platform.submit_job(spec, run_id)
        log().info("Job name=%s attempt=%s: %s", job.name, job.attempt, job.origin.reason)
        try:
            await_job(platform, job)
            return job
        except JobInterruptedError as error:
            if not left:
                raise
            log().warning("%s", next_attempt_line(error, left))
            time.sleep(platform.poll_seconds)
    raise AssertionError("max_attempts is at least 1")


def next_attempt_line(error: JobInterruptedError, left: int) -> str:
    """Say that the next attempt begins, and how many more this run may make."""
    return f"{error.message} The next attempt begins now; attempts left in this run: {left}."


def await_job(platform: Platform, job: JobRef) -> None:
    """Poll the job until it ended, showing progress in the log and as an artifact."""
    status = _look(platform, job)
    if status.state.ended:
        _require_completed(job, status)
        return
    artifact = create_progress_artifact(progress=0.0, key="training-progress", description=f"Job {job.name}")
    assert isinstance(artifact, UUID)  # not a coroutine: this is synchronous code
    teller = _Teller(job, artifact)
    while not status.state.ended:
        teller.tell(status)
        time.sleep(platform.poll_seconds)
        status = _look(platform, job)
    completed = status.state == JobState.COMPLETED
    update_progress_artifact(
        artifact, progress=100.0 if completed else _percent(status), description=f"{job.name}: {status.state}"
    )
    _require_completed(job, status)


class _Teller:
    """Says what a job does: at once when it comes to another stage, else every few seconds."""

    def __init__(self, job: JobRef, artifact: UUID) -> None:
        self._job = job
        self._artifact = artifact
        self._stage: tuple[str, str] | None = None
        self._stage_since = self._told = 0.0
        self._line = self._warned = ""

    def tell(self, status: JobStatus) -> None:
        now = time.monotonic()
        line, stage = progress_line(status), (str(status.state), status.stage)
        is_new = stage != self._stage
        if is_new:
            self._stage, self._stage_since = stage, now
        waited = now - self._told
        if is_new or (line != self._line and waited >= LINE_SECONDS) or waited >= REPEAT_SECONDS:
            self._line, self._told = line, now
            since = now - self._stage_since
            line = f"{line} (for {duration(since)})" if since >= REPEAT_SECONDS and status.step is None else line
            log().info("Job %s: %s", self._job.name, line)
            update_progress_artifact(self._artifact, progress=_percent(status), description=line)
        if status.error and status.error != self._warned:
            self._warned = status.error
            log().warning("Job %s waits: %s. %s", self._job.name, status.error.rstrip("."), status.fix)


def progress_line(status: JobStatus) -> str:
    """One line about a job for a person."""
    if status.step is None or status.stage not in ("", "training"):
        return f"{status.state}{', ' + status.stage if status.stage else ''}"
    line = f"step {status.step}/{status.num_steps}"
    if status.loss is not None:
        line += f", loss {status.loss:.3f}"
    if status.tokens_per_second is not None:
        line += f", {status.tokens_per_second:.0f} tokens/s"
    if status.supervised_tokens_per_second is not None:
        line += f" ({status.supervised_tokens_per_second:.0f} learned)"
    if status.mfu is not None:
        line += f", MFU {status.mfu:.0%}"
    if status.seconds_left is not None:
        line += f", {duration(status.seconds_left)} left"
    return line


def duration(seconds: float) -> str:
    """A length of time in the unit that fits."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _look(platform: Platform, job: JobRef) -> JobStatus:
    """Read the job; while the platform cannot be reached, wait and say so."""
    began, told = time.monotonic(), 0.0
    while True:
        try:
            return platform.read_job(job)
        except TransientPlatformError as error:
            now = time.monotonic()
            if now - began > PATIENCE_SECONDS:
                raise
            if now - told >= REPEAT_SECONDS or not told:
                told = now
                log().warning(
                    "Job %s goes on, but cannot be seen for %s: %s", job.name, duration(now - began), error.message
                )
            time.sleep(max(platform.poll_seconds, min(30.0, (now - began) / 10)))


def _percent(status: JobStatus) -> float:
    return 100.0 * (status.step or 0) / status.num_steps if status.num_steps else 0.0


def _require_completed(job: JobRef, status: JobStatus) -> None:
    if status.state == JobState.COMPLETED:
        return
    if status.state == JobState.CANCELLED:
        raise JobFailedError(
            f"Job {job.name} was {status.error or 'cancelled'}.",
            fix="Run the same command to start again from its last checkpoint.",
        )
    failure = Failure(status.failure) if status.failure else None
    error_class = JobInputError if status.is_input_error else JobFailedError
    if failure is not None and failure.retryable:
        error_class = JobInterruptedError
    told = f" ({failure})" if failure else ""
    raise error_class(
        f"Job {job.name} failed{told}: {status.error.rstrip('.')}.",
        fix=status.fix,
        detail=status.log_tail,
        failure=failure,
    )
