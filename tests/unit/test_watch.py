"""The watch over a step of a rollout: what fails a new deployment, and what is only noise."""

from __future__ import annotations

from typing import Any

import pytest
from fakes import ENDPOINT, FakePlatform, broken

import tasks.watch
from tasks.config import RolloutConfig
from tasks.platforms.errors import RolloutError
from tasks.platforms.refs import DeploymentMetrics

OLD = "v1-16"
PROMPT = [{"role": "user", "content": "question 1"}]


@pytest.fixture
def platform() -> FakePlatform:
    """An endpoint on which version 1 serves."""
    fake = FakePlatform()
    fake.serve(OLD, "1", 100)
    return fake


def watch(platform: FakePlatform, **limits: Any) -> None:
    """Watch version 2 beside version 1 once."""
    platform.serve("v2-16", "2", 0)
    tasks.watch.watch(platform, ENDPOINT, "v2-16", OLD, RolloutConfig(**{"hold_seconds": 0, **limits}), [PROMPT])


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
