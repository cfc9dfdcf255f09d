"""What things cost while they are there, for lists of what is deleted and left: by the hour, or by the month."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tasks.config import PipelineConfig
from tasks.estimate.prices import hourly_cost, load_prices, monthly_cost, standing_costs

# What a resource is called in a list, where the price table calls it otherwise.
_SAME = {"Cosmos DB account": "Cosmos DB"}


@dataclass(frozen=True)
class RunningCost:
    """Dollars; None where no price is known, 0 where it costs nothing by itself."""

    hour: float | None = 0.0
    month_low: float = 0.0
    month_high: float = 0.0
    why: str = ""

    def __str__(self) -> str:
        if self.hour is None:
            return f"bills by the hour, no price known ({self.why})"
        if self.hour:
            return f"{self.hour:.2f} dollars an hour ({self.why})"
        if self.month_high:
            return f"{self.month_low:.2f} to {self.month_high:.2f} dollars a month ({self.why})"
        return ""


class RunningCosts:
    """The prices of one configuration, looked up once."""

    def __init__(self, config: PipelineConfig) -> None:
        self._prices = load_prices(config)
        self._standing = {cost.name: cost for cost in standing_costs(config, self._prices)}
        self.about = self._prices.about()

    def of(self, kind: str, machines: Sequence[str]) -> RunningCost:
        """What a thing of this kind, with these machines, costs."""
        if machines:
            counts = {size: machines.count(size) for size in dict.fromkeys(machines)}
            why = ", ".join(f"{count} x {size or 'unknown size'}" for size, count in counts.items())
            hours = [hourly_cost(size, count, prices=self._prices) for size, count in counts.items()]
            known = [hour for hour in hours if hour is not None]
            return RunningCost(hour=sum(known) if len(known) == len(hours) else None, why=why)
        standing = self._standing.get(_SAME.get(kind, kind))
        if standing is None:
            return RunningCost()
        return RunningCost(month_low=standing.low, month_high=standing.high, why=standing.why)

    def total(self, costs: Sequence[RunningCost]) -> str:
        """The sum of what bills, in one sentence; empty when nothing does."""
        hour = sum(cost.hour or 0 for cost in costs)
        low, high = (sum(getattr(cost, name) for cost in costs) for name in ("month_low", "month_high"))
        if not hour and not high and all(cost.hour is not None for cost in costs):
            return ""
        told = [f"{hour:.2f} dollars an hour ({monthly_cost(hour):.0f} a month)"] if hour else []
        told += [f"{low:.2f} to {high:.2f} dollars a month"] if high else []
        told += ["what has no known price"] if any(cost.hour is None for cost in costs) else []
        return f"Together {' and '.join(told)}, by {self.about}."
