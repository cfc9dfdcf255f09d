"""Stage: a new deployment beside the old one, probed, given traffic step by step, taken back on any doubt.

The flow holds the lease on the endpoint (`tasks.lease`) and the try/except that calls `tasks.restore`. The way back is
also recorded with the endpoint, so that a run that was killed is undone by the next.
"""

from __future__ import annotations

import time
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tasks.config import PlatformConfig, RolloutConfig, ServingConfig
from tasks.lease import WAIT_SECONDS
from tasks.platforms.connect import connect
from tasks.platforms.errors import Failure, GateRefusedError, PhiflowError, RolloutError
from tasks.platforms.port import Platform
from tasks.platforms.refs import (
    DeploymentRef,
    EndpointRef,
    EndpointStatus,
    EnvironmentRef,
    ModelVersion,
    Origin,
    RolloutRecord,
    TrafficSplit,
    TrainingResult,
)
from tasks.restore import delete_or_tell, undo_recorded_rollout
from tasks.step import log, step
from tasks.watch import watch

_COMPARED_CHARACTERS = 40
# Asked when the evaluation kept no samples: any answer will do.
_ANY_QUESTION: dict[str, Any] = {
    "messages": [{"role": "user", "content": "Hello"}],
    "question": "Hello",
    "answer": None,
}


@step()
def ensure_endpoint(place: PlatformConfig, name: str, description: str = "") -> EndpointRef:
    """Have the endpoint, and undo the rollout of a run that died in the middle of it."""
    platform = connect(place)
    endpoint = platform.ensure_endpoint(name, description)
    with platform.lease_endpoint(name, f"run {flow_run.name}", WAIT_SECONDS):
        undo_recorded_rollout(platform, name)
    return endpoint


@step(cache_policy=NO_CACHE)
def read_traffic(place: PlatformConfig, endpoint: EndpointRef) -> EndpointStatus:
    """The endpoint as it is before anything changes."""
    status = connect(place).read_endpoint(endpoint.name)
    assert status is not None
    return status


def objection_to_traffic(before: EndpointStatus, model: ModelVersion) -> str:
    """Why this version must not get traffic though the gate let it pass; empty when nothing speaks against it."""
    if model.rejected:
        return f"version {model.version} was rejected: {model.rejected}"
    serving = next((d.model_version for d in before.deployments if d.name == before.traffic.main), "")
    if before.frozen and serving != model.version:
        return f"endpoint {before.name} is frozen: {before.frozen}"
    return ""


def require_not_frozen(platform: Platform, endpoint: str) -> None:
    """GateRefusedError with the reason of the freeze."""
    status = platform.read_endpoint(endpoint)
    if status and status.frozen:
        raise GateRefusedError(f"endpoint {endpoint} is frozen: {status.frozen}", fix="phiflow freeze --off ends it.")


@step(cache_policy=NO_CACHE)
def deploy(
    place: PlatformConfig,
    before: EndpointStatus,
    model: ModelVersion,
    serving: ServingConfig,
    environment: EnvironmentRef,
) -> DeploymentRef:
    """Start the deployment at 0 %, or adopt it, and wait until it is ready.

    Raises:
        RolloutError: it did not become ready; the reason is its server's.
        GateRefusedError: the endpoint is frozen, and this is not the deployment that serves.
    """
    platform = connect(place)
    deployment = platform.deploy(before.name, model, serving, environment)
    if before.frozen and deployment.name != before.traffic.main:
        if not deployment.origin.reused:
            platform.delete_deployment(before.name, deployment.name)
        raise GateRefusedError(
            f"Version {model.version} with another serving configuration was not deployed: "
            f"endpoint {before.name} is frozen: {before.frozen}.",
            fix="Thaw it with: phiflow freeze --off",
        )
    if deployment.name != before.traffic.main:
        record_rollout(platform, before, deployment.name)
    deadline = time.monotonic() + serving.start_timeout_seconds
    while True:
        status = platform.read_deployment(before.name, deployment.name)
        if status.state == "ready":
            return deployment
        if status.state == "failed":
            raise RolloutError(
                f"Deployment {deployment.name} on {before.name} did not start: {status.error}",
                fix=status.fix,
                detail=status.log_tail,
                failure=Failure(status.failure) if status.failure else None,
            )
        if time.monotonic() > deadline:
            raise RolloutError(
                f"Deployment {deployment.name} on {before.name} was not ready within "
                f"{serving.start_timeout_seconds:.0f} s.",
                fix="Raise serving.start_timeout_seconds, or read the model server's log.",
            )
        time.sleep(platform.poll_seconds)


def record_rollout(platform: Platform, before: EndpointStatus, deployment: str) -> None:
    """Keep with the endpoint how to undo what this run is about to do."""
    record = RolloutRecord(run_id=str(flow_run.id), candidate=deployment, traffic_before=before.traffic.percents)
    platform.record_rollout(before.name, record)


@step(cache_policy=NO_CACHE)
def probe_deployment(
    place: PlatformConfig, deployment: DeploymentRef, result: TrainingResult, limits: RolloutConfig
) -> TrafficSplit:
    """Ask the deployment directly what the evaluation asked, before it has any traffic.

    What is served must be what was evaluated: the greedy answers must be the same for at least
    `min_probe_match` of the questions.

    Raises:
        RolloutError: an answer failed, all were empty, or too many differ.
    """
    platform = connect(place)
    samples = platform.read_job_result(result.job)["samples"][: limits.num_probes] or [_ANY_QUESTION]
    same = num_empty = 0
    for sample in samples:
        try:
            answer = platform.invoke(
                deployment.endpoint,
                sample["messages"],
                tools=sample.get("tools", ()),
                deployment=deployment.name,
                timeout_seconds=limits.max_latency_seconds,
            )
        except PhiflowError as error:
            raise RolloutError(f"Deployment {deployment.name} failed a probe: {error.message}") from error
        num_empty += not answer.text.strip()
        same += _agree(answer.text, sample["answer"])
    if num_empty == len(samples):
        raise RolloutError(
            f"Deployment {deployment.name} gave an empty answer to all {num_empty} probes.",
            fix="The model has learned to say nothing: train it longer, or look at the data.",
        )
    if same < limits.min_probe_match * len(samples):
        raise RolloutError(
            f"Deployment {deployment.name} gave the evaluated answer to {same} of {len(samples)} probes, "
            f"rollout.min_probe_match asks for {limits.min_probe_match:.0%}.",
            fix="The served model is not the evaluated one; look at its answers in the report.",
        )
    return TrafficSplit(
        endpoint=deployment.endpoint,
        percents=(),
        origin=Origin(reused=False, reason=f"{same} of {len(samples)} probes gave the evaluated answer"),
    )


def _agree(served: str, evaluated: str | None) -> bool:
    if evaluated is None:  # there is nothing to compare with
        return bool(served.strip())
    # Evaluation may have been cut at its own length limit, and in a long answer two nearly equal tokens
    # may change places between a batch and a single request; a wrong model differs from the first words on.
    served, evaluated = served.strip(), evaluated.strip()
    compared = min(len(served), len(evaluated), _COMPARED_CHARACTERS)
    return served[:compared] == evaluated[:compared] and bool(served) == bool(evaluated)


@step(cache_policy=NO_CACHE)
def shift_traffic(
    place: PlatformConfig,
    deployment: DeploymentRef,
    before: EndpointStatus,
    limits: RolloutConfig,
    result: TrainingResult,
) -> TrafficSplit:
    """Move traffic step by step, watching each; RolloutError says what was seen."""
    platform = connect(place)
    old = before.traffic.main
    if old == deployment.name and dict(before.traffic.percents)[old] == 100:
        reason = f"{deployment.name} has all of the traffic already"
        return TrafficSplit(
            endpoint=before.name,
            percents=before.traffic.percents,
            origin=Origin(reused=True, reason=reason),
        )
    split = before.traffic
    samples = platform.read_job_result(result.job)["samples"]
    for percent in limits.steps if old and old != deployment.name else (100,):
        require_not_frozen(platform, before.name)
        percents = {deployment.name: percent} | ({old: 100 - percent} if percent < 100 else {})
        split = platform.set_traffic(before.name, percents, f"rollout of {deployment.name}")
        log().info("Shifted traffic endpoint=%s %s", before.name, percents)
        if old and old != deployment.name:
            watch(platform, before.name, deployment.name, old, limits, samples)
    platform.record_rollout(before.name, None)
    return split


@step(cache_policy=NO_CACHE)
def retire_deployments(
    place: PlatformConfig, traffic: TrafficSplit, before: EndpointStatus, limits: RolloutConfig
) -> EndpointStatus:
    """Delete what neither serves nor is kept for roll-back; returns the endpoint as it is then."""
    platform = connect(place)
    status = platform.read_endpoint(traffic.endpoint)
    assert status is not None
    idle = [d.name for d in status.deployments if d.percent == 0]
    # The one that served just before is the roll-back target, whatever its version number.
    idle.sort(key=lambda name: name == before.traffic.main)
    retired = idle[: max(0, len(idle) - limits.keep_previous)]
    for name in retired:
        if delete_or_tell(platform, traffic.endpoint, name):
            log().info("Retired deployment=%s", name)
    return platform.read_endpoint(traffic.endpoint) or status
