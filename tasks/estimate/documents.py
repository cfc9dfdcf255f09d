"""An estimate as a JSON document, and beside it what the run took."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from tasks.estimate.ranges import NOTHING

if TYPE_CHECKING:
    from tasks.estimate.estimate import RunEstimate


def estimate_document(estimate: RunEstimate) -> dict[str, Any]:
    """Everything that the estimate says; ranges are `low` and `high`, times in seconds, sizes in bytes."""
    told = asdict(estimate)
    shape, memory = estimate.shape, estimate.memory
    told["shape"] = (asdict(shape) | {"num_parameters": shape.num_parameters}) if shape else None
    told["memory"] = (asdict(memory) | {"total": asdict(memory.total)}) if memory else None
    monthly = sum((bill.monthly for bill in estimate.bills if bill.monthly), start=NOTHING)
    return told | {"dollars_an_hour_after": estimate.dollars_an_hour_after, "dollars_a_month_after": asdict(monthly)}
