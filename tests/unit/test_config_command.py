"""Mistakes in a configuration as a user meets them, through the command, which otherwise would start servers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

COMMANDS = {
    "unknown key": ("run.yaml", "--set", "rollout.hold=3"),
    "wrong type": ("run.yaml", "--set", "chat.port=many"),
    "percentage over 100": ("run.yaml", "--set", "rollout.max_error_percent=200"),
    "no equals": ("run.yaml", "--set", "chat"),
    "missing file": ("rum.yaml",),
    "folder": (".",),
    "missing data": ("run.yaml", "--set", "data.source=none.jsonl"),
    "path as a name": ("run.yaml", "--set", "name=../x"),
    "place that does not exist": ("run.yaml", "--set", "platform.kind=azur"),
    "train key": ("run.yaml", "--set", "train.learning_rat=1"),
}


@pytest.mark.parametrize("arguments", COMMANDS.values(), ids=COMMANDS)
def test_command_refuses_before_it_starts_anything(
    phiflow: Callable,
    phiflow_home: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
) -> None:
    """A mistake ends `phiflow run --json` with exit code 2, one line, one JSON document, and nothing made."""
    (tmp_path / "run.yaml").write_text("name: support\ndata: {source: chats.jsonl}\n")
    (tmp_path / "chats.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    before = sorted(tmp_path.rglob("*"))
    ended = phiflow("run", *arguments, "--json")
    assert ended.returncode == 2, ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    error = json.loads(ended.stdout)["error"]
    assert ended.stderr.startswith(f"error: {error['message']}")
    assert error["exit_code"] == 2
    assert not phiflow_home.exists()
    assert sorted(tmp_path.rglob("*")) == before
