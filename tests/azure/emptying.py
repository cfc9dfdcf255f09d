"""Takes everything out of an emulated subscription, and what is kept of the deleted, so that the next test has none."""

from __future__ import annotations

from tests.azure.workbench import until
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE

_V = "?api-version=2022-09-01"
_WORKSPACE = f"{SCOPE.workspace_id}?api-version=2024-10-01-preview"


def empty(emulator: EmulatorProcess) -> None:
    """Delete all resource groups and what is in them, deleted vaults and workspaces, and the roles that were given."""
    if emulator.send("DELETE", f"{_WORKSPACE}&forceToPurge=true").status_code == 202:
        until(lambda: emulator.send("GET", _WORKSPACE).status_code == 404)
    for group in emulator.send("GET", f"{SCOPE.subscription_id}/resourceGroups{_V}").json()["value"]:
        delete_group(emulator, group["name"])
    for one in emulator.inventory():
        if one == SCOPE.workspace_id:  # it had endpoints, went with its group, and is not purged
            purge_workspace(emulator)
            delete_group(emulator)
        elif "/deletedVaults/" in one:
            emulator.control("DELETE", f"deleted-vaults/{one.rpartition('/')[2]}")
        else:
            emulator.send("DELETE", f"{one}?api-version=2022-04-01")
    assert emulator.inventory() == []


def delete_group(emulator: EmulatorProcess, group: str = SCOPE.group) -> None:
    """Delete a resource group, and wait until it is gone."""
    path = f"{SCOPE.subscription_id}/resourceGroups/{group}{_V}"
    answer = emulator.send("DELETE", path)
    assert answer.status_code == 202, answer.text
    until(lambda: emulator.send("HEAD", path).status_code == 404)


def purge_vault(emulator: EmulatorProcess, vault: str) -> None:
    """Have a deleted key vault gone."""
    provider = f"{SCOPE.subscription_id}/providers/Microsoft.KeyVault"
    where = f"{provider}/locations/{SCOPE.location}/deletedVaults/{vault}"
    assert emulator.send("POST", f"{where}/purge?api-version=2024-11-01").status_code == 202
    until(lambda: emulator.send("GET", f"{where}?api-version=2024-11-01").status_code == 404)


def purge_workspace(emulator: EmulatorProcess) -> None:
    """Have a deleted workspace gone, for which its group must be there."""
    emulator.send("PUT", f"{SCOPE.group_id}{_V}", {"location": SCOPE.location})
    emulator.send("DELETE", f"{_WORKSPACE}&forceToPurge=true")
    assert SCOPE.workspace_id not in emulator.inventory()
