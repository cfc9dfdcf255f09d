"""What goes on billing after a run: machines by the hour, what `phiflow up` made by the month, what the run stored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.estimate.duration import checkpoint_bytes
from tasks.estimate.prices import Prices, monthly_cost, standing_costs
from tasks.estimate.ranges import Range, exactly, gigabytes

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.estimate.model_shapes import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """One thing that bills while it is there.

    Args:
        hourly: dollars of what is paid by the hour, used or not; None where no price is known, 0 for what is not.
        monthly: dollars a month of 730 hours.
        ends: what ends it.
    """

    name: str
    hourly: float | None
    monthly: Range | None
    why: str
    ends: str


def bills_after(config: PipelineConfig, shape: ModelShape | None, prices: Prices) -> tuple[Bill, ...]:
    """What bills once the run is over; nothing on this machine."""
    if not config.is_remote:
        return ()
    return (*_machines(config, prices), *_stored(config, shape, prices), *_standing(config, prices))


def _machines(config: PipelineConfig, prices: Prices) -> list[Bill]:
    serving, compute = config.serving, config.compute
    price = prices.machine(serving.instance_type).hourly("dedicated")
    count = serving.instance_count
    told = [_hourly("deployment", count, serving.instance_type, price, "phiflow down --scope endpoint")]
    if config.rollout.keep_previous:
        kept = _hourly("kept for roll-back", count, serving.instance_type, price, "rollout.keep_previous 0")
        many = "from the second version on"
        if config.rollout.keep_previous > 1:
            many += f", each of up to {config.rollout.keep_previous}"
        told.append(
            Bill(name=kept.name, hourly=0, monthly=_upto(kept.monthly), why=f"{kept.why}, {many}", ends=kept.ends)
        )
    if compute.min_instances:
        price = prices.machine(compute.size).hourly(compute.tier)
        told.append(_hourly("cluster", compute.min_instances, compute.size, price, "compute.min_instances 0"))
    return told


def _hourly(name: str, count: int, size: str, price: float | None, ends: str) -> Bill:
    hourly = None if price is None else price * count
    why = f"{count} x {size}" + (f" at {price:g} an hour" if price is not None else ", of which no price is known")
    monthly = None if hourly is None else exactly(monthly_cost(hourly))
    return Bill(name=name, hourly=hourly, monthly=monthly, why=why, ends=ends)


def _stored(config: PipelineConfig, shape: ModelShape | None, prices: Prices) -> list[Bill]:
    if shape is None:
        return []
    kept = config.train.save_total_limit * checkpoint_bytes(config, shape)
    model = 2.0 * shape.num_parameters
    gb = prices.standing("storage_gb_month")
    return [
        Bill(
            name="what the run stores",
            hourly=0,
            monthly=Range(low=model / 1e9 * gb, high=(model + kept) / 1e9 * gb),
            why=f"a model of {gigabytes(model)}, up to {config.train.save_total_limit} checkpoints of "
            f"{gigabytes(checkpoint_bytes(config, shape))}, at {gb:g} a GB and month",
            ends="phiflow sweep --delete",
        )
    ]


def _standing(config: PipelineConfig, prices: Prices) -> list[Bill]:
    return [
        Bill(
            name=cost.name,
            hourly=0,
            monthly=Range(low=cost.low, high=cost.high),
            why=cost.why,
            ends="phiflow down --scope all",
        )
        for cost in standing_costs(config, prices)
    ]


def _upto(monthly: Range | None) -> Range | None:
    return None if monthly is None else Range(low=0, high=monthly.high)
