"""The workspace itself and what comes with it: datastores and their keys, quota, sizes of machines."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.names import ACCOUNT, PRINCIPAL, STORAGE_ENDPOINT, TENANT
from tests.azure_emulator.sizes import SIZES, family_name
from tests.azure_emulator.web import Answer, Request, not_found, now

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

ARTIFACT_CONTAINER = "azureml"
_QUOTA = 500


def install(emulator: Emulator) -> None:
    """Register the routes, and make the datastores when they are not there."""
    workspace = Workspace(emulator)
    workspace.ensure_datastores()
    register = emulator.register
    register("GET", "W", workspace.read)
    register("POST", "W/listKeys", workspace.list_keys)
    register("GET", "W/datastores", workspace.list_datastores)
    register("GET", "W/datastores/{name}", workspace.read_datastore)
    register("POST", "W/datastores/{name}/listSecrets", workspace.list_secrets)
    register("GET", "L/usages", workspace.list_usages)
    register("GET", "L/vmSizes", workspace.list_sizes)
    register("GET", "G", workspace.read_group)


class Workspace:
    """Answers for one workspace."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._id = emulator.workspace_id
        self._guid = str(uuid.uuid5(uuid.NAMESPACE_URL, self._id))

    def read(self, request: Request) -> Answer:
        emulator, group = self._emulator, self._emulator.scope.group_id
        name = emulator.scope.workspace
        host = emulator.url.removeprefix("https://")
        created = {"createdAt": emulator.created, "createdBy": "Emulator", "createdByType": "User"}
        return Answer(
            200,
            {
                "id": self._id,
                "name": name,
                "type": "Microsoft.MachineLearningServices/workspaces",
                "location": emulator.scope.location,
                "tags": {},
                "properties": {
                    "friendlyName": name,
                    "description": "The emulator's workspace.",
                    "storageAccount": f"{group}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}",
                    "keyVault": f"{group}/providers/Microsoft.Keyvault/vaults/phiflowemulated",
                    "applicationInsights": f"{group}/providers/Microsoft.insights/components/phiflowemulated",
                    "hbiWorkspace": False,
                    "tenantId": TENANT,
                    "imageBuildCompute": None,
                    "provisioningState": "Succeeded",
                    "v1LegacyMode": False,
                    "containerRegistry": f"{group}/providers/Microsoft.ContainerRegistry/registries/phiflowemulated",
                    "notebookInfo": None,
                    "storageHnsEnabled": False,
                    "workspaceId": self._guid,
                    "privateLinkCount": 0,
                    "publicNetworkAccess": "Enabled",
                    "discoveryUrl": f"{emulator.url}/discovery",
                    "mlFlowTrackingUri": f"azureml://{host}/mlflow/v1.0{self._id}",
                    "enableDataIsolation": False,
                },
                "identity": {"type": "SystemAssigned", "principalId": PRINCIPAL, "tenantId": TENANT},
                "kind": "Default",
                "sku": {"name": "Basic", "tier": "Basic"},
                "systemData": {
                    **created,
                    "lastModifiedAt": emulator.created,
                    "lastModifiedBy": "Emulator",
                    "lastModifiedByType": "User",
                },
            },
        )

    def list_keys(self, request: Request) -> Answer:
        storage = f"{self._emulator.scope.group_id}/providers/Microsoft.Storage/storageAccounts/{ACCOUNT}"
        return Answer(200, {"userStorageKey": self._emulator.account.key, "userStorageResourceId": storage})

    def read_group(self, request: Request) -> Answer:
        scope = self._emulator.scope
        return Answer(
            200,
            {
                "id": scope.group_id,
                "name": scope.group,
                "type": "Microsoft.Resources/resourceGroups",
                "location": scope.location,
                "tags": {},
                "properties": {"provisioningState": "Succeeded"},
            },
        )

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
                "accountName": ACCOUNT,
                **place,
                "endpoint": f"{STORAGE_ENDPOINT}:{self._emulator.account.port}",
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
        return Answer(200, {"secretsType": "AccountKey", "key": self._emulator.account.key})

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
