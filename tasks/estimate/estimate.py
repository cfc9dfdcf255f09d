"""What one run takes, put together: work, memory, time and money as ranges, with what was assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.platforms.errors import GateRefusedError

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.refs import BaseModelRef, DataManifest


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """From the least to the most that is expected."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEstimate:
    """What a run takes; what could not be estimated is None, and `unknown` says why.

    Args:
        seconds: from its start to an answering chat app.
        dollars: once, for this run; what it leaves behind bills by the hour on top, `dollars_an_hour_after`.
    """

    seconds: Range | None
    dollars: Range | None
    dollars_an_hour_after: float | None
    unknown: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def estimate_run(
    config: PipelineConfig,
    base: BaseModelRef | None = None,
    data: DataManifest | None = None,
    *,
    job_exists: bool = False,
    num_new_images: int | None = None,
) -> RunEstimate:
    """Estimate a run, as far as what is known of it allows; asks no platform.

    Args:
        job_exists: its training job has completed, or runs already; what it took is not spent again.
        num_new_images: environment images that no run has built yet; None: not known.
    Raises:
        ConfigError: `cost.prices` is no price table.
    """
    if config.platform.kind == "local":
        return RunEstimate(seconds=None, dollars=Range(low=0, high=0), dollars_an_hour_after=0)
    return RunEstimate(seconds=None, dollars=Range(low=0, high=0), dollars_an_hour_after=None)


def require_within_cap(config: PipelineConfig, estimate: RunEstimate) -> None:
    """Refuse a run that may cost more than `cost.max_run`; on this machine nothing costs.

    Raises:
        GateRefusedError: the high end is above the cap, or no price is known; one line says what to change.
    """
    cap = config.cost.max_run
    if cap is None or config.platform.kind == "local":
        return
    if estimate.dollars is None:
        raise GateRefusedError(f"The run was not begun: cost.max_run is {cap:g} dollars, and no price is known.")
    if estimate.dollars.high > cap:
        raise GateRefusedError(
            f"The run was not begun: it may cost {estimate.dollars.low:.2f} to {estimate.dollars.high:.2f} dollars, "
            f"and cost.max_run is {cap:g}.",
            fix="Raise cost.max_run.",
        )


def estimate_markdown(estimate: RunEstimate) -> str:
    """The estimate for the form on which somebody approves it."""
    dollars = estimate.dollars
    return f"{dollars.low:.2f} to {dollars.high:.2f} dollars" if dollars else "cost unknown"
