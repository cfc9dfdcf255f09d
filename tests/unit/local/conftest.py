"""What the tests of the local platform's services share."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


def wait_for(condition: Callable[[], Any], seconds: float = 15.0) -> Any:
    """Poll until the condition holds and return its value; fail when it never does."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {seconds:g} s: {condition}")
        time.sleep(0.02)
    return value


@pytest.fixture(name="wait_for")
def _wait_for() -> Callable[..., Any]:
    return wait_for


@pytest.fixture
def root() -> Path:
    """The repository, where `python -m tasks...` works."""
    return ROOT


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Return a function that names a port nobody listens on."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find
