"""Stage: the training job, submitted by name and awaited apart, so that retrying the wait submits nothing.

What the platform interrupts is followed by the next attempt, as often as `compute.max_attempts` allows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from prefect.artifacts import create_link_artifact
from prefect.runtime import flow_run

from tasks.config import PlatformConfig
from tasks.job_wait import await_job, next_attempt_line
from tasks.platforms.connect import connect
from tasks.platforms.errors import JobInterruptedError
from tasks.platforms.port import Platform
from tasks.platforms.refs import (
    JobRef,
    JobSpec,
    JobState,
    Origin,
    Scores,
    TrainingResult,
)
from tasks.step import log, step

PAGES = {"local": "MLflow", "azure": "Azure Machine Learning studio"}


@step()
def submit_training(place: PlatformConfig, spec: JobSpec, after: JobRef | None = None) -> JobRef:
    """Start the training job, or adopt the one with this content.

    Args:
        after: the attempt that this one follows; makes it another call than the one that Prefect remembers.
    """
    job = connect(place).submit_job(spec, str(flow_run.id))
    log().info("Job name=%s attempt=%s url=%s", job.name, job.attempt, job.url)
    create_link_artifact(job.url, link_text=f"{job.name} in {PAGES[place.kind]}", key="training-job")
    return job


def adoptable_job(platform: Platform, spec: JobSpec) -> JobRef | None:
    """The job with this content that runs or has completed, so that nothing would be submitted."""
    job = platform.latest_job(spec.key)
    state = platform.read_job(job).state if job else JobState.FAILED
    return job if not state.ended or state == JobState.COMPLETED else None


def failed_attempt(place: PlatformConfig, spec: JobSpec) -> JobRef | None:
    """The last attempt at this job where it left nothing to adopt: a run that is retried submits the next."""
    platform = connect(place)
    return None if adoptable_job(platform, spec) else platform.latest_job(spec.key)


def finish_training(place: PlatformConfig, spec: JobSpec, job: JobRef) -> TrainingResult:
    """Await the job; an attempt that the platform interrupts is followed by the next, from its checkpoint."""
    for left in reversed(range(spec.max_attempts)):
        try:
            return await_training(place, job)
        except JobInterruptedError as error:
            if not left:
                raise
            log().warning("%s", next_attempt_line(error, left))
            job = submit_training(place, spec, after=job)
    raise AssertionError("max_attempts is at least 1")


@step()
def await_training(place: PlatformConfig, job: JobRef) -> TrainingResult:
    """Follow the job to its end; JobFailedError says why it left no model."""
    platform = connect(place)
    await_job(platform, job)
    result = platform.read_job_result(job)
    scores = {label: scores_of(result["metrics"][label]) for label in ("base", "candidate")}
    log().info(
        "Trained job=%s loss_base=%.4f loss_candidate=%.4f", job.name, scores["base"].loss, scores["candidate"].loss
    )
    return TrainingResult(
        job=job,
        model_location=result["model_location"],
        model_digest=result["model_digest"],
        result_file=result["result_file"],
        mlflow_run_id=result.get("mlflow_run_id") or "",
        base=scores["base"],
        candidate=scores["candidate"],
        origin=replace(job.origin) if job.origin.reused else Origin(reused=False, reason="trained now"),
    )


def scores_of(metrics: dict[str, Any]) -> Scores:
    """The scores of one model in a job's result."""
    return Scores(
        loss=metrics["loss"],
        perplexity=metrics["perplexity"],
        token_accuracy=metrics["token_accuracy"],
        exact_match=metrics.get("exact_match") or 0.0,
        num_examples=metrics["num_examples"],
        chrf=metrics.get("chrf"),
        stop_rate=metrics.get("stop_rate"),
        mean_answer_tokens=metrics.get("mean_answer_tokens"),
        repetition=metrics.get("repetition"),
    )
