"""What is special to each type of resource that a workspace stands on: what it needs, and what its provider adds."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING, Any

from tests.azure_emulator import workspace
from tests.azure_emulator.behaviour import Behaviour, Wanted
from tests.azure_emulator.names import STORAGE_ENDPOINT, SUFFIX, TENANT
from tests.azure_emulator.resource_ids import ResourceId
from tests.azure_emulator.resource_types import (
    BUDGET,
    COSMOS,
    IDENTITY,
    INSIGHTS,
    LOG_ANALYTICS,
    REGISTRY,
    ROLE_ASSIGNMENT,
    STORAGE,
    VAULT,
    WORKSPACE,
)
from tests.azure_emulator.role_assignments import RoleAssignment
from tests.azure_emulator.web import Answer, Request, arm_error, now

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator


class _Storage(Behaviour):
    def require(self, it: Wanted) -> None:
        if not (it.body.get("sku") or {}).get("name") and it.before is None:
            raise arm_error(400, "InvalidRequestContent", "The sku of the storage account is missing.")
        if it.body.get("kind") not in ("StorageV2", "BlobStorage", "BlockBlobStorage", "FileStorage", "Storage"):
            raise arm_error(400, "InvalidAccountKind", f"The account kind '{it.body.get('kind')}' is not valid.")

    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        name, port = resource["name"], it.emulator.storage.port
        resource["sku"] = {**resource.get("sku", {}), "tier": "Standard"}
        resource["properties"] |= {
            "provisioningState": "Succeeded",
            "creationTime": resource["properties"].get("creationTime") or now(),
            "primaryLocation": resource["location"],
            "statusOfPrimary": "available",
            "primaryEndpoints": {"blob": f"https://{name}.blob.{STORAGE_ENDPOINT}:{port}/"},
        }
        return resource

    def made(self, emulator: Emulator, resource: dict[str, Any], before: dict[str, Any] | None) -> None:
        if before is None:
            emulator.storage.serve()

    def removed(self, emulator: Emulator, resource: dict[str, Any], query: dict[str, str] | None) -> None:
        emulator.storage.empty(resource["name"])


class _Container(Behaviour):
    def made(self, emulator: Emulator, resource: dict[str, Any], before: dict[str, Any] | None) -> None:
        account = resource["id"].split("/storageAccounts/")[-1].split("/")[0]
        emulator.storage.ensure_container(resource["name"], account)


class _Vault(Behaviour):
    def require(self, it: Wanted) -> None:
        if not it.properties.get("tenantId") or not (it.properties.get("sku") or {}).get("name"):
            raise arm_error(400, "BadRequest", "The properties 'tenantId' and 'sku' of the vault are required.")
        if not it.properties.get("enableRbacAuthorization") and "accessPolicies" not in it.properties:
            message = "The parameter accessPolicies is required unless enableRbacAuthorization is true."
            raise arm_error(400, "BadRequest", message)
        for field in ("enableSoftDelete", "enablePurgeProtection"):
            if it.before and it.before["properties"].get(field) and it.properties.get(field) is False:
                message = f'The property "{field}" cannot be set to false. Enabling it for a vault is irreversible.'
                raise arm_error(400, "BadRequest", message)

    def require_new(self, it: Wanted) -> None:
        deleted = it.emulator.soft_deleted
        if it.properties.get("createMode") != "recover":
            deleted.require_vault_free(it.target.name)
        elif not deleted.recover_vault(it.target.name):
            raise arm_error(404, "VaultNotFound", f"There is no deleted vault '{it.target.name}' to recover.")

    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        resource["properties"].pop("createMode", None)
        resource["properties"] = {"enableSoftDelete": True, "softDeleteRetentionInDays": 90} | resource["properties"]
        resource["properties"] |= {
            "provisioningState": "Succeeded",
            "vaultUri": f"https://{resource['name'].lower()}.vault.azure.net/",
        }
        return resource

    def removed(self, emulator: Emulator, resource: dict[str, Any], query: dict[str, str] | None) -> None:
        emulator.soft_deleted.add_vault(resource)


class _LogAnalytics(Behaviour):
    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        resource["properties"] |= {
            "provisioningState": "Succeeded",
            "customerId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"customer:{resource['id'].lower()}")),
        }
        return resource


class _Insights(Behaviour):
    def require(self, it: Wanted) -> None:
        if not it.properties.get("Application_Type"):
            raise arm_error(400, "BadRequest", "The property Application_Type of the component is required.")

    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        logs = resource["properties"].get("WorkspaceResourceId")
        if logs and not it.emulator.foundation.exists(logs):
            raise arm_error(400, "BadRequest", f"The workspace '{logs}' of the component's logs does not exist.")
        key = str(uuid.uuid5(uuid.NAMESPACE_URL, f"insights:{resource['id'].lower()}"))
        resource["properties"] |= {
            "provisioningState": "Succeeded",
            "AppId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"app:{resource['id'].lower()}")),
            "InstrumentationKey": key,
            "ConnectionString": f"InstrumentationKey={key}",
        }
        return resource


class _Registry(Behaviour):
    def require(self, it: Wanted) -> None:
        if (it.body.get("sku") or {}).get("name") not in ("Basic", "Standard", "Premium"):
            raise arm_error(400, "InvalidRequest", "The sku of the registry must be Basic, Standard or Premium.")

    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        resource["sku"] = {"name": resource["sku"]["name"], "tier": resource["sku"]["name"]}
        resource["properties"] |= {
            "provisioningState": "Succeeded",
            "loginServer": f"{resource['name'].lower()}.acr.{SUFFIX}",
        }
        return resource


class _Identity(Behaviour):
    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        given = {"type": "UserAssigned", "userAssignedIdentities": {resource["id"]: {}}}
        told = it.emulator.identity_resource(given)["userAssignedIdentities"][resource["id"]]
        resource["properties"] = {**told, "tenantId": TENANT}
        return resource


class _Cosmos(Behaviour):
    def require(self, it: Wanted) -> None:
        locations = it.properties.get("locations") or []
        if it.properties.get("databaseAccountOfferType") != "Standard" or not locations:
            message = "The properties 'databaseAccountOfferType' (Standard) and 'locations' are required."
            raise arm_error(400, "BadRequest", message)

    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        name = resource["name"]
        resource["properties"] |= {
            "provisioningState": "Succeeded",
            "documentEndpoint": f"https://{name}.documents.azure-cosmos.{SUFFIX}:443/",
            "tableEndpoint": f"https://{name}.table.azure-cosmos.{SUFFIX}:443/",
        }
        return resource


class _Budget(Behaviour):
    def require(self, it: Wanted) -> None:
        given = it.properties
        for field in ("category", "amount", "timeGrain", "timePeriod"):
            if not given.get(field):
                raise arm_error(400, "400", f"The property '{field}' of the budget is missing or not valid.")
        start = str(given["timePeriod"].get("startDate", ""))
        if not re.fullmatch(r"\d{4}-\d\d-01(T00:00:00(\.0+)?Z?)?", start):
            raise arm_error(400, "400", f"The budget's start date '{start}' must be the first day of a month.")
        for name, notification in (given.get("notifications") or {}).items():
            reached = [notification.get(kind) for kind in ("contactEmails", "contactRoles", "contactGroups")]
            if not any(reached) or any("@" not in address for address in notification.get("contactEmails") or []):
                raise arm_error(400, "400", f"The notification '{name}' needs contacts: addresses, roles or groups.")

    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        period = dict(resource["properties"]["timePeriod"])
        first = (it.before or {}).get("properties", {}).get("timePeriod", {}).get("startDate", period["startDate"])
        if first[:10] != period["startDate"][:10]:
            raise arm_error(400, "400", "The start date of a budget cannot be changed.")
        resource["properties"]["timePeriod"] = {"endDate": "2036-01-01T00:00:00Z"} | period
        resource["properties"]["currentSpend"] = {"amount": 0, "unit": "EUR"}
        return {**resource, "eTag": '"1d2e4fa0b1c2d3e"'}


class _Workspace(Behaviour):
    def require(self, it: Wanted) -> None:
        workspace.require_body(it.body)

    def require_new(self, it: Wanted) -> None:
        it.emulator.soft_deleted.require_workspace_free(str(it.target))

    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        return workspace.completed(it.emulator, resource, it.before)

    def made(self, emulator: Emulator, resource: dict[str, Any], before: dict[str, Any] | None) -> None:
        if before is None and resource["id"].lower() == emulator.workspace_id.lower():
            workspace.open_workspace(emulator)

    def require_removable(self, emulator: Emulator, resource: dict[str, Any]) -> None:
        if emulator.store.list(f"{resource['id']}/onlineEndpoints"):
            message = "Can not delete resource before nested resources are deleted."
            raise arm_error(409, "CannotDeleteResource", message)

    def removed(self, emulator: Emulator, resource: dict[str, Any], query: dict[str, str] | None) -> None:
        if (query or {}).get("forceToPurge", "").lower() != "true":
            emulator.soft_deleted.add_workspace(resource["id"])

    def absent(self, emulator: Emulator, target: ResourceId, request: Request) -> Answer:
        purged = request.query.get("forceToPurge", "").lower() == "true"
        return Answer(200 if purged and emulator.soft_deleted.purge_workspace(str(target)) else 204)


BEHAVIOURS: dict[str, Behaviour] = {
    STORAGE: _Storage(),
    f"{STORAGE}/blobServices/containers": _Container(),
    VAULT: _Vault(),
    LOG_ANALYTICS: _LogAnalytics(),
    INSIGHTS: _Insights(),
    REGISTRY: _Registry(),
    IDENTITY: _Identity(),
    COSMOS: _Cosmos(),
    BUDGET: _Budget(),
    WORKSPACE: _Workspace(),
    ROLE_ASSIGNMENT: RoleAssignment(),
}
