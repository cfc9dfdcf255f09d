"""What the gateway reads and counts, without its process: endpoints, keys, percentiles."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tasks.platforms.local import files
from tasks.platforms.local.gateway_state import Counters, EndpointBook, UnreadableEndpointError, parse_endpoint


@pytest.mark.parametrize(
    "value",
    [
        None,
        {"deployments": []},
        {"deployments": {"../a": {"url": "http://127.0.0.1:1"}}},
        {"deployments": {"a": {"url": "file:///etc/passwd"}}},
        {"deployments": {"a": {"url": "http://127.0.0.1:1"}}, "traffic": {"a": 101}},
        {"deployments": {"a": {"url": "http://127.0.0.1:1"}}, "traffic": {"a": "5"}},
        {"deployments": {"a": {"url": "http://127.0.0.1:1"}}, "traffic": {"b": 5}},
    ],
)
def test_an_invalid_endpoint_is_refused(value: Any) -> None:
    """Wrong types, names, addresses and percentages do not become a state."""
    with pytest.raises(ValueError):
        parse_endpoint("e", value, "key")


def test_an_endpoint_without_a_key_is_never_open(tmp_path: Path) -> None:
    """Without a key file, or with an empty one, the endpoint is not usable."""
    book = EndpointBook(tmp_path)
    files.write_json(tmp_path / "e" / "endpoint.json", {"deployments": {}, "traffic": {}})
    with pytest.raises(UnreadableEndpointError):
        book.find("e")
    files.write_secret(tmp_path / "e" / "key", "\n")
    with pytest.raises(UnreadableEndpointError):
        book.find("e")
    files.write_secret(tmp_path / "e" / "key", "k\n")
    endpoint = book.find("e")
    assert endpoint and endpoint.key == "k"
    assert os.listdir(tmp_path) == book.names() == ["e"]


def test_percentiles_are_nearest_rank() -> None:
    """Of 1 to 100 ms the window's are exact and the total's within a tenth; of nothing they are none."""
    counters = Counters()
    nothing = {"p50": None, "p95": None, "p99": None}
    assert counters.read("e", "d") == {"requests": 0, "errors": 0, "latency_ms": nothing}
    for milliseconds in range(1, 101):
        counters.add("e", "d", float(milliseconds), milliseconds > 98)
    window = counters.read("e", "d", 60)
    assert window == {"requests": 100, "errors": 2, "latency_ms": {"p50": 50.0, "p95": 95.0, "p99": 99.0}}
    total = counters.read("e", "d")["latency_ms"]
    for name, exact in (("p50", 50), ("p95", 95), ("p99", 99)):
        assert exact <= total[name] <= exact * 1.1
