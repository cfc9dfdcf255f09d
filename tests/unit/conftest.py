"""The flow on a platform in memory, loaded only for the tests that ask for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from fakes import FakePlatform


@pytest.fixture
def platform(monkeypatch: pytest.MonkeyPatch) -> FakePlatform:
    """An endpoint on which version 1 serves."""
    from rollout_flow import connected_platform

    return connected_platform(monkeypatch)


@pytest.fixture
def run_flow(platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run the flow's own body with its real rollout and canned stages before and after it."""
    from rollout_flow import flow_on

    return flow_on(platform, monkeypatch, tmp_path)
