"""What the gateway knows: the endpoints, read from their files as they change, and what it has counted."""

from __future__ import annotations

import bisect
import json
import logging
import re
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_URL = re.compile(r"http://[A-Za-z0-9.\[\]:-]+:\d+")
_REMEMBERED_REQUESTS = 20_000
# Upper bounds of the latency classes since the start, ms: each a tenth above the one before, to 20 minutes.
_BOUNDS = [1.1**step for step in range(148)]
_log = logging.getLogger("phiflow.gateway")


class UnreadableEndpointError(Exception):
    """An endpoint's files are there, and have never been valid since the gateway started."""


@dataclass(frozen=True, slots=True)
class Deployment:
    """Where one model server listens and which model version it serves."""

    url: str
    model_version: str


@dataclass(frozen=True, slots=True)
class Endpoint:
    """One endpoint as its files said when they were last valid.

    Attributes:
        traffic: deployment name to percentage; a deployment that is missing here has none.
    """

    name: str
    deployments: dict[str, Deployment]
    traffic: dict[str, int]
    key: str


def parse_endpoint(name: str, value: Any, key: str) -> Endpoint:
    """Validate an endpoint's file; keys that the gateway has no use for are ignored.

    Raises:
        ValueError: says what is wrong.
    """
    if not isinstance(value, dict) or not isinstance(value.get("deployments"), dict):
        raise ValueError("it has no object 'deployments'")
    if not key:
        raise ValueError("its key is missing or empty")
    deployments = {}
    for deployment, entry in value["deployments"].items():
        url = str(entry.get("url", "")).rstrip("/") if isinstance(entry, dict) else ""
        if not NAME.fullmatch(deployment) or not _URL.fullmatch(url):
            raise ValueError(f"deployment {deployment!r} has the url {url!r}")
        deployments[deployment] = Deployment(url, str(entry.get("model_version", "")))
    traffic = value.get("traffic") or {}
    for deployment, percent in traffic.items():
        if deployment not in deployments:
            raise ValueError(f"traffic goes to {deployment!r}, which is not a deployment")
        if isinstance(percent, bool) or not isinstance(percent, int) or not 0 <= percent <= 100:
            raise ValueError(f"the traffic of {deployment!r} is {percent!r}")
    return Endpoint(name, deployments, dict(traffic), key)


class EndpointBook:
    """The endpoints of a state folder; a change of their files counts from the next request on.

    Args:
        folder: holds `ENDPOINT/endpoint.json` and `ENDPOINT/key`.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[object, Endpoint | None]] = {}

    def names(self) -> list[str]:
        """Return the names of all endpoints."""
        return sorted(path.parent.name for path in self._folder.glob("*/endpoint.json"))

    def find(self, name: str) -> Endpoint | None:
        """Return an endpoint as it is now, None when there is none; the last valid state outlives a bad file.

        Raises:
            UnreadableEndpointError: its files have not been valid yet.
        """
        paths = self._folder / name / "endpoint.json", self._folder / name / "key"
        try:
            status = paths[0].stat()
        except OSError:
            self._read.pop(name, None)
            return None
        # The inode too: two atomic replacements within one tick of the clock differ in it.
        stamp = [(status.st_mtime_ns, status.st_ino, status.st_size)]
        if paths[1].exists():
            status = paths[1].stat()
            stamp.append((status.st_mtime_ns, status.st_ino, status.st_size))
        known = self._read.get(name)
        if known is None or known[0] != stamp:
            endpoint = known[1] if known else None
            try:
                key = paths[1].read_text(encoding="utf-8").strip() if len(stamp) > 1 else ""
                endpoint = parse_endpoint(name, json.loads(paths[0].read_text(encoding="utf-8")), key)
                _log.info("Read endpoint name=%s traffic=%s", name, endpoint.traffic)
            except (OSError, ValueError) as error:
                _log.warning("Ignored the new state of endpoint '%s': %s", name, error)
            known = self._read[name] = (stamp, endpoint)
        if known[1] is None:
            raise UnreadableEndpointError(name)
        return known[1]


@dataclass(slots=True)
class _Counted:
    requests: int = 0
    errors: int = 0
    classes: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS) + 1))
    recent: deque[tuple[float, float, bool]] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_REQUESTS))


class Counters:
    """Requests, errors and latencies by endpoint and deployment, since the gateway started."""

    def __init__(self) -> None:
        self._counted: dict[tuple[str, str], _Counted] = {}

    def add(self, endpoint: str, deployment: str, milliseconds: float, failed: bool) -> None:
        """Count one request that has ended."""
        counted = self._counted.setdefault((endpoint, deployment), _Counted())
        counted.requests += 1
        counted.errors += failed
        counted.classes[bisect.bisect_left(_BOUNDS, milliseconds)] += 1
        counted.recent.append((time.monotonic(), milliseconds, failed))

    def read(self, endpoint: str, deployment: str, seconds: float | None = None) -> dict[str, Any]:
        """Return the counts and latency percentiles, of the last seconds or since the start.

        Percentiles since the start are exact to a tenth; those of a window are exact.
        """
        counted = self._counted.get((endpoint, deployment), _Counted())
        if seconds is None:
            latencies = [self._class_percentile(counted.classes, share) for share in (0.50, 0.95, 0.99)]
            requests, errors = counted.requests, counted.errors
        else:
            since = time.monotonic() - seconds
            window = [(spent, failed) for ended, spent, failed in counted.recent if ended >= since]
            ordered = sorted(spent for spent, _ in window)
            latencies = [_percentile(ordered, share) for share in (0.50, 0.95, 0.99)]
            requests, errors = len(window), sum(failed for _, failed in window)
        names = ("p50", "p95", "p99")
        return {
            "requests": requests,
            "errors": errors,
            "latency_ms": dict(zip(names, latencies, strict=True)),
        }

    @staticmethod
    def _class_percentile(classes: list[int], share: float) -> float | None:
        total = sum(classes)
        seen = 0
        for bound, count in zip([*_BOUNDS, _BOUNDS[-1]], classes, strict=True):
            seen += count
            if count and seen >= share * total:
                return round(bound, 1)
        return None


def _percentile(ordered: list[float], share: float) -> float | None:
    """Return the nearest-rank percentile; None of nothing."""
    if not ordered:
        return None
    rank = -(-len(ordered) * share // 1)
    return round(ordered[int(rank) - 1], 1)
