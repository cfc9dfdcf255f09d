"""`phiflow sweep`: what phiflow made and nobody uses, told with its cost, and deleted when told to."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from flows.running_costs import RunningCosts
from tasks.config import PipelineConfig
from tasks.platforms.connect import connect
from tasks.platforms.errors import ConflictError, NotFoundError, PhiflowError
from tasks.platforms.upkeep import Leftover, LeftoverKind


def sweep_place(config: PipelineConfig, *, delete: bool) -> dict[str, Any]:
    """Find what nobody uses, delete it when told to, and say of each thing what became of it."""
    platform, costs = connect(config.platform), RunningCosts(config)
    found, kept = _judge_jobs(config, platform.find_leftovers(config))
    told = []
    for leftover in found:
        cost = costs.of(leftover.kind, leftover.machines)
        told.append(
            {
                "kind": str(leftover.kind),
                "name": leftover.name,
                "reason": leftover.reason,
                "cost": str(cost) or leftover.cost,
                "dollars_an_hour": cost.hour,
                "outcome": _remove(config, leftover) if delete else "found",
            }
        )
    return {"delete": delete, "leftovers": told, "kept": kept, "total": _total(costs, found)}


def _remove(config: PipelineConfig, leftover: Leftover) -> str:
    """What became of one thing; one that cannot be deleted must not keep the others."""
    try:
        if leftover.kind == LeftoverKind.JOB and not _judge_jobs(config, (leftover,))[0]:
            return "kept: a run wants it again"
        connect(config.platform).remove_leftover(leftover)
    except ConflictError as error:
        return f"kept: {error}"
    except NotFoundError:
        return "deleted"
    except PhiflowError as error:
        return f"failed: {error}"
    return "deleted"


def _judge_jobs(config: PipelineConfig, leftovers: tuple[Leftover, ...]) -> tuple[list[Leftover], list[str]]:
    """Without the jobs that a run may still want; and a line for each that nobody here knows a run of."""
    jobs = [one for one in leftovers if one.kind == LeftoverKind.JOB]
    if not jobs:
        return list(leftovers), []
    from flows.run_command import point_at_prefect

    point_at_prefect(config)
    from flows.runs import ends_of_runs

    ends = ends_of_runs({run for job in jobs for run in job.runs})
    found, kept = [], []
    for leftover in leftovers:
        if leftover.kind != LeftoverKind.JOB:
            found.append(leftover)
            continue
        unknown = [run for run in leftover.runs if run not in ends]
        if unknown or not leftover.runs:
            run = f"run {unknown[0]}" if unknown else "any run"
            kept.append(
                f"Job {leftover.name} goes on; this Prefect server does not know {run}. phiflow cancel ends it."
            )
        elif judged := _with_end(leftover, [ends[run] for run in leftover.runs], config.retention.job_hours):
            found.append(judged)
    return found, kept


def _with_end(leftover: Leftover, ends: list[datetime | None], job_hours: float) -> Leftover | None:
    """The leftover with when its last run ended; None while a run goes on or has ended just now."""
    ended = [end for end in ends if end is not None]
    if len(ended) < len(ends):
        return None
    hours = (datetime.now(UTC) - max(ended)).total_seconds() / 3600
    if hours < job_hours:
        return None
    return replace(leftover, reason=f"{leftover.reason}; its last run ended {hours:.1f} h ago")


def _total(costs: RunningCosts, found: list[Leftover]) -> str:
    return costs.total([costs.of(one.kind, one.machines) for one in found])


def show_leftovers(told: dict[str, Any]) -> None:
    """One line a thing, with why and what it costs; then what became of it."""
    for leftover in told["leftovers"]:
        cost = f"; {leftover['cost']}" if leftover["cost"] else ""
        print(f"  {leftover['kind']:<12} {leftover['name']}: {leftover['reason']}{cost}")
        if told["delete"]:
            print(f"  {'':<12} {leftover['outcome']}")
    for line in told["kept"]:
        print(f"  {line}")
    if told["total"]:
        print(told["total"])
    if not told["leftovers"]:
        print("Nothing of phiflow's is unused.")
    elif not told["delete"]:
        print(f"{len(told['leftovers'])} found. Delete them with: phiflow sweep --delete")
