"""What Azure Monitor counted of an endpoint: by the minute, and some minutes late.

Metrics and dimensions: https://learn.microsoft.com/azure/azure-monitor/reference/supported-metrics/
microsoft-machinelearningservices-workspaces-onlineendpoints-metrics
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.platforms.refs import DeploymentMetrics

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

_API = "2023-10-01"
_MINUTE = 60
_REQUESTS, _LATENCY = "RequestsPerMinute", "RequestLatency_P95"
# Of a filtered query the service gives ten series unless told otherwise.
_MOST_SERIES = 1000
_FAULTS = ("408", "429")
_MODEL_ERROR = "424"


@dataclass(frozen=True, slots=True)
class _Point:
    """One metric's value for one minute and one combination of dimensions."""

    minute: float
    dimensions: dict[str, str]
    value: float


def read_metrics(workspace: Workspace, endpoint: str, window_seconds: int) -> tuple[DeploymentMetrics, ...]:
    """What was counted for each deployment in the whole minutes of a window that ends now."""
    now = time.time()
    start = math.ceil((now - window_seconds) / _MINUTE) * _MINUTE
    if start >= now:  # no minute has begun in it
        return ()
    resource = f"{workspace.resource_id}/onlineEndpoints/{endpoint}"

    def ask(metric: str, *dimensions: str) -> list[_Point]:
        params = {
            "api-version": _API,
            "metricnames": metric,
            "aggregation": "Average",
            "interval": "PT1M",
            "timespan": f"{_iso(start)}/{_iso(now)}",
            "$filter": " and ".join(f"{dimension} eq '*'" for dimension in dimensions),
            "top": str(_MOST_SERIES),
        }
        url = f"{resource}/providers/Microsoft.Insights/metrics"
        response = workspace.send("GET", url, params=params, what=f"The metrics of endpoint {endpoint}")
        return list(_points(response.json()))

    return counted(
        ask(_REQUESTS, "deployment", "statusCode", "modelStatusCode"), ask(_LATENCY, "deployment"), start, now
    )


def counted(requests: list[_Point], latencies: list[_Point], start: float, now: float) -> tuple[DeploymentMetrics, ...]:
    """The counts by deployment; the last minute that anything is known of is as far as the service has come."""
    last = max((point.minute for point in requests), default=None)
    until = start if last is None else min(last + _MINUTE, now)
    num_requests: dict[str, float] = defaultdict(float)
    num_errors: dict[str, float] = defaultdict(float)
    slowest: dict[str, float] = {}
    for point in requests:
        name = point.dimensions["deployment"]
        num_requests[name] += point.value
        num_errors[name] += point.value if _is_error(point.dimensions) else 0
    for point in latencies:
        name = point.dimensions["deployment"]
        # The minutes' 95th percentiles cannot be put together to one; the worst errs on the safe side.
        slowest[name] = max(slowest.get(name, 0.0), point.value / 1000)
    return tuple(
        DeploymentMetrics(
            deployment=name,
            num_requests=round(num_requests[name]),
            num_errors=round(num_errors[name]),
            p95_seconds=slowest.get(name),
            counted_until=until,
        )
        for name in sorted(num_requests)
    )


def _is_error(dimensions: dict[str, str]) -> bool:
    """Whether a request failed by no fault of its sender: too slow, too many, or an error of model or service."""
    status, model_status = dimensions["statuscode"], dimensions.get("modelstatuscode", "")
    if status == _MODEL_ERROR:
        return not model_status.startswith("4") or model_status in _FAULTS
    return status.startswith("5") or status in _FAULTS


def _points(answer: dict[str, Any]) -> Iterator[_Point]:
    for metric in answer.get("value") or ():
        for series in metric.get("timeseries") or ():
            # The service writes the names of dimensions in lower case, whatever it was asked.
            dimensions = {
                str(one["name"]["value"]).lower(): str(one["value"]) for one in series.get("metadatavalues") or ()
            }
            for point in series.get("data") or ():
                if point.get("average"):  # a minute without requests has no value, or 0
                    minute = datetime.fromisoformat(point["timeStamp"]).timestamp()
                    yield _Point(minute, dimensions, float(point["average"]))


def _iso(moment: float) -> str:
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
