"""The `phiflow` command before it does anything: help, version, and what it does not load."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"prefect", "pydantic", "torch", "transformers", "mlflow", "datasets", "requests", "yaml", "rich"}
COMMANDS = ["init", "run", "plan", "data", "status", "chat", "cancel", "approve", "roll-back", "freeze", "stop", "env"]


def loaded_by(*arguments: str) -> tuple[set[str], str]:
    """The top-level modules that a command had loaded when it ended, and what it printed."""
    code = (
        "import json, sys\n"
        "from flows.cli import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})), file=sys.stderr)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    return set(json.loads(ended.stderr.splitlines()[-1])), ended.stdout


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"]])
def test_help_and_version_load_nothing_heavy(arguments: list[str]) -> None:
    """Help and version answer without loading what only a run needs."""
    modules, printed = loaded_by(*arguments)
    assert "typer" in modules
    assert modules & HEAVY == set()
    assert printed.strip()


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command_loads_nothing_heavy(command: str) -> None:
    """The help of one command needs no more than its options; Typer itself looks for pydantic then."""
    modules, printed = loaded_by(command, "--help")
    assert modules & (HEAVY - {"pydantic"}) == set()
    assert f"phiflow {command}" in printed


def test_help_names_every_command(phiflow: Callable) -> None:
    """`phiflow --help` lists the commands, and each has a help of its own with one sentence."""
    ended = phiflow("--help")
    assert ended.returncode == 0
    for command in COMMANDS:
        line = next((line for line in ended.stdout.splitlines() if line.strip().startswith(f"{command} ")), "")
        assert len(line.split()) > 3, f"{command}: {line!r}"


def test_version_is_one_line(phiflow: Callable) -> None:
    """`phiflow --version` prints the name and a version."""
    ended = phiflow("--version")
    assert ended.returncode == 0
    name, version = ended.stdout.split()
    assert name == "phiflow"
    assert version[0].isdigit()


@pytest.mark.parametrize(
    "arguments",
    [
        ["trian"],
        ["run", "--no-such-option"],
        ["roll-back"],
        ["chat"],
        ["chat", "hi", "--max-tokens", "0"],
        ["init"],
    ],
)
def test_wrong_command_line_is_exit_code_2(phiflow: Callable, phiflow_home: Path, arguments: list[str]) -> None:
    """An unknown command or option, or a missing argument, is exit code 2 and starts nothing."""
    ended = phiflow(*arguments)
    assert ended.returncode == 2
    assert "Traceback" not in ended.stderr
    assert ended.stderr.strip()
    assert not phiflow_home.exists()


def test_state_folder_that_cannot_be_made_is_exit_code_2(phiflow: Callable, phiflow_home: Path, tmp_path: Path) -> None:
    """A state folder that is a file is told in one line with what to do."""
    phiflow_home.write_text("a file")
    ended = phiflow("stop")
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: State folder {phiflow_home} cannot be written")
    assert len(ended.stderr.splitlines()) == 1


def test_stop_with_nothing_running(phiflow: Callable) -> None:
    """`phiflow stop` where nothing was started says so and succeeds."""
    ended = phiflow("stop")
    assert ended.returncode == 0, ended.stderr
    assert "nothing" in ended.stdout
