"""What a run on Azure leaves that costs money by the hour, and how to end it; empty for a run on this machine."""

from __future__ import annotations

from tasks.config import PipelineConfig
from tasks.estimate.prices import Tier, hourly_cost, load_prices, monthly_cost
from tasks.estimate.ranges import dollars
from tasks.platforms.errors import ConfigError


def what_bills(config: PipelineConfig) -> list[str]:
    """One line for the endpoint and one for the cluster, each with the command that ends the bill."""
    if not config.is_remote:
        return []
    serving, compute = config.serving, config.compute
    nodes = f"{serving.instance_count} x {serving.instance_type}"
    price = _price(config, serving.instance_type, serving.instance_count)
    kept = f" ({config.rollout.keep_previous} kept for roll-back)" if config.rollout.keep_previous else ""
    lines = [
        f"Each deployment{kept} on endpoint {config.endpoint_name} bills {nodes} by the hour{price}, used or not. "
        "To end that, for the configuration last run: phiflow down --scope endpoint"
    ]
    if compute.min_instances:
        lines.append(
            f"The cluster keeps {compute.min_instances} node(s) of {compute.size} and bills them"
            f"{_price(config, compute.size, compute.min_instances, compute.tier)}; "
            "to end that: phiflow down --scope compute"
        )
    else:
        lines.append(f"The cluster's nodes go, and their bill with them, {compute.idle_seconds} s after the last job.")
    return lines


def _price(config: PipelineConfig, size: str, count: int, tier: Tier = "dedicated") -> str:
    try:
        hourly = hourly_cost(size, count, tier, load_prices(config))
    except ConfigError:  # what bills is said in any case, also when the price table was changed meanwhile
        hourly = None
    return "" if hourly is None else f" ({dollars(hourly)} an hour, {dollars(monthly_cost(hourly))} a month)"
