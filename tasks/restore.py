"""The way back from a rollout: its traffic and its candidate, by the run itself, by the next one, or by a hook.

Plain functions, no tasks: a run that is being cancelled starts no more of them, and a hook has no run.
"""

from __future__ import annotations

from prefect.runtime import flow_run

from tasks.config import PlatformConfig
from tasks.platforms.connect import connect
from tasks.platforms.errors import PhiflowError, RolloutError
from tasks.platforms.port import Platform
from tasks.platforms.refs import EndpointStatus
from tasks.step import log


def undo_recorded_rollout(platform: Platform, endpoint: str, run_id: str = "") -> bool:
    """Give traffic back as the record of an unfinished rollout says; the caller holds the lease or the record."""
    status = platform.read_endpoint(endpoint)
    if status is None or status.rollout is None or (run_id and status.rollout.run_id != run_id):
        return False
    if dict(status.traffic.percents).get(status.rollout.candidate, 0) > 0:
        before = {name: percent for name, percent in status.rollout.traffic_before if percent}
        platform.set_traffic(endpoint, before, f"undid the unfinished rollout of {status.rollout.candidate}")
        log().warning("Restored traffic endpoint=%s after an unfinished rollout", endpoint)
    platform.record_rollout(endpoint, None)
    tell_cost(status, status.rollout.candidate)
    return True


def restore_traffic(place: PlatformConfig, before: EndpointStatus, error: BaseException) -> None:
    """Put the traffic back, and take the candidate away, since it failed or nobody watches it any more."""
    platform = connect(place)
    now = platform.read_endpoint(before.name)
    # A run that lent its lease may have been overtaken: another's rollout is not its to undo.
    if now is None or now.rollout is None or now.rollout.run_id != str(flow_run.id):
        return
    candidate = now.rollout.candidate
    if dict(now.traffic.percents).get(candidate, 0) > 0:
        what = error.message if isinstance(error, PhiflowError) else type(error).__name__
        try:
            platform.set_traffic(before.name, {n: p for n, p in before.traffic.percents if p}, f"restored: {what}")
        except PhiflowError as failure:
            raise RolloutError(
                f"{what} And the traffic of {before.name} could not be put back: {failure.message}",
                fix=f"The next run puts it back, or: phiflow roll-back. {failure.fix}".strip(),
            ) from failure
    log().warning("Restored traffic endpoint=%s percents=%s", before.name, dict(before.traffic.percents))
    platform.record_rollout(before.name, None)
    # What has served is a target for roll-back and stays; what a killed run left without ever serving is nobody's.
    was_ready = candidate in {deployment.name for deployment in before.deployments if deployment.state == "ready"}
    if was_ready and has_served(before, candidate):
        tell_cost(now, candidate)
    else:
        delete_or_tell(platform, before.name, candidate)


def has_served(status: EndpointStatus, deployment: str) -> bool:
    """Whether it ever had traffic: what only waited, to be probed or approved, is nothing to go back to."""
    return any(f" {deployment}=" in line for line in status.history)


def tell_cost(status: EndpointStatus, deployment: str) -> None:
    """Say of a deployment that stays what it costs, where it costs anything."""
    left = next((d for d in status.deployments if d.name == deployment and d.cost), None)
    if left:
        log().warning("Left deployment=%s; the next rollout adopts or retires it. %s", left.name, left.cost)


def delete_or_tell(platform: Platform, endpoint: str, deployment: str) -> bool:
    """Delete a deployment that nobody needs; when that fails, say what is left, since more important things go on."""
    try:
        platform.delete_deployment(endpoint, deployment)
    except PhiflowError as error:
        log().warning("Could not delete deployment=%s: %s", deployment, error)
        return False
    return True
