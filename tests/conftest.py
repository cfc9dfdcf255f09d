"""What every test gets: a state folder of its own, and the `phiflow` command as a user runs it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# A shell has what it starts in the background ignore Ctrl-C, and so would every process that a test starts.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def phiflow_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder that does not exist yet, so that no test reads or changes the user's own."""
    home = tmp_path / "phiflow-home"
    monkeypatch.setenv("PHIFLOW_HOME", str(home))
    return home


@pytest.fixture
def phiflow(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run the command in the test's folder and return what it printed and its exit code."""

    def run(*arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "flows", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    return run
