"""Which deployments a sweep finds, from who serves, what serves, and since when: the rule alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasks.platforms.refs import RolloutRecord
from tasks.platforms.retention import Served, last_traffic, parse_time, shown_bytes, shown_hours, unused

NOW = datetime.now(UTC)


def ago(hours: float) -> datetime:
    """A moment in the past."""
    return NOW - timedelta(hours=hours)


def served(name: str, percent: int = 0, hours: float = 100, usable: bool = True) -> Served:
    """A deployment without traffic for so long."""
    return Served(name=name, percent=percent, usable=usable, since=ago(hours))


def names(found: tuple[Served, ...]) -> list[str]:
    """Their names."""
    return [one.name for one in found]


@pytest.mark.parametrize(
    ("deployments", "keep_previous", "expected"),
    [
        ([served("old"), served("before", hours=60), served("now", 100)], 1, ["old"]),
        ([served("old"), served("before", hours=60), served("now", 100)], 2, []),
        ([served("old"), served("before", hours=60), served("now", 100)], 0, ["old", "before"]),
        ([served("old", hours=10), served("before", hours=5), served("now", 100)], 0, []),
        ([served("served-last", hours=30), served("newer-never-served"), served("now", 100)], 1, []),
        ([served("before"), served("rejected", hours=30, usable=False), served("now", 100)], 1, ["rejected"]),
        ([served("alone")], 1, []),
        ([served("alone")], 0, ["alone"]),
        ([], 1, []),
    ],
)
def test_what_serves_or_may_be_rolled_back_to_is_kept(
    deployments: list[Served], keep_previous: int, expected: list[str]
) -> None:
    """Kept are the newest without traffic, the one that served last, and what has had its soak not yet."""
    assert names(unused(deployments, None, keep_previous, 24)) == expected


def test_rollout_in_progress_keeps_its_candidate_and_what_it_would_restore() -> None:
    """The candidate has no traffic yet, and the version before may have none any more; both are needed."""
    rollout = RolloutRecord(run_id="r", candidate="new", traffic_before=(("before", 100),))
    deployments = [served("old"), served("before"), served("new")]
    assert names(unused(deployments, rollout, 0, 24)) == ["old"]


def test_idle_time_counts_from_the_last_line_with_traffic() -> None:
    """The history says when a deployment lost its traffic; where it does not, the endpoint's last change does."""
    made, changed = ago(90), ago(3)
    history = [f"{ago(80).isoformat()} a=100% (first)", f"{ago(50).isoformat()} a=10% b=90% (b=1% (not this))"]
    moved = [*history, f"{ago(40).isoformat()} b=100% (rollout of b)"]
    assert last_traffic("a", made, changed, moved) == ago(40)
    assert last_traffic("a", made, changed, history) == changed
    assert last_traffic("c", made, changed, moved) == made
    assert last_traffic("c", made, changed, []) == made


@pytest.mark.parametrize(
    "text",
    ["2026-11-21T12:00:00.1234560+00:00", "2026-11-21T12:00:00Z", "2026-11-21T12:00:00", "2026-11-21T12:00:00+00:00"],
)
def test_moments_are_read_as_the_service_writes_them(text: str) -> None:
    """Seven digits of a second, Z, and no zone at all are UTC."""
    assert parse_time(text).replace(microsecond=0) == datetime(2026, 11, 21, 12, tzinfo=UTC)


def test_ages_and_sizes_are_for_people() -> None:
    """A unit that fits."""
    now = datetime.now(UTC)
    shown: list[Any] = [shown_hours(now - timedelta(hours=hours)) for hours in (0.5, 30.1, 100)]
    assert shown == ["30 min", "30 h", "4 days"]
    assert [shown_bytes(12), shown_bytes(3_400_000), shown_bytes(7_640_000_000)] == ["12 bytes", "3 MB", "7.6 GB"]
