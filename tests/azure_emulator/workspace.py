"""The workspace itself and what comes with it: datastores and their keys, quota, sizes of machines.

It is made, read and deleted as any other resource is, by `foundation.py`.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.names import FOUNDATION, PRINCIPAL, STORAGE_ENDPOINT, TENANT
from tests.azure_emulator.resource_ids import parse_id
from tests.azure_emulator.resource_types import LOG_ANALYTICS, REGISTRY, STORAGE, TYPES
from tests.azure_emulator.sizes import SIZES, family_name
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error, not_found, now

if TYPE_CHECKING:
    from tests.azure_emulator.arm import Scope
    from tests.azure_emulator.server import Emulator

ARTIFACT_CONTAINER = "azureml"
_QUOTA = 500
_NEEDED = {"storageAccount": "storage account", "keyVault": "key vault", "applicationInsights": "application insights"}
_FIXED = ("storageAccount", "keyVault")


def install(emulator: Emulator) -> None:
    """Register the routes."""
    workspace = Workspace(emulator)
    register = emulator.register
    register("POST", "W/listKeys", workspace.list_keys)
    register("GET", "W/datastores", workspace.list_datastores)
    register("GET", "W/datastores/{name}", workspace.read_datastore)
    register("POST", "W/datastores/{name}/listSecrets", workspace.list_secrets)
    register("GET", "L/usages", workspace.list_usages)
    register("GET", "L/vmSizes", workspace.list_sizes)


def require_body(body: dict[str, Any]) -> None:
    """Refuse a workspace that lacks what every workspace has.

    Raises:
        ServiceError: 400.
    """
    properties = body.get("properties") or {}
    missing = [field for field in _NEEDED if not properties.get(field)]
    if missing:
        raise _invalid(f"Missing dependent resources in workspace json: {', '.join(missing)}.")
    kinds = {part.strip() for part in str((body.get("identity") or {}).get("type", "SystemAssigned")).split(",")}
    if not kinds <= {"SystemAssigned", "UserAssigned"}:
        raise _invalid(f"The identity type '{', '.join(sorted(kinds))}' of the workspace is not valid.")


def completed(emulator: Emulator, resource: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
    """The workspace with what the service adds.

    Raises:
        ServiceError: 400, something that it names does not exist or cannot be changed.
    """
    given = resource["properties"]
    for field, what in (*_NEEDED.items(), ("containerRegistry", "container registry")):
        if given.get(field) and not emulator.foundation.exists(given[field]):
            raise _invalid(f"Unable to find the {what} with ArmId = {given[field]}.")
        if before and field in _FIXED and before["properties"][field].lower() != given[field].lower():
            raise _invalid(f"The {what} of workspace {resource['name']} cannot be changed.")
    resource_id, name = resource["id"], resource["name"]
    host = emulator.url.removeprefix("https://")
    moment = now()
    created = before["systemData"]["createdAt"] if before else moment
    resource["properties"] = (
        {"friendlyName": name, "description": "", "hbiWorkspace": False, "imageBuildCompute": None}
        | {"v1LegacyMode": False, "containerRegistry": None, "publicNetworkAccess": "Enabled"}
        | {"enableDataIsolation": False, "notebookInfo": None, "storageHnsEnabled": False, "privateLinkCount": 0}
        | given
        | {"tenantId": TENANT, "provisioningState": "Succeeded" if before else "Creating"}
        | {"workspaceId": workspace_guid(resource_id), "discoveryUrl": f"{emulator.url}/discovery"}
        | {"mlFlowTrackingUri": f"azureml://{host}/mlflow/v1.0{resource_id}"}
    )
    resource["identity"] = _identity(emulator, resource)
    resource["kind"] = resource.get("kind") or "Default"
    resource["sku"] = {"name": "Basic", "tier": "Basic"}
    resource["systemData"] = {
        **{"createdAt": created, "createdBy": "Emulator", "createdByType": "User"},
        **{"lastModifiedAt": moment, "lastModifiedBy": "Emulator", "lastModifiedByType": "User"},
    }
    return resource


def seed(emulator: Emulator) -> None:
    """Have the workspace, and what it stands on, that somebody made before phiflow came: without tags."""
    scope = emulator.scope
    emulator.groups.ensure(scope.group, scope.location)
    for resource_id, body in seed_bodies(scope).items():
        parsed = parse_id(resource_id)
        assert parsed is not None
        emulator.call("PUT", resource_id, TYPES[parsed.type.lower()].versions[-1], body)


def seed_bodies(scope: Scope) -> dict[str, dict[str, Any]]:
    """What is asked for to have that workspace, by resource id and in order."""
    provider, base = f"{scope.group_id}/providers", {"location": scope.location}
    vault = {"tenantId": TENANT, "sku": {"family": "A", "name": "standard"}, "enableRbacAuthorization": True}
    logs = f"{provider}/{LOG_ANALYTICS}/{FOUNDATION}"
    insights = {"Application_Type": "web", "WorkspaceResourceId": logs}
    ids = {
        "storageAccount": f"{provider}/{STORAGE}/{FOUNDATION}",
        "keyVault": f"{provider}/Microsoft.Keyvault/vaults/{FOUNDATION}",
        "applicationInsights": f"{provider}/Microsoft.insights/components/{FOUNDATION}",
        "containerRegistry": f"{provider}/{REGISTRY}/{FOUNDATION}",
    }
    return {
        logs: {**base, "properties": {"sku": {"name": "PerGB2018"}}},
        ids["storageAccount"]: {**base, "kind": "StorageV2", "sku": {"name": "Standard_LRS"}},
        ids["keyVault"]: {**base, "properties": vault},
        ids["applicationInsights"]: {**base, "kind": "web", "properties": insights},
        ids["containerRegistry"]: {**base, "sku": {"name": "Basic"}},
        scope.workspace_id: {**base, "properties": {"description": "The emulator's workspace.", **ids}},
    }


def open_workspace(emulator: Emulator) -> None:
    """Have what comes with the workspace: datastores, their containers, and the way to them for jobs."""
    emulator.write_connection()
    Workspace(emulator).ensure_datastores()
    for store in emulator.store.list(f"{emulator.workspace_id}/datastores"):
        if name := store["properties"].get("containerName"):
            emulator.storage.ensure_container(name)


def workspace_guid(resource_id: str) -> str:
    """The workspace's own GUID."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, resource_id))


def _invalid(message: str) -> ServiceError:
    return arm_error(400, "ValidationError", message)


def _identity(emulator: Emulator, resource: dict[str, Any]) -> dict[str, Any]:
    given = resource.get("identity") or {"type": "SystemAssigned"}
    for one in given.get("userAssignedIdentities") or {}:
        if not emulator.foundation.exists(one):
            raise _invalid(f"Unable to find the user-assigned identity with ArmId = {one}.")
    told = emulator.identity_resource(given)
    if "principalId" in told:
        told["principalId"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"principal:{resource['id'].lower()}"))
    return told


class Workspace:
    """Answers for one workspace."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._id = emulator.workspace_id
        self._guid = workspace_guid(self._id)

    def list_keys(self, request: Request) -> Answer:
        storage = self._emulator.workspace_property("storageAccount")
        key = self._emulator.storage.account().key
        return Answer(200, {"userStorageKey": key, "userStorageResourceId": storage})

    def ensure_datastores(self) -> None:
        """The datastores that every workspace has."""
        default = f"azureml-blobstore-{self._guid}"
        share = f"azureml-filestore-{self._guid}"
        self._ensure_datastore("workspaceblobstore", "AzureBlob", {"containerName": default}, is_default=True)
        self._ensure_datastore("workspaceartifactstore", "AzureBlob", {"containerName": ARTIFACT_CONTAINER})
        self._ensure_datastore("workspacefilestore", "AzureFile", {"fileShareName": share})
        self._ensure_datastore("workspaceworkingdirectory", "AzureFile", {"fileShareName": f"code-{self._guid[:8]}"})

    def _ensure_datastore(self, name: str, kind: str, place: dict[str, str], *, is_default: bool = False) -> None:
        store, resource_id = self._emulator.store, f"{self._id}/datastores/{name}"
        if store.get(resource_id) is not None:
            return
        moment = now()
        resource = {
            "id": resource_id,
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/datastores",
            "properties": {
                "description": None,
                "tags": None,
                "properties": None,
                "isDefault": is_default,
                "credentials": {"credentialsType": "AccountKey"},
                "datastoreType": kind,
                "accountName": self._emulator.storage.account().name,
                **place,
                "endpoint": f"{STORAGE_ENDPOINT}:{self._emulator.storage.account().port}",
                "protocol": "https",
                "serviceDataAccessAuthIdentity": "None",
            },
            "systemData": {
                "createdAt": moment,
                "createdBy": PRINCIPAL,
                "createdByType": "Application",
                "lastModifiedAt": moment,
                "lastModifiedBy": PRINCIPAL,
                "lastModifiedByType": "Application",
            },
        }
        store.put(resource_id, resource)

    def list_datastores(self, request: Request) -> Answer:
        found = self._emulator.store.list(f"{self._id}/datastores")
        if request.query.get("isDefault"):
            wanted = request.query["isDefault"].lower() == "true"
            found = [one for one in found if one["properties"]["isDefault"] == wanted]
        return self._emulator.page(request, found)

    def read_datastore(self, request: Request) -> Answer:
        return Answer(200, self._datastore(request))

    def list_secrets(self, request: Request) -> Answer:
        self._datastore(request)
        return Answer(200, {"secretsType": "AccountKey", "key": self._emulator.storage.account().key})

    def _datastore(self, request: Request) -> dict[str, Any]:
        found = self._emulator.store.get(f"{self._id}/datastores/{request.parameters['name']}")
        if found is None:
            raise not_found(f"Could not find datastore: {request.parameters['name']}.")
        return found

    def list_usages(self, request: Request) -> Answer:
        """The region's limits, and what the clusters could take of them."""
        base = f"{self._emulator.scope.subscription_id}/providers/Microsoft.MachineLearningServices"
        cores: dict[str, int] = {}
        for cluster in self._emulator.store.list(f"{self._id}/computes"):
            inner = cluster["properties"]["properties"]
            size = SIZES[inner["vmSize"].upper()]
            count = int((inner.get("scaleSettings") or {}).get("minNodeCount") or 0)
            cores[size.family] = cores.get(size.family, 0) + size.cores * count
        families = sorted({size.family for size in SIZES.values()})
        usages = [
            _usage(f"{base}/usages", "totalCores", "Clusters", len(self._emulator.store.list(f"{self._id}/computes"))),
            _usage(f"{base}/usages", "dedicatedCores", "Total Cluster Dedicated Regional vCPUs", sum(cores.values())),
        ]
        for family in families:
            name = family_name(family)
            usages.append(_usage(f"{base}/usages/{name.replace(' ', '_')}", "vmFamily", name, cores.get(family, 0)))
        return self._emulator.page(request, usages)

    def list_sizes(self, request: Request) -> Answer:
        return Answer(200, {"value": [size.to_json() for size in SIZES.values()]})


def _usage(resource_id: str, kind: str, name: str, used: int) -> dict[str, Any]:
    return {
        "id": resource_id,
        "type": f"Microsoft.MachineLearningServices/{kind}/usages",
        "currentValue": used,
        "limit": _QUOTA,
        "name": {"localizedValue": name, "value": name},
        "unit": "Count",
    }
