"""What is deleted and not gone, and keeps its name from being used again: key vaults and workspaces.

    PUT    /_emulator/deleted-vaults/{name} {}   a vault that was deleted and not purged
    DELETE /_emulator/deleted-vaults/{name}      it is purged

Microsoft's words: https://learn.microsoft.com/azure/key-vault/general/soft-delete-overview,
https://learn.microsoft.com/azure/machine-learning/concept-soft-delete.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.resource_types import COSMOS, REGISTRY, STORAGE, TYPES, VAULT, invalid_name, name_taken
from tests.azure_emulator.web import Answer, Request, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_VAULTS, _WORKSPACES = "/_deleted/vaults", "/_deleted/workspaces"
_CHECKED = {"Microsoft.Storage": STORAGE, "Microsoft.KeyVault": VAULT, "Microsoft.ContainerRegistry": REGISTRY}


def install(emulator: Emulator) -> None:
    """Register the routes."""
    deleted = emulator.soft_deleted
    provider = "S/providers/Microsoft.KeyVault"
    emulator.register("GET", f"{provider}/deletedVaults", deleted.list)
    emulator.register("GET", f"{provider}/locations/{{location}}/deletedVaults/{{name}}", deleted.read)
    emulator.register("POST", f"{provider}/locations/{{location}}/deletedVaults/{{name}}/purge", deleted.purge)
    for namespace in _CHECKED:
        emulator.register("POST", f"S/providers/{namespace}/checkNameAvailability", deleted.check_name)
    emulator.register("HEAD", "/providers/Microsoft.DocumentDB/databaseAccountNames/{name}", deleted.check_cosmos)
    emulator.register("PUT", "/_emulator/deleted-vaults/{name}", deleted.plant_vault)
    emulator.register("DELETE", "/_emulator/deleted-vaults/{name}", deleted.forget_vault)


class SoftDeleted:
    """Vaults and workspaces that were deleted and not purged."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._store = emulator.store

    def vaults(self) -> list[dict[str, Any]]:
        """The deleted vaults, as the service shows them."""
        return self._store.list(_VAULTS)

    def workspaces(self) -> list[str]:
        """The ids of the deleted workspaces."""
        return [str(one["id"]) for one in self._store.walk(_WORKSPACES)]

    def require_vault_free(self, name: str) -> None:
        """Refuse the name of a deleted vault.

        Raises:
            ServiceError: 409.
        """
        if self._store.get(f"{_VAULTS}/{name}"):
            message = (
                "A vault with the same name already exists in deleted state. You need to either recover or purge "
                "existing key vault. Follow this link https://go.microsoft.com/fwlink/?linkid=2149745 for more "
                "information on soft delete."
            )
            raise arm_error(409, "ConflictError", message)

    def require_workspace_free(self, resource_id: str) -> None:
        """Refuse the name of a deleted workspace.

        Raises:
            ServiceError: 400.
        """
        if self._store.get(f"{_WORKSPACES}{resource_id}"):
            message = "Soft-deleted workspace exists. Please purge or recover it. https://aka.ms/wsoftdelete"
            raise arm_error(400, "BadRequest", message)

    def add_vault(self, vault: dict[str, Any]) -> None:
        """Keep a vault that is deleted."""
        days = int(vault["properties"].get("softDeleteRetentionInDays") or 90)
        moment = datetime.now(UTC)
        location, name = vault["location"], vault["name"]
        provider = f"{self._emulator.scope.subscription_id}/providers/Microsoft.KeyVault"
        shown = {
            "id": f"{provider}/locations/{location}/deletedVaults/{name}",
            "name": name,
            "type": "Microsoft.KeyVault/deletedVaults",
            "properties": {
                "vaultId": vault["id"],
                "location": location,
                "tags": vault.get("tags") or {},
                "deletionDate": _written(moment),
                "scheduledPurgeDate": _written(moment + timedelta(days=days)),
                "purgeProtectionEnabled": bool(vault["properties"].get("enablePurgeProtection")),
            },
        }
        self._store.put(f"{_VAULTS}/{name}", shown)

    def recover_vault(self, name: str) -> bool:
        """Have a deleted vault's name free for the vault itself; False when there is none."""
        return self._store.delete(f"{_VAULTS}/{name}")

    def add_workspace(self, resource_id: str) -> None:
        """Keep a workspace's name."""
        self._store.put(f"{_WORKSPACES}{resource_id}", {"id": resource_id})

    def purge_workspace(self, resource_id: str) -> bool:
        """Have a deleted workspace gone; False when there is none."""
        return self._store.delete(f"{_WORKSPACES}{resource_id}")

    def list(self, request: Request) -> Answer:
        return self._emulator.page(request, self.vaults())

    def read(self, request: Request) -> Answer:
        return Answer(200, self._find(request))

    def purge(self, request: Request) -> Answer:
        if self._find(request)["properties"]["purgeProtectionEnabled"]:
            message = "Operation 'DeletedVaultPurge' is not allowed: the vault has purge protection."
            raise arm_error(405, "MethodNotAllowed", message)
        name, operations = request.parameters["name"], self._emulator.operations

        def work(fault: dict[str, Any] | None) -> None:
            if not fault:
                self._store.delete(f"{_VAULTS}/{name}")
                self._store.delete_below(f"/_secrets/{name}")

        operation = operations.start(request, work, family="arm")
        headers = {"Location": operations.result_url(operation, request.api_version), "retry-after-ms": "50"}
        return Answer(202, None, headers)

    def check_name(self, request: Request) -> Answer:
        """Whether a name can be had, as the providers answer it."""
        namespace = request.path.rsplit("/", 2)[1]
        name = str(request.json.get("name") or "")
        kind = TYPES[next(one for space, one in _CHECKED.items() if space.lower() == namespace.lower()).lower()]
        if not re.fullmatch(kind.pattern, name):
            return Answer(200, _unavailable("AccountNameInvalid", str(invalid_name(kind, name))))
        deleted = kind.name == VAULT and self._store.get(f"{_VAULTS}/{name}")
        if deleted or self._emulator.foundation.is_taken(kind, name):
            return Answer(200, _unavailable("AlreadyExists", str(name_taken(kind, name))))
        return Answer(200, {"nameAvailable": True})

    def check_cosmos(self, request: Request) -> Answer:
        kind = TYPES[COSMOS.lower()]
        return Answer(200 if self._emulator.foundation.is_taken(kind, request.parameters["name"]) else 404)

    def plant_vault(self, request: Request) -> Answer:
        scope, name = self._emulator.scope, request.parameters["name"]
        vault = {
            "id": f"{scope.group_id}/providers/{VAULT}/{name}",
            "name": name,
            "location": request.json.get("location") or scope.location,
            "properties": request.json.get("properties") or {},
        }
        self.add_vault(vault)
        return Answer(200, {"name": name})

    def forget_vault(self, request: Request) -> Answer:
        return Answer(200 if self._store.delete(f"{_VAULTS}/{request.parameters['name']}") else 404)

    def _find(self, request: Request) -> dict[str, Any]:
        name = request.parameters["name"]
        found = self._store.get(f"{_VAULTS}/{name}")
        if found is None or found["properties"]["location"].lower() != request.parameters["location"].lower():
            raise arm_error(404, "DeletedVaultNotFound", f"The specified deleted vault '{name}' does not exist.")
        return found


def _unavailable(reason: str, message: str) -> dict[str, Any]:
    return {"nameAvailable": False, "reason": reason, "message": message}


def _written(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
