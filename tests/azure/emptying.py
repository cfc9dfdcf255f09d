"""Takes everything out of an emulated subscription, and what is kept of the deleted, so that the next test has none."""

from __future__ import annotations

import time
from collections.abc import Callable

from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE


def empty(emulator: EmulatorProcess) -> None:
    """Delete all resource groups and what is in them, deleted vaults, and the roles that `up` gave."""
    groups = emulator.send("GET", f"{SCOPE.subscription_id}/resourcegroups?api-version=2021-04-01").json()["value"]
    _delete(emulator, f"{SCOPE.workspace_id}?api-version=2024-10-01-preview", "&forceToPurge=true")
    for group in groups:
        _delete(emulator, f"{group['id']}?api-version=2021-04-01")
    for one in emulator.inventory():
        if "/deletedVaults/" in one:
            emulator.control("DELETE", f"deleted-vaults/{one.rpartition('/')[2]}")
        elif "/roleAssignments/" in one:
            emulator.send("DELETE", f"{one}?api-version=2022-04-01")
    assert emulator.inventory() == []


def until(reached: Callable[[], bool], seconds: float = 120) -> None:
    """Wait for something that is on its way."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _delete(emulator: EmulatorProcess, path: str, option: str = "") -> None:
    if emulator.send("DELETE", f"{path}{option}").status_code == 202:
        until(lambda: emulator.send("GET", path).status_code == 404)
