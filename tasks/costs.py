"""Stage: what the run may cost, before it spends; and what its job took beside that, once it is over."""

from __future__ import annotations

from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.config import PipelineConfig, PlatformConfig
from tasks.estimate.actual import Spent, compare
from tasks.estimate.estimate import RunEstimate, estimate_run
from tasks.estimate.ranges import dollars, seconds_text
from tasks.estimate.text import estimate_markdown
from tasks.platforms.connect import connect
from tasks.platforms.errors import PhiflowError
from tasks.platforms.refs import JobSpec, TrainingResult
from tasks.step import log, step
from tasks.training import adoptable_job


@step(cache_policy=NO_CACHE)
def estimate_costs(config: PipelineConfig, spec: JobSpec) -> RunEstimate:
    """Estimate the run that would submit this job, or adopt the one with its content."""
    adopted = adoptable_job(connect(config.platform), spec) is not None
    estimate = estimate_run(config, spec.model, spec.data, job_exists=adopted)
    cost = "unknown" if estimate.dollars is None else dollars(estimate.dollars)
    log().info("Estimated time=%s cost=%s", seconds_text(estimate.seconds), cost)
    for warning in estimate.warnings:
        log().warning("%s", warning)
    create_markdown_artifact(estimate_markdown(estimate), key="estimate", description=f"Estimated cost: {cost}")
    return estimate


def read_spent(place: PlatformConfig, estimate: RunEstimate, result: TrainingResult) -> Spent:
    """What the training job took, as its own result and events say, beside the estimate."""
    platform = connect(place)
    details = platform.read_job_result(result.job)
    try:
        events = platform.read_events(result.job)
    except PhiflowError as error:  # a run that did its work must not end for want of its own times
        log().warning("Could not read when job=%s began and ended: %s", result.job.name, error.message)
        events = ()
    return compare(estimate, details, events, adopted=result.job.origin.reused)
