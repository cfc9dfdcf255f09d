"""What a run on Azure leaves that costs money by the hour, and how to end it; empty for a run on this machine."""

from __future__ import annotations

from tasks.config import PipelineConfig


def what_bills(config: PipelineConfig) -> list[str]:
    """One line for the endpoint and one for the cluster, each with the command that ends the bill."""
    place = config.platform
    if place.kind == "local":
        return []
    where = f"--resource-group {place.resource_group} --workspace-name {place.workspace}"
    serving, compute = config.serving, config.compute
    nodes = f"{serving.instance_count} x {serving.instance_type}"
    kept = f" ({config.rollout.keep_previous} kept for roll-back)" if config.rollout.keep_previous else ""
    lines = [
        f"Each deployment{kept} bills {nodes} by the hour, used or not. To end that: "
        f"az ml online-endpoint delete --yes --name {config.endpoint_name} {where}"
    ]
    if compute.min_instances:
        lines.append(
            f"The cluster keeps {compute.min_instances} node(s) of {compute.size} and bills them; "
            "compute.min_instances 0 lets all go."
        )
    else:
        lines.append(f"The cluster's nodes go, and their bill with them, {compute.idle_seconds} s after the last job.")
    return lines
