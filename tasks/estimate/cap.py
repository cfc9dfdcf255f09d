"""The cost cap: it stops a run that may cost more before its job is submitted, and ends a job that would."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.estimate.prices import load_prices
from tasks.estimate.ranges import dollars
from tasks.platforms.errors import GateRefusedError

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.estimate.estimate import RunEstimate


def require_within_cap(config: PipelineConfig, estimate: RunEstimate) -> None:
    """Refuse a run that may cost more than `cost.max_run`; on this machine nothing costs.

    Raises:
        GateRefusedError: the high end is above the cap, or a price is missing; one line says what to change.
    """
    cap = config.cost.max_run
    if cap is None or not config.is_remote:
        return
    if estimate.dollars is None:
        sizes = ", ".join(estimate.unpriced)
        entry = ", ".join(f'"{size}": {{"{config.compute.tier}": DOLLARS_AN_HOUR}}' for size in estimate.unpriced)
        table = config.cost.prices or "a price table that cost.prices names"
        raise GateRefusedError(
            f"cost.max_run is {cap:g} dollars, but no price is known of {sizes}, so the run is not begun.",
            fix=f'Add {entry} to "sizes" in {table}, or run: phiflow plan --refresh-prices',
        )
    if estimate.dollars.high > cap:
        raise GateRefusedError(
            f"The run may cost {dollars(estimate.dollars)}, and cost.max_run is {cap:g}, so it is not begun.",
            fix="Raise cost.max_run, lower train.num_train_epochs, or set another compute.size; phiflow plan shows "
            "what costs.",
        )


def job_timeout_seconds(config: PipelineConfig) -> int:
    """The training job's limit: `compute.timeout_seconds`, or sooner what `cost.max_run` buys of its nodes."""
    limit, cap = config.compute.timeout_seconds, config.cost.max_run
    if cap is None or not config.is_remote:
        return limit
    hourly = load_prices(config).machine(config.compute.size).hourly(config.compute.tier)
    if not hourly:
        return limit
    return max(60, min(limit, int(cap / (hourly * config.compute.num_nodes) * 3600)))
