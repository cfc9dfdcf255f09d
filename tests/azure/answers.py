"""What came back, for the tests of the emulator: refusals, and resources as they will be."""

from __future__ import annotations

import time
from typing import Any

import requests

from tests.azure_emulator.process import EmulatorProcess


def error(response: requests.Response) -> tuple[int, str, str]:
    """Status, code and message of a refusal."""
    told = response.json()["error"]
    return response.status_code, told["code"], told["message"]


def until(cloud: EmulatorProcess, path: str, *places: str, wanted: str) -> dict[str, Any]:
    """What is at a path when the value at a place in it is the wanted one."""
    deadline = time.monotonic() + 10
    while True:
        body = cloud.send("GET", path).json()
        value: Any = body
        for place in places:
            value = value.get(place) if isinstance(value, dict) else None
        if value == wanted:
            return dict(body)
        assert time.monotonic() < deadline, body
        time.sleep(0.02)
