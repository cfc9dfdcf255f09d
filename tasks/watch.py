"""One step of a rollout under watch: is the new deployment as healthy as the old one beside it?"""

from __future__ import annotations

import statistics
import time
from typing import Any

from tasks.config import RolloutConfig
from tasks.platforms.errors import PhiflowError, RolloutError
from tasks.platforms.port import Platform
from tasks.step import log

PROBE_INTERVAL_SECONDS = 0.5
# A long hold is for counters that come late, not for more questions, which cost where the endpoint does.
NUM_PROBES_A_HOLD = 60
MIN_METRIC_REQUESTS = 20
_MINUTE = 60
_SHORTEST_WINDOW_SECONDS = 10


def watch(
    platform: Platform,
    endpoint: str,
    new: str,
    old: str,
    limits: RolloutConfig,
    samples: list[dict[str, Any]],
) -> None:
    """Probe both deployments side by side for `hold_seconds`, then read the platform's own counters.

    Raises:
        RolloutError: the new one failed or was too slow; as soon as that is certain.
    """
    shifted_at = time.time()
    deadline = time.monotonic() + limits.hold_seconds
    interval = max(PROBE_INTERVAL_SECONDS, limits.hold_seconds / NUM_PROBES_A_HOLD)
    allowed = limits.max_error_percent / 100 * max(1.0, limits.hold_seconds / interval)
    seconds: dict[str, list[float]] = {new: [], old: []}
    errors = 0
    number = 0
    while number == 0 or (time.monotonic() < deadline and errors <= allowed):
        asked = samples[number % len(samples)] if samples else {"messages": [{"role": "user", "content": "Hello"}]}
        for name in (new, old):
            started = time.monotonic()
            try:
                platform.invoke(
                    endpoint,
                    asked["messages"],
                    tools=asked.get("tools", ()),
                    deployment=name,
                    timeout_seconds=limits.max_latency_seconds,
                )
                seconds[name].append(time.monotonic() - started)
            except PhiflowError as error:
                errors += name == new
                log().warning("Probe failed deployment=%s: %s", name, error.message)
        number += 1
        if errors <= allowed:
            time.sleep(min(interval, max(0.0, deadline - time.monotonic())))
    _require_healthy(new, number, errors, seconds[new], seconds[old], limits)
    _require_counters_healthy(platform, endpoint, new, shifted_at, limits)


def _require_counters_healthy(
    platform: Platform, endpoint: str, new: str, shifted_at: float, limits: RolloutConfig
) -> None:
    """Judge by what the platform counted since the shift, as far as it tells by now."""
    window = max(_SHORTEST_WINDOW_SECONDS, int(time.time() - shifted_at))
    try:
        counters = platform.read_metrics(endpoint, window)
    except PhiflowError as error:
        log().warning("The platform's counters were not read, so the run's own probes alone decided: %s", error.message)
        return
    if not any(_covers(counted.counted_until, shifted_at) for counted in counters):
        log().info(
            "The platform has counted no whole minute since the shift within rollout.hold_seconds %g, so the run's own "
            "probes alone decided",
            limits.hold_seconds,
        )
        return
    for counted in counters:
        share = 100.0 * counted.num_errors / max(1, counted.num_requests)
        if (
            counted.deployment == new
            and share > limits.max_error_percent
            and counted.num_requests >= MIN_METRIC_REQUESTS
        ):
            raise RolloutError(
                f"Deployment {new} failed {counted.num_errors} of {counted.num_requests} requests, "
                f"rollout.max_error_percent is {limits.max_error_percent:g}."
            )


def _covers(counted_until: float | None, shifted_at: float) -> bool:
    """Whether a whole minute after the shift is among what was counted; counters without a lag always count."""
    return counted_until is None or counted_until // _MINUTE * _MINUTE - _MINUTE >= shifted_at


def _require_healthy(
    new: str, number: int, errors: int, new_seconds: list[float], old_seconds: list[float], limits: RolloutConfig
) -> None:
    if 100.0 * errors / number > limits.max_error_percent:
        raise RolloutError(
            f"Deployment {new} failed {errors} of {number} probes, "
            f"rollout.max_error_percent is {limits.max_error_percent:g}."
        )
    p95 = _p95(new_seconds)
    if p95 > limits.max_latency_seconds:
        raise RolloutError(
            f"Deployment {new} answered in {p95:.2f} s (p95), "
            f"rollout.max_latency_seconds is {limits.max_latency_seconds:g}."
        )
    # Below a second or with few probes, a ratio of latencies is noise of this machine, not of the model.
    enough = len(new_seconds) >= 5 and len(old_seconds) >= 5 and p95 > 1.0
    if enough and p95 > limits.max_latency_ratio * _p95(old_seconds):
        raise RolloutError(
            f"Deployment {new} answered in {p95:.2f} s (p95), {p95 / _p95(old_seconds):.1f} times as long as "
            f"the old one; rollout.max_latency_ratio is {limits.max_latency_ratio:g}."
        )


def _p95(values: list[float]) -> float:
    return statistics.quantiles(values, n=20)[-1] if len(values) > 1 else max(values, default=0.0)
