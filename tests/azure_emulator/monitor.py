"""Azure Monitor for endpoints: what was counted at scoring, by the minute, told some seconds late.

The metrics, their one aggregation (Average) and their dimensions are those that Microsoft lists for
Microsoft.MachineLearningServices/workspaces/onlineEndpoints.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

_MINUTE = 60
_SHARES = {
    "RequestLatency": None,
    "RequestLatency_P50": 0.50,
    "RequestLatency_P90": 0.90,
    "RequestLatency_P95": 0.95,
    "RequestLatency_P99": 0.99,
}
_REQUEST_DIMENSIONS = ("deployment", "statusCode", "statusCodeClass", "modelStatusCode")
_CONDITION = re.compile(r"(\w+)\s+eq\s+'([^']*)'", re.IGNORECASE)
_INTERVAL = re.compile(r"PT(\d+)([MH])")
_KEPT_SECONDS = 6 * 3600.0


class BadQueryError(Exception):
    """A query that Azure Monitor refuses, with the reason."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request to an endpoint that has been answered."""

    endpoint: str
    deployment: str
    status: int
    model_status: int
    milliseconds: float
    ended: float

    def dimension(self, name: str) -> str:
        """The value of one of the dimensions."""
        return {
            "deployment": self.deployment,
            "statusCode": str(self.status),
            "statusCodeClass": f"{self.status // 100}xx",
            "modelStatusCode": str(self.model_status),
        }[name]


class Monitor:
    """What has been counted for all endpoints of one emulator; kept in a file, so that a restart loses nothing.

    Args:
        lag_seconds: how old a request is before it shows.
    """

    def __init__(self, file: Path, lag_seconds: float) -> None:
        self._file = file
        self._lag_seconds = lag_seconds
        self._lock = threading.Lock()
        self._requests: list[Request] = []
        if file.exists():
            for line in file.read_text(encoding="utf-8").splitlines():
                try:
                    self._requests.append(Request(**json.loads(line)))
                except (ValueError, TypeError):  # the last line of a killed emulator
                    continue

    def count(self, request: Request) -> None:
        """Remember one request."""
        with self._lock:
            self._requests.append(request)
            fields = {name: getattr(request, name) for name in Request.__slots__}
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(fields) + "\n")
            if self._requests[0].ended < time.time() - 2 * _KEPT_SECONDS:
                self._requests = [one for one in self._requests if one.ended > time.time() - _KEPT_SECONDS]

    def read(self, endpoint: str, resource_id: str, region: str, query: Mapping[str, str]) -> dict[str, Any]:
        """Answer a query of the metrics route.

        Raises:
            BadQueryError: an unknown metric, dimension or aggregation.
        """
        start, end = _span(query.get("timespan", ""))
        grain = _seconds(query.get("interval", "PT1M"))
        names = [name for name in query.get("metricnames", "").split(",") if name]
        if query.get("aggregation", "Average").lower() != "average":
            raise BadQueryError(f"Aggregation {query['aggregation']} is not supported; supported: Average.")
        shown = time.time() - self._lag_seconds
        with self._lock:
            seen = [r for r in self._requests if r.endpoint == endpoint and start <= r.ended < end and r.ended <= shown]
        conditions = _CONDITION.findall(query.get("$filter", ""))
        moments = range(int(start // grain) * grain, int(-(-end // grain)) * grain, grain)
        return {
            "cost": 59,
            "timespan": f"{_iso(start)}/{_iso(end)}",
            "interval": query.get("interval", "PT1M"),
            "value": [_metric(name, resource_id, seen, conditions, moments) for name in names],
            "namespace": "Microsoft.MachineLearningServices/workspaces/onlineEndpoints",
            "resourceregion": region,
        }


def _metric(
    name: str, resource_id: str, seen: list[Request], conditions: list[tuple[str, str]], moments: range
) -> dict[str, Any]:
    if name != "RequestsPerMinute" and name not in _SHARES:
        raise BadQueryError(f"Failed to find metric configuration for metric: {name}.")
    dimensions = _REQUEST_DIMENSIONS if name == "RequestsPerMinute" else _REQUEST_DIMENSIONS[:1]
    for dimension, _ in conditions:
        if dimension not in dimensions:
            raise BadQueryError(f"Metric: {name} does not support requested dimension combination: {dimension}.")
    text = re.sub(r"(?<!^)(?=[A-Z])|_", " ", name)
    return {
        "id": f"{resource_id}/providers/Microsoft.Insights/metrics/{name}",
        "type": "Microsoft.Insights/metrics",
        "name": {"value": name, "localizedValue": text},
        "displayDescription": text,
        "unit": "Count" if name == "RequestsPerMinute" else "MilliSeconds",
        "timeseries": list(_series(name, seen, conditions, moments)),
        "errorCode": "Success",
    }


def _series(
    name: str, seen: list[Request], conditions: list[tuple[str, str]], moments: range
) -> Iterator[dict[str, Any]]:
    """One series for each combination of the dimensions that are asked for with a star."""
    split = [dimension for dimension, value in conditions if value == "*"]
    wanted = [(dimension, value) for dimension, value in conditions if value != "*"]
    groups: dict[tuple[str, ...], list[Request]] = defaultdict(list)
    for request in seen:
        if _matches(request, wanted):
            groups[tuple(request.dimension(dimension) for dimension in split)].append(request)
    if not split:
        groups.setdefault((), [])
    for values, requests in sorted(groups.items()):
        by_moment: dict[int, list[Request]] = defaultdict(list)
        for request in requests:
            by_moment[int(request.ended // moments.step) * moments.step].append(request)
        yield {
            "metadatavalues": [
                {"name": {"value": key, "localizedValue": key}, "value": value}
                for key, value in zip((key.lower() for key in split), values, strict=True)
            ],
            "data": [_point(name, moment, by_moment.get(moment, []), moments.step) for moment in moments],
        }


def _matches(request: Request, wanted: Iterable[tuple[str, str]]) -> bool:
    by_name: dict[str, set[str]] = defaultdict(set)
    for dimension, value in wanted:
        by_name[dimension].add(value)
    return all(request.dimension(dimension) in values for dimension, values in by_name.items())


def _point(name: str, moment: int, requests: list[Request], grain: int) -> dict[str, Any]:
    """A minute in which nothing happened has a time and no value."""
    point: dict[str, Any] = {"timeStamp": _iso(moment)}
    if not requests:
        return point
    if name == "RequestsPerMinute":
        return {**point, "average": len(requests) * _MINUTE / grain}
    latencies = sorted(request.milliseconds for request in requests)
    share = _SHARES[name]
    value = sum(latencies) / len(latencies) if share is None else latencies[int(-(-len(latencies) * share // 1)) - 1]
    return {**point, "average": round(value, 3)}


def _span(timespan: str) -> tuple[float, float]:
    if not timespan:
        return time.time() - 3600, time.time()
    try:
        start, end = (datetime.fromisoformat(part.replace(" ", "+")).timestamp() for part in timespan.split("/"))
    except ValueError as error:
        raise BadQueryError(f"The timespan '{timespan}' is not START/END in ISO 8601.") from error
    if start >= end:
        raise BadQueryError(f"The timespan '{timespan}' ends before it begins.")
    return start, end


def _seconds(interval: str) -> int:
    match = _INTERVAL.fullmatch(interval)
    if not match:
        raise BadQueryError(f"The interval '{interval}' is not supported.")
    return int(match[1]) * (_MINUTE if match[2] == "M" else 60 * _MINUTE)


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
