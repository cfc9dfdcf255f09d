"""What is made of Azure Monitor's answers: counts by deployment, faults apart from bad requests, and up to when."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.platforms.azure import metrics

NOON = 1_790_000_000 // 60 * 60


def series(metric: str, dimensions: dict[str, str], *values: float | None) -> dict[str, Any]:
    """A metric's answer with one series, from noon on, a value a minute."""
    points = [
        {"timeStamp": metrics._iso(NOON + 60 * minute), **({} if value is None else {"average": value})}
        for minute, value in enumerate(values)
    ]
    names = [{"name": {"value": name}, "value": value} for name, value in dimensions.items()]
    return {"name": {"value": metric}, "timeseries": [{"metadatavalues": names, "data": points}]}


def requests(deployment: str, status: str, model: str, *values: float | None) -> dict[str, Any]:
    """Requests a minute by deployment and status."""
    dimensions = {"deployment": deployment, "statuscode": status, "modelstatuscode": model}
    return series("RequestsPerMinute", dimensions, *values)


class Monitor:
    """A workspace that answers queries of metrics, and remembers them."""

    resource_id = "/workspace"

    def __init__(self, *told: dict[str, Any]) -> None:
        self.told = told
        self.asked: list[dict[str, str]] = []

    def send(self, method: str, url: str, *, params: dict[str, str], what: str) -> Any:
        assert url.endswith("/onlineEndpoints/support/providers/Microsoft.Insights/metrics")
        self.asked.append(params)
        value = [one for one in self.told if one["name"]["value"] == params["metricnames"]]
        return SimpleNamespace(json=lambda: {"value": value})


def read(monkeypatch: pytest.MonkeyPatch, monitor: Any, window: int, now: float) -> dict[str, Any]:
    """The metrics by deployment, as told at a moment."""
    monkeypatch.setattr(metrics.time, "time", lambda: now)
    return {one.deployment: one for one in metrics.read_metrics(monitor, "support", window)}


def test_requests_are_summed_by_deployment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Minutes and statuses add up; of the latencies the worst minute counts, in seconds."""
    monitor = Monitor(
        requests("v1", "200", "200", 5, None, 7),
        requests("v2", "200", "200", 1, 2, 3),
        requests("v2", "424", "500", None, 2, None),
        series("RequestLatency_P95", {"deployment": "v2"}, 100.0, 2500.0, 300.0),
    )
    told = read(monkeypatch, monitor, 300, NOON + 290)
    assert (told["v1"].num_requests, told["v1"].num_errors, told["v1"].p95_seconds) == (12, 0, None)
    assert (told["v2"].num_requests, told["v2"].num_errors, told["v2"].p95_seconds) == (8, 2, 2.5)


@pytest.mark.parametrize(
    ("status", "model", "error"),
    [
        ("200", "200", False),
        ("400", "0", False),
        ("401", "0", False),
        ("424", "400", False),
        ("424", "422", False),
        ("424", "429", True),
        ("424", "500", True),
        ("424", "0", True),
        ("408", "0", True),
        ("429", "0", True),
        ("503", "0", True),
    ],
)
def test_only_faults_of_model_and_service_are_errors(
    monkeypatch: pytest.MonkeyPatch, status: str, model: str, error: bool
) -> None:
    """What a sender did wrong does not count against a deployment."""
    told = read(monkeypatch, Monitor(requests("v1", status, model, 4)), 300, NOON + 200)
    assert told["v1"].num_errors == (4 if error else 0)


def test_counters_say_how_far_they_go(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to the end of the last minute that anything is known of, and never beyond now."""
    monitor = Monitor(requests("v1", "200", "200", 5, None, None), requests("v2", "200", "200", None, 1, None))
    assert {one.counted_until for one in read(monkeypatch, monitor, 300, NOON + 290).values()} == {NOON + 120}
    assert {one.counted_until for one in read(monkeypatch, monitor, 80, NOON + 75).values()} == {NOON + 75}


def test_only_whole_minutes_within_the_window_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The query begins at the first minute that lies within the window; without one nothing is asked."""
    monitor = Monitor()
    assert read(monkeypatch, monitor, 100, NOON + 130) == {}
    assert monitor.asked[0]["timespan"] == f"{metrics._iso(NOON + 60)}/{metrics._iso(NOON + 130)}"
    assert monitor.asked[0]["$filter"] == "deployment eq '*' and statusCode eq '*' and modelStatusCode eq '*'"
    assert int(monitor.asked[0]["top"]) > 10  # which is what the service gives when it is not told
    monitor.asked.clear()
    assert read(monkeypatch, monitor, 20, NOON + 50) == {}
    assert monitor.asked == []
