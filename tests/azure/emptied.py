"""How tests get an emulated subscription back to nothing."""

from __future__ import annotations

from tests.azure.workbench import until
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE

_V = "?api-version=2022-09-01"


def delete_group(cloud: EmulatorProcess, group: str = SCOPE.group) -> None:
    """Delete a resource group, and wait until it is gone."""
    path = f"{SCOPE.subscription_id}/resourceGroups/{group}{_V}"
    answer = cloud.send("DELETE", path)
    assert answer.status_code == 202, answer.text
    until(lambda: cloud.send("HEAD", path).status_code == 404)


def purge_vault(cloud: EmulatorProcess, vault: str) -> None:
    """Have a deleted key vault gone."""
    provider = f"{SCOPE.subscription_id}/providers/Microsoft.KeyVault"
    where = f"{provider}/locations/{SCOPE.location}/deletedVaults/{vault}"
    assert cloud.send("POST", f"{where}/purge?api-version=2024-11-01").status_code == 202
    until(lambda: cloud.send("GET", f"{where}?api-version=2024-11-01").status_code == 404)


def purge_workspace(cloud: EmulatorProcess) -> None:
    """Have a deleted workspace gone, for which its group must be there."""
    cloud.send("PUT", f"{SCOPE.group_id}{_V}", {"location": SCOPE.location})
    cloud.send("DELETE", f"{SCOPE.workspace_id}?api-version=2024-10-01-preview&forceToPurge=true")
    assert SCOPE.workspace_id not in cloud.inventory()


def clear(cloud: EmulatorProcess) -> None:
    """Away with all that there is."""
    groups = f"{SCOPE.subscription_id}/resourceGroups"
    for group in cloud.send("GET", f"{groups}{_V}").json()["value"]:
        delete_group(cloud, group["name"])
    for one in cloud.inventory():
        if one == SCOPE.workspace_id:
            purge_workspace(cloud)
            delete_group(cloud)
        elif "/deletedVaults/" in one:
            purge_vault(cloud, one.rsplit("/", 1)[1])
        else:
            cloud.send("DELETE", f"{one}?api-version=2022-04-01")
