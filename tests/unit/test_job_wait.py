"""Waiting for jobs: faults of the network, interrupted attempts, and how a failure is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes import job_ref, job_spec, training_result

from flows.command import error_document
from tasks import job_wait, training
from tasks.config import LocalPlatformConfig
from tasks.job_wait import await_job, duration, finish_job, progress_line
from tasks.platforms.errors import (
    Failure,
    JobFailedError,
    JobInputError,
    JobInterruptedError,
    PermissionDeniedError,
    TransientPlatformError,
)
from tasks.platforms.refs import JobRef, JobSpec, JobState, JobStatus

DONE = JobStatus(state=JobState.COMPLETED)
PREEMPTED = JobStatus(state=JobState.FAILED, failure=Failure.PREEMPTION, error="its node was taken", fix="Wait.")
BROKEN = JobStatus(
    state=JobState.FAILED, failure=Failure.USER_CODE, error="exit code 1", fix="Read it.", log_tail=("boom",)
)


class Jobs:
    """A platform that has what it is told about jobs: a status or an error for each look."""

    poll_seconds = 0.0

    def __init__(self, *seen: JobStatus | Exception) -> None:
        self.seen = list(seen)
        self.submitted: list[str] = []

    def submit_job(self, spec: JobSpec, run_id: str) -> JobRef:
        attempt = len(self.submitted) + 1
        self.submitted.append(run_id)
        return job_ref(name=f"support-0-a{attempt}", attempt=attempt)

    def read_job(self, job: JobRef) -> JobStatus:
        value = self.seen.pop(0)
        if isinstance(value, Exception):
            raise value
        return value


def test_wait_outlives_a_fault_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that cannot be reached for a while is looked at again, far more often than a step is retried."""
    monkeypatch.setattr(job_wait.time, "sleep", lambda seconds: None)
    jobs: Any = Jobs(*[TransientPlatformError("no route")] * 20, DONE)
    await_job(jobs, job_ref())
    assert jobs.seen == []


def test_wait_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """A platform that stays away ends the wait; what is refused ends it at once."""
    monkeypatch.setattr(job_wait, "PATIENCE_SECONDS", -1.0)
    with pytest.raises(TransientPlatformError):
        await_job(Jobs(TransientPlatformError("no route")), job_ref())  # type: ignore[arg-type]
    refused: Any = Jobs(PermissionDeniedError("no"), DONE)
    with pytest.raises(PermissionDeniedError):
        await_job(refused, job_ref())
    assert refused.seen == [DONE]


def test_interrupted_job_is_tried_again() -> None:
    """A preempted attempt is followed by the next, and the one that completes is the answer."""
    jobs: Any = Jobs(PREEMPTED, PREEMPTED, DONE)
    assert finish_job(jobs, job_spec(max_attempts=3), "run").attempt == 3


def test_attempts_are_limited_and_failures_are_final() -> None:
    """The last attempt's interruption is the run's; a failure of the user's code is not tried again."""
    jobs: Any = Jobs(PREEMPTED, PREEMPTED, DONE)
    with pytest.raises(JobInterruptedError):
        finish_job(jobs, job_spec(max_attempts=2), "run")
    assert len(jobs.submitted) == 2
    broken: Any = Jobs(BROKEN, DONE)
    with pytest.raises(JobFailedError):
        finish_job(broken, job_spec(), "run")
    assert len(broken.submitted) == 1


def test_training_goes_on_with_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step that submits is called again after an interruption, as another call, so that no result is reused."""
    calls: list[JobRef | None] = []

    def wait(place: Any, job: JobRef) -> Any:
        if job.attempt == 1:
            raise JobInterruptedError("Job support-0 failed.", failure=Failure.PREEMPTION)
        return replace(training_result(), job=job)

    def submit(place: Any, spec: JobSpec, after: JobRef | None = None) -> JobRef:
        calls.append(after)
        return job_ref(name="support-0-a2", attempt=2)

    monkeypatch.setattr(training, "await_training", wait)
    monkeypatch.setattr(training, "submit_training", submit)
    result = training.finish_training(LocalPlatformConfig(), job_spec(), job_ref())
    assert result.job.attempt == 2
    assert calls == [job_ref()]


def test_failure_is_told_with_class_cause_fix_and_log() -> None:
    """The error has what a person needs, and its JSON says whether trying again may help."""
    with pytest.raises(JobFailedError) as broken:
        await_job(Jobs(BROKEN), job_ref())  # type: ignore[arg-type]
    assert str(broken.value) == "Job support-0 failed (user code): exit code 1. Read it."
    told = error_document(broken.value)
    assert (told["failure"], told["retryable"], list(told["detail"])) == ("user code", False, ["boom"])
    with pytest.raises(JobInterruptedError) as preempted:
        await_job(Jobs(PREEMPTED), job_ref())  # type: ignore[arg-type]
    assert error_document(preempted.value)["retryable"] is True
    wrong = replace(BROKEN, is_input_error=True)
    with pytest.raises(JobInputError):
        await_job(Jobs(wrong), job_ref())  # type: ignore[arg-type]


def test_stages_are_told_as_what_they_are() -> None:
    """A queue is no training, and a step comes with its rate and the time that is left."""
    queued = JobStatus(state=JobState.QUEUED, stage="waiting for a node of cluster gpu")
    assert progress_line(queued) == "queued, waiting for a node of cluster gpu"
    training_now = JobStatus(
        state=JobState.RUNNING,
        stage="training",
        step=3,
        num_steps=9,
        loss=1.25,
        tokens_per_second=99.0,
        seconds_left=5400,
    )
    assert progress_line(training_now) == "step 3/9, loss 1.250, 99 tokens/s, 90 min left"
    measured = replace(training_now, supervised_tokens_per_second=40.0, mfu=0.384)
    assert progress_line(measured) == "step 3/9, loss 1.250, 99 tokens/s (40 learned), MFU 38%, 90 min left"
    assert [duration(seconds) for seconds in (5, 600, 9000)] == ["5 s", "10 min", "2.5 h"]
