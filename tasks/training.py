"""Stage: the training job, submitted by name and awaited apart, so that retrying the wait submits nothing."""

from __future__ import annotations

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect.artifacts import create_link_artifact, create_progress_artifact, update_progress_artifact
from prefect.runtime import flow_run

import trainer
from tasks.config import PipelineConfig, PlatformConfig
from tasks.platforms.connect import connect
from tasks.platforms.errors import JobFailedError, JobInputError
from tasks.platforms.port import Platform
from tasks.platforms.refs import (
    BaseModelRef,
    ComputeRef,
    DataManifest,
    EnvironmentRef,
    JobKind,
    JobRef,
    JobSpec,
    JobState,
    JobStatus,
    Origin,
    Scores,
    TrainingResult,
)
from tasks.step import log, step
from trainer.files import sha256_file

LINE_SECONDS = 5.0


def trainer_digest() -> dict[str, str]:
    """The digest of each source file that decides what a training job does."""
    folder = Path(trainer.__file__).parent
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*.py"))}


def training_spec(
    config: PipelineConfig,
    base: BaseModelRef,
    data: DataManifest,
    environment: EnvironmentRef,
    compute: ComputeRef,
) -> JobSpec:
    """Everything the training job's result depends on, and its limits."""
    return JobSpec(
        kind=JobKind.TRAINING,
        run_name=config.name,
        code_digest=json.dumps(trainer_digest(), sort_keys=True),
        settings=json.dumps(config.train.to_dict(), sort_keys=True),
        model=base,
        data=data,
        environment=environment,
        compute=compute,
        num_nodes=config.compute.num_nodes,
        processes_per_node=config.compute.processes_per_node,
        shm_size=config.compute.shm_size,
        timeout_seconds=config.compute.timeout_seconds,
    )


@step()
def submit_training(place: PlatformConfig, spec: JobSpec) -> JobRef:
    """Start the training job, or adopt the one with this content."""
    job = connect(place).submit_job(spec, str(flow_run.id))
    log().info("Job name=%s attempt=%s url=%s", job.name, job.attempt, job.url)
    create_link_artifact(job.url, link_text=f"{job.name} in MLflow", key="training-job")
    return job


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
    )


def await_job(platform: Platform, job: JobRef) -> None:
    """Poll the job until it ended, showing progress in the log and as an artifact."""
    status = platform.read_job(job)
    if status.state.ended:
        _require_completed(job, status)
        return
    artifact = create_progress_artifact(progress=0.0, key="training-progress", description=f"Job {job.name}")
    assert isinstance(artifact, UUID)  # not a coroutine: this is synchronous code
    shown, last_line = "", 0.0
    while not status.state.ended:
        line = progress_line(status)
        if line != shown and time.monotonic() - last_line >= LINE_SECONDS:
            log().info("Job %s: %s", job.name, line)
            update_progress_artifact(artifact, progress=_percent(status), description=line)
            shown, last_line = line, time.monotonic()
        time.sleep(platform.poll_seconds)
        status = platform.read_job(job)
    completed = status.state == JobState.COMPLETED
    update_progress_artifact(
        artifact, progress=100.0 if completed else _percent(status), description=f"{job.name}: {status.state}"
    )
    _require_completed(job, status)


def progress_line(status: JobStatus) -> str:
    """One line about a job for a person."""
    if status.step is None or status.stage not in ("", "training"):
        return f"{status.state}{', ' + status.stage if status.stage else ''}"
    line = f"step {status.step}/{status.num_steps}"
    if status.loss is not None:
        line += f", loss {status.loss:.3f}"
    if status.tokens_per_second is not None:
        line += f", {status.tokens_per_second:.0f} tokens/s"
    if status.seconds_left is not None:
        line += f", {status.seconds_left:.0f} s left"
    return line


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
    error_class = JobInputError if status.is_input_error else JobFailedError
    raise error_class(f"Job {job.name} failed: {status.error.rstrip('.')}.", fix=status.fix, detail=status.log_tail)
