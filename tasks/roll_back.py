"""A person takes a version back: its traffic goes to the one before, and it is rejected for good."""

from __future__ import annotations

from tasks.config import PipelineConfig
from tasks.platforms.connect import connect
from tasks.platforms.errors import RolloutError
from tasks.platforms.refs import TrafficSplit
from tasks.restore import has_served
from tasks.step import log


def roll_back(config: PipelineConfig, reason: str, to_version: str = "") -> TrafficSplit:
    """Give all traffic to the previous deployment and mark the version that had it as rejected."""
    platform = connect(config.platform)
    name = config.endpoint_name
    with platform.lease_endpoint(name, "roll-back", 30):
        status = platform.read_endpoint(name)
        if status is None or not status.traffic.main:
            raise RolloutError(f"Endpoint {name} serves nothing that could be rolled back.")
        current = next(d for d in status.deployments if d.name == status.traffic.main)
        others = [
            d
            for d in status.deployments
            if d.name != current.name
            and d.model_version
            and (d.model_version == to_version if to_version else has_served(status, d.name))
        ]
        others = [d for d in others if not platform.read_model(config.model_name, d.model_version).rejected]
        if not others:
            wanted = f"version {to_version}" if to_version else "an earlier version"
            raise RolloutError(
                f"Endpoint {name} has no deployment of {wanted} to roll back to.",
                fix=f"It has {', '.join(d.name for d in status.deployments)}.",
            )
        target = others[-1]
        if target.state != "ready":
            raise RolloutError(f"Deployment {target.name} is {target.state}, not ready.", fix=target.error)
        if current.model_version and target.model_version != current.model_version:
            platform.reject_model(platform.read_model(config.model_name, current.model_version), reason)
        split = platform.set_traffic(name, {target.name: 100}, f"rolled back: {reason}")
        platform.record_rollout(name, None)  # a person's decision is not undone by the next run
        if current.cost:
            log().warning(
                "Left deployment=%s without traffic; the next rollout retires it. %s", current.name, current.cost
            )
        return split
