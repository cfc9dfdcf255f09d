"""Which deployments nobody uses any more, and how long: the same answer on every platform. No I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tasks.platforms.refs import RolloutRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """One deployment of an endpoint, as far as it matters whether it is still wanted.

    Args:
        usable: traffic could go back to it: it is ready and its version was not rejected.
        since: when it last had traffic, or was made.
    """

    name: str
    percent: int
    usable: bool
    since: datetime


def last_traffic(name: str, made: datetime, changed: datetime, history: Sequence[str]) -> datetime:
    """When a deployment without traffic last had some, by the lines that `set_traffic` keeps; else when it was made.

    Args:
        changed: when the endpoint was last changed, which counts where the lines do not know of the end.
    """
    last, had = made, False
    for line in history:
        moment, _, told = line.partition(" ")
        has = any(part.partition("=")[0] == name for part in told.partition(" (")[0].split())
        if has or had:
            last = max(last, parse_time(moment))
        had = has
    return max(last, changed) if had else last


def unused(
    deployments: Sequence[Served], rollout: RolloutRecord | None, keep_previous: int, soak_hours: float
) -> tuple[Served, ...]:
    """Those without traffic for longer than the soak that are neither kept for roll-back nor in a rollout.

    Args:
        deployments: all of one endpoint, the oldest first.
    """
    idle = [one for one in deployments if not one.percent]
    usable = [one for one in idle if one.usable]
    kept = set()
    if keep_previous:
        newest = max(usable, key=lambda one: one.since, default=None)
        kept = {one.name for one in usable[-keep_previous:]} | ({newest.name} if newest else set())
    if rollout:
        kept |= {rollout.candidate, *(name for name, _ in rollout.traffic_before)}
    return tuple(one for one in idle if one.name not in kept and hours_since(one.since) >= soak_hours)


def parse_time(text: str) -> datetime:
    """A moment as a service or a record writes it; without a zone it is UTC."""
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def hours_since(moment: datetime) -> float:
    """Hours from then to now."""
    return (datetime.now(UTC) - moment) / timedelta(hours=1)


def shown_hours(moment: datetime) -> str:
    """How long ago, for people: minutes, hours or days."""
    hours = hours_since(moment)
    if hours < 1:
        return f"{max(hours, 0) * 60:.0f} min"
    return f"{hours:.0f} h" if hours < 48 else f"{hours / 24:.0f} days"


def shown_bytes(num_bytes: int) -> str:
    """A size for people."""
    size = float(num_bytes)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
