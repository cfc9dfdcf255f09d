"""One step of a rollout under watch: is the new deployment as healthy as the old one beside it?"""

from __future__ import annotations

import statistics
import time

from tasks.config import RolloutConfig
from tasks.platforms.errors import PhiflowError, RolloutError
from tasks.platforms.port import Platform
from tasks.step import log

PROBE_INTERVAL_SECONDS = 0.5
MIN_METRIC_REQUESTS = 20


def watch(
    platform: Platform,
    endpoint: str,
    new: str,
    old: str,
    limits: RolloutConfig,
    prompts: list[list[dict[str, str]]],
) -> None:
    """Probe both deployments side by side for `hold_seconds`, and read the platform's own counters."""
    deadline = time.monotonic() + limits.hold_seconds
    seconds: dict[str, list[float]] = {new: [], old: []}
    errors = 0
    number = 0
    while number == 0 or time.monotonic() < deadline:
        prompt = prompts[number % len(prompts)] if prompts else [{"role": "user", "content": "Hello"}]
        for name in (new, old):
            started = time.monotonic()
            try:
                platform.invoke(endpoint, prompt, deployment=name, timeout_seconds=limits.max_latency_seconds)
                seconds[name].append(time.monotonic() - started)
            except PhiflowError as error:
                errors += name == new
                log().warning("Probe failed deployment=%s: %s", name, error.message)
        number += 1
        time.sleep(min(PROBE_INTERVAL_SECONDS, max(0.0, deadline - time.monotonic())))
    _require_healthy(new, number, errors, seconds[new], seconds[old], limits)
    for counted in platform.read_metrics(endpoint, max(10, int(limits.hold_seconds))):
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
