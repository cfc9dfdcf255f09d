"""Stage: what the run may cost, before it spends; and what it took, beside that, once it is over."""

from __future__ import annotations

from prefect.cache_policies import NO_CACHE

from tasks.config import PipelineConfig
from tasks.estimate.estimate import RunEstimate, estimate_run
from tasks.estimate.ranges import dollars, seconds_text
from tasks.platforms.connect import connect
from tasks.platforms.refs import EnvironmentRef, JobSpec, JobState
from tasks.step import log, step


@step(cache_policy=NO_CACHE)
def estimate_costs(config: PipelineConfig, spec: JobSpec, environments: tuple[EnvironmentRef, ...]) -> RunEstimate:
    """Estimate the run that would submit this job, or adopt the one with its content."""
    platform = connect(config.platform)
    job = platform.latest_job(spec.key)
    state = platform.read_job(job).state if job else None
    exists = state is not None and (state == JobState.COMPLETED or not state.ended)
    estimate = estimate_run(
        config, spec.model, spec.data, job_exists=exists, num_new_images=num_new_images(environments)
    )
    cost = "unknown" if estimate.dollars is None else dollars(estimate.dollars)
    log().info("Estimated time=%s cost=%s", seconds_text(estimate.seconds), cost)
    for warning in estimate.warnings:
        log().warning("%s", warning)
    return estimate


def num_new_images(environments: tuple[EnvironmentRef, ...]) -> int:
    """How many of them the service has yet to build an image of."""
    return sum(
        environment.location.startswith("azureml:") and not environment.origin.reused for environment in environments
    )
