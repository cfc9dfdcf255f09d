"""No space left: one line that says so, and nothing half-made is used afterwards."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from journey import Journey, Served

pytestmark = [pytest.mark.journey, pytest.mark.slow]


@pytest.fixture(params=["2m", "200m"])
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A file system of its own that is nearly nothing."""
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={request.param}", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("this machine does not let root mount a tmpfs")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_full_disk_is_one_clear_line(journey: Journey, served: Served, small_disk: Path) -> None:
    """A run whose state folder is on a full disk ends with one error line and no traceback."""
    home = small_disk / "home"
    config = journey.configure("cramped")
    try:
        ended = journey.phiflow("run", config, timeout=300, PHIFLOW_HOME=str(home))
    finally:
        journey.phiflow("stop", timeout=120, PHIFLOW_HOME=str(home))
    assert ended.returncode in (2, 4), ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert "No space" in line or "disk is full" in line, line
