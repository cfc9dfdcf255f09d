"""What a state folder may take of the machine: ports nobody is about to use, and a disk with room."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from tasks.platforms.errors import QuotaError
from tasks.platforms.local.ports import PortBook
from tasks.platforms.local.state import Home


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of reserved ports, in a temporary folder of this test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"phiflow-{os.getuid()}" / "ports.json"


def test_two_state_folders_that_start_at_once_get_different_ports(tmp_path: Path, free_port: Callable) -> None:
    """A port that another folder's service has claimed and does not listen on yet is left to it."""
    port = free_port()
    assert PortBook(tmp_path / "one").claim("gateway", port) == port
    assert PortBook(tmp_path / "two").claim("gateway", port) > port
    assert PortBook(tmp_path / "one").claim("gateway", port) == port


@pytest.mark.parametrize("damage", ["age", "nonsense"])
def test_an_old_or_unreadable_reservation_holds_no_port(
    tmp_path: Path, machine: Path, free_port: Callable, damage: str
) -> None:
    """A claim whose service never came up, or a damaged file, stops nobody for long."""
    port = free_port()
    PortBook(tmp_path / "one").claim("gateway", port)
    reserved = json.loads(machine.read_text(encoding="utf-8"))
    reserved[str(port)]["time"] -= 3600
    machine.write_text(json.dumps(reserved) if damage == "age" else "{", encoding="utf-8")
    assert PortBook(tmp_path / "two").claim("gateway", port) == port


def test_a_full_disk_is_refused_with_what_is_free_and_needed(tmp_path: Path) -> None:
    """Before anything starts, a disk without room is one line that names folder, room and what to do."""
    home = Home.open(str(tmp_path / "home"))
    home.require_space(1)
    with pytest.raises(QuotaError) as caught:
        home.require_space(10**18)
    assert str(home.root) in str(caught.value)
    assert "MB free" in str(caught.value) and "PHIFLOW_HOME" in str(caught.value)
