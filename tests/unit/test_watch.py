"""The watch over a step of a rollout: what fails a new deployment, and what is only noise."""

from __future__ import annotations

import time
from typing import Any

import pytest
from fakes import ENDPOINT, FakePlatform, broken

import tasks.watch
from tasks.config import RolloutConfig
from tasks.platforms.errors import PermissionDeniedError, RolloutError
from tasks.platforms.refs import DeploymentMetrics

OLD = "v1-16"
SAMPLE = {"messages": [{"role": "user", "content": "question 1"}]}


@pytest.fixture
def platform() -> FakePlatform:
    """An endpoint on which version 1 serves."""
    fake = FakePlatform()
    fake.serve(OLD, "1", 100)
    return fake


def watch(platform: FakePlatform, **limits: Any) -> None:
    """Watch version 2 beside version 1 once."""
    platform.serve("v2-16", "2", 0)
    tasks.watch.watch(platform, ENDPOINT, "v2-16", OLD, RolloutConfig(**{"hold_seconds": 0, **limits}), [SAMPLE])


def test_watch_asks_both_versions(platform: FakePlatform) -> None:
    """Both deployments are asked, and a failure of the old one does not fail the new one."""
    asked = []
    platform.answers = {OLD: broken, "v2-16": lambda question: asked.append(question) or "yes"}
    watch(platform)
    assert asked == ["question 1"]


def test_watch_lasts_as_long_as_configured(platform: FakePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is watched for hold_seconds, asking again and again."""
    monkeypatch.setattr(tasks.watch, "PROBE_INTERVAL_SECONDS", 0.01)
    asked = []
    platform.answers = {"v2-16": lambda question: asked.append(question) or "yes"}
    watch(platform, hold_seconds=0.2)
    assert len(asked) > 3


@pytest.mark.parametrize(("requests", "errors", "fails"), [(20, 1, True), (19, 19, False), (20, 0, False)])
def test_counters_of_the_platform_count_when_there_are_enough(
    platform: FakePlatform, requests: int, errors: int, fails: bool
) -> None:
    """The users' own failed requests fail the step, once there are enough to judge by."""
    platform.metrics = (
        DeploymentMetrics(deployment=OLD, num_requests=100, num_errors=100, p95_seconds=None),
        DeploymentMetrics(deployment="v2-16", num_requests=requests, num_errors=errors, p95_seconds=None),
    )
    if not fails:
        watch(platform)
        return
    with pytest.raises(RolloutError, match=f"failed {errors} of {requests} requests"):
        watch(platform)


def test_certain_failure_ends_the_watch(platform: FakePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once more probes have failed than the whole step may, the step has failed, however long it was to be held."""
    monkeypatch.setattr(tasks.watch, "PROBE_INTERVAL_SECONDS", 0.01)
    platform.answers = {"v2-16": broken}
    started = time.monotonic()
    with pytest.raises(RolloutError, match="failed 1 of 1 probes"):
        watch(platform, hold_seconds=60)
    assert time.monotonic() - started < 10
    with pytest.raises(RolloutError, match="failed 11 of 11 probes"):
        watch(platform, hold_seconds=1, max_error_percent=50 / 3)  # of the 60 probes of a long hold, 10 may fail


def test_long_hold_asks_no_more_than_a_short_one(platform: FakePlatform, monkeypatch: pytest.MonkeyPatch) -> None:
    """Probes are spread over the hold: waiting for late counters does not cost more answers."""
    monkeypatch.setattr(tasks.watch, "PROBE_INTERVAL_SECONDS", 0.001)
    monkeypatch.setattr(tasks.watch, "NUM_PROBES_A_HOLD", 5)
    asked = []
    platform.answers = {"v2-16": lambda question: asked.append(question) or "yes"}
    watch(platform, hold_seconds=0.5)
    assert 3 <= len(asked) <= 6


@pytest.mark.parametrize(("minutes_late", "judged"), [(0.0, False), (1.0, False), (1.99, True), (3.0, True)])
def test_late_counters_judge_only_what_they_have_seen(
    platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, minutes_late: float, judged: bool
) -> None:
    """Counters by the minute count when a whole minute after the shift is among them; else the probes alone do."""
    shifted = 1_790_000_000 // 60 * 60 + 1.0
    monkeypatch.setattr(tasks.watch.time, "time", lambda: shifted)
    until = shifted + 60 * minutes_late
    platform.metrics = (
        DeploymentMetrics(deployment="v2-16", num_requests=50, num_errors=50, p95_seconds=None, counted_until=until),
    )
    if not judged:
        watch(platform)
        return
    with pytest.raises(RolloutError, match="failed 50 of 50 requests"):
        watch(platform)


def test_unreadable_counters_leave_the_decision_to_the_probes(
    platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A platform that does not tell its counters, for want of a role for example, does not fail a healthy step."""

    def refused(endpoint: str, window_seconds: int) -> Any:
        raise PermissionDeniedError("The metrics were refused.")

    monkeypatch.setattr(platform, "read_metrics", refused)
    watch(platform)
    assert "The metrics were refused." in caplog.text


@pytest.mark.parametrize(
    ("errors", "new", "old", "said"),
    [
        (0, [0.1] * 9, [0.1] * 9, ""),
        (1, [0.1] * 9, [0.1] * 9, "failed 1 of 10 probes, rollout.max_error_percent is 5"),
        (0, [9.0] * 9, [9.0] * 9, "9.00 s (p95), rollout.max_latency_seconds is 5"),
        (0, [4.0] * 9, [1.0] * 9, "4.0 times as long as the old one; rollout.max_latency_ratio is 3"),
        (0, [0.9] * 9, [0.1] * 9, ""),
        (0, [4.0] * 4, [1.0] * 9, ""),
        (0, [4.0] * 9, [1.0] * 4, ""),
        (0, [2.9] * 9, [1.0] * 9, ""),
    ],
)
def test_health_by_errors_and_latency(errors: int, new: list[float], old: list[float], said: str) -> None:
    """Too many errors, too slow at all, or too slow beside the old one; never on few or fast answers."""
    limits = RolloutConfig(max_error_percent=5, max_latency_seconds=5, max_latency_ratio=3)
    if not said:
        tasks.watch._require_healthy("v2-16", 10, errors, new, old, limits)
        return
    with pytest.raises(RolloutError) as caught:
        tasks.watch._require_healthy("v2-16", 10, errors, new, old, limits)
    assert said in str(caught.value)
