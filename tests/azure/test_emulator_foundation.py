"""Resources below a workspace, one by one: made, read, listed, changed, refused and deleted as providers do it."""

from __future__ import annotations

from typing import Any

import psutil
import pytest

from tests.azure.emptying import delete_group
from tests.azure.workbench import Workbench, until
from tests.azure_emulator.names import PRINCIPAL, TENANT
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.resource_types import TYPES
from tests.azure_emulator.server import SCOPE
from tests.azure_emulator.workspace import seed_bodies

_V = "?api-version=2022-09-01"
_G = SCOPE.group_id
_HERE = {"location": "westeurope", "tags": {"phiflow": "1"}}
_READER = "2a2b9908-6ea1-4ae2-8e65-a410df84e7d1"  # Storage Blob Data Reader
_OTHER_ROLE = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"  # Storage Blob Data Contributor
_GUIDS = [f"{number}0000000-0000-0000-0000-000000000000" for number in range(3)]
_VAULT = {"tenantId": TENANT, "sku": {"family": "A", "name": "standard"}, "enableRbacAuthorization": True}
_BUDGET = {
    **{"category": "Cost", "amount": 5, "timeGrain": "Monthly", "timePeriod": {"startDate": "2026-11-01"}},
    "notifications": {"n": {"contactEmails": ["a@example.com"], "threshold": 80, "operator": "GreaterThan"}},
}
_BODIES: dict[str, dict[str, Any]] = {
    "Microsoft.Storage/storageAccounts": {**_HERE, "kind": "StorageV2", "sku": {"name": "Standard_LRS"}},
    "Microsoft.KeyVault/vaults": {**_HERE, "properties": _VAULT},
    "Microsoft.OperationalInsights/workspaces": {**_HERE, "properties": {"retentionInDays": 30}},
    "Microsoft.Insights/components": {**_HERE, "kind": "web", "properties": {"Application_Type": "web"}},
    "Microsoft.ContainerRegistry/registries": {**_HERE, "sku": {"name": "Basic"}},
    "Microsoft.ManagedIdentity/userAssignedIdentities": _HERE,
    "Microsoft.DocumentDB/databaseAccounts": {
        **_HERE,
        "properties": {"databaseAccountOfferType": "Standard", "locations": [{"locationName": "westeurope"}]},
    },
    "Microsoft.Consumption/budgets": {"properties": _BUDGET},
}


@pytest.fixture(autouse=True)
def group(cloud: EmulatorProcess) -> None:
    """A resource group to make things in."""
    assert cloud.send("PUT", f"{_G}{_V}", _HERE).status_code == 201


@pytest.mark.parametrize("kind", _BODIES)
def test_a_resource_is_made_read_listed_changed_and_deleted(kind: str, cloud: EmulatorProcess) -> None:
    """Directly, by its id, with the statuses of Resource Manager; made twice it is one."""
    path, tracked = _id(kind, "phione"), TYPES[kind.lower()].tracked
    made = _put(cloud, path, _BODIES[kind])
    assert (made.status_code, _put(cloud, path, _BODIES[kind]).status_code) == (201, 200)
    read = cloud.send("GET", _at(path)).json()
    assert (read["id"], read["type"], read.get("tags")) == (path, kind, {"phiflow": "1"} if tracked else None)
    assert read.items() >= {key: value for key, value in made.json().items() if key != "eTag"}.items()
    for place in (_G, SCOPE.subscription_id) if tracked else (_G,):
        found = cloud.send("GET", _at(f"{place}/providers/{kind}", kind)).json()["value"]
        assert [one["id"] for one in found] == [path]
    for wanted in (f"resourceType eq '{kind}'", "tagName eq 'phiflow' and tagValue eq '1'", "name eq 'PHIONE'"):
        found = cloud.send("GET", f"{_G}/resources{_V}&$filter={wanted}").json()["value"]
        assert [one["id"] for one in found] == ([path] if tracked else [])
    if tracked:
        assert cloud.send("PATCH", _at(path), {"tags": {"a": "b"}}).json()["tags"] == {"a": "b"}
    assert cloud.send("DELETE", _at(path)).status_code == 200
    assert (cloud.send("GET", _at(path)).status_code, cloud.send("DELETE", _at(path)).status_code) == (404, 204)


_MOVED = "InvalidResourceLocation"
_REFUSED: dict[str, tuple[str, dict[str, Any], int, str]] = {
    "no group": ("../none/providers/Microsoft.KeyVault/vaults/phione", {}, 404, "ResourceGroupNotFound"),
    "another region": ("Microsoft.ManagedIdentity/userAssignedIdentities/one", {"location": "eastus"}, 409, _MOVED),
    "unknown member": (
        "Microsoft.ManagedIdentity/userAssignedIdentities/two",
        {"tag": {}},
        400,
        "InvalidRequestContent",
    ),
    "no such namespace": ("Box.Box/boxes/b", {}, 404, "InvalidResourceNamespace"),
    "no parent": ("Microsoft.Storage/storageAccounts/absent/blobServices/default", {}, 404, "ParentResourceNotFound"),
    "name of a registry": ("Microsoft.ContainerRegistry/registries/a-b-c", {}, 400, "InvalidResourceName"),
    "name of a vault": ("Microsoft.KeyVault/vaults/phi--one", {"properties": _VAULT}, 400, "VaultNameNotValid"),
    "vault without tenant": ("Microsoft.KeyVault/vaults/phione", {"properties": {}}, 400, "BadRequest"),
    "no logs": (
        "Microsoft.Insights/components/i",
        {"properties": {"Application_Type": "web", "WorkspaceResourceId": f"{_G}/providers/a/b/c"}},
        400,
        "BadRequest",
    ),
    "workspace on nothing": (
        "Microsoft.MachineLearningServices/workspaces/phiflow-emulated",
        {"properties": {field: f"{_G}/x" for field in ("storageAccount", "keyVault", "applicationInsights")}},
        400,
        "ValidationError",
    ),
    "workspace without": ("Microsoft.MachineLearningServices/workspaces/phiflow-emulated", {}, 400, "ValidationError"),
    "budget in the middle": (
        "Microsoft.Consumption/budgets/b",
        {"properties": {**_BUDGET, "timePeriod": {"startDate": "2026-11-15"}}},
        400,
        "400",
    ),
    "budget for nobody": (
        "Microsoft.Consumption/budgets/b",
        {"properties": {**_BUDGET, "notifications": {"n": {"contactEmails": []}}}},
        400,
        "400",
    ),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_providers_refuse_is_refused(case: str, cloud: EmulatorProcess) -> None:
    """With the status and the code of the provider, and nothing is made."""
    tail, change, status, code = _REFUSED[case]
    _put(cloud, _id("Microsoft.ManagedIdentity/userAssignedIdentities", "one"), _HERE)
    before = cloud.inventory()
    path = f"{_G}/providers/{tail}" if not tail.startswith("../") else f"{_G.rsplit('/', 1)[0]}/{tail[3:]}"
    body = {} if "budgets" in tail else _HERE
    answer = _put(cloud, path, {**body, **change})
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text
    assert cloud.inventory() == before


def test_groups_are_made_where_they_are(cloud: EmulatorProcess) -> None:
    """A group stays in its region; its tags change; it is listed, by tag too; what it is not, it is told."""
    assert cloud.send("PUT", f"{_G}{_V}", {"location": "West Europe", "tags": {"a": "1"}}).status_code == 200
    moved = cloud.send("PUT", f"{_G}{_V}", {"location": "eastus"})
    assert (moved.status_code, moved.json()["error"]["code"]) == (409, "InvalidResourceGroupLocation")
    assert cloud.send("PATCH", f"{_G}{_V}", {"tags": {"phiflow": "1"}}).json()["tags"] == {"phiflow": "1"}
    cloud.send("PUT", f"{_G}-other{_V}", {"location": "eastus"})
    listed = f"{SCOPE.subscription_id}/resourcegroups{_V}"
    assert [one["name"] for one in cloud.send("GET", listed).json()["value"]] == [SCOPE.group, f"{SCOPE.group}-other"]
    tagged = cloud.send("GET", f"{listed}&$filter=tagName eq 'phiflow' and tagValue eq '1'").json()["value"]
    assert [one["name"] for one in tagged] == [SCOPE.group]
    assert [cloud.send("HEAD", f"{_G}{tail}{_V}").status_code for tail in ("", "-other", "-none")] == [204, 204, 404]
    refused = cloud.send("PUT", f"{_G}!{_V}", _HERE)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "InvalidResourceGroupName")


def test_a_role_is_given_once(cloud: EmulatorProcess) -> None:
    """Twice the same is the same; another content or another name for it is refused, and so is nobody."""
    vault = _id("Microsoft.KeyVault/vaults", "phione")
    _put(cloud, vault, {**_HERE, "properties": _VAULT})
    made, again, content, name, absent, unknown = (
        _assign(cloud, scope, guid, role, principal)
        for scope, guid, role, principal in (
            (vault, _GUIDS[0], _READER, PRINCIPAL),
            (vault, _GUIDS[0], _READER, PRINCIPAL),
            (vault, _GUIDS[0], _OTHER_ROLE, PRINCIPAL),
            (vault, _GUIDS[1], _READER, PRINCIPAL),
            (f"{vault}2", _GUIDS[1], _READER, PRINCIPAL),
            (_G, _GUIDS[2], _READER, _GUIDS[2]),
        )
    )
    assert (made, again) == ((201, ""), (200, ""))
    assert content == (409, "RoleAssignmentUpdateNotPermitted")
    assert name == (409, "RoleAssignmentExists")
    assert absent == (404, "ResourceNotFound")
    assert unknown == (400, "PrincipalNotFound")
    assert cloud.send("DELETE", _at(vault)).status_code == 200
    assert [one for one in cloud.inventory() if "roleAssignments" in one] == []


def test_a_vault_comes_back_or_goes(cloud: EmulatorProcess) -> None:
    """Deleted, it blocks its name and can be recovered; protected, it cannot be purged."""
    path = _id("Microsoft.KeyVault/vaults", "phione")
    body = {**_HERE, "properties": _VAULT}
    _put(cloud, path, body)
    cloud.send("DELETE", _at(path))
    blocked = _put(cloud, path, body)
    assert (blocked.status_code, blocked.json()["error"]["code"]) == (409, "ConflictError")
    provider = f"{SCOPE.subscription_id}/providers/Microsoft.KeyVault"
    asked = {"name": "phione", "type": "Microsoft.KeyVault/vaults"}
    told = cloud.send("POST", f"{provider}/checkNameAvailability?api-version=2024-11-01", asked).json()
    assert (told["nameAvailable"], told["reason"]) == (False, "AlreadyExists")
    deleted = cloud.send("GET", f"{provider}/deletedVaults?api-version=2024-11-01").json()["value"]
    assert [one["properties"]["vaultId"] for one in deleted] == [path]
    recovered = _put(cloud, path, {**_HERE, "properties": {**_VAULT, "createMode": "recover"}})
    assert recovered.status_code == 201
    assert cloud.send("GET", f"{provider}/deletedVaults?api-version=2024-11-01").json()["value"] == []


def test_a_workspace_goes_as_azures_do(cloud: EmulatorProcess) -> None:
    """Not while it has endpoints; then deleted and not gone until purged; with its group, its endpoints go too."""
    _seed(cloud)
    endpoint = f"{SCOPE.workspace_id}/onlineEndpoints/phi-gone?api-version=2022-02-01-preview"
    body = {**_HERE, "identity": {"type": "SystemAssigned"}, "properties": {"authMode": "Key"}}
    assert cloud.send("PUT", endpoint, body).status_code == 201
    workspace = f"{SCOPE.workspace_id}?api-version=2024-10-01-preview"
    refused = cloud.send("DELETE", f"{workspace}&forceToPurge=true")
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "CannotDeleteResource")
    delete_group(cloud)
    assert SCOPE.workspace_id in cloud.inventory()
    cloud.send("PUT", f"{_G}{_V}", _HERE)
    for path, wanted in seed_bodies(SCOPE).items():
        if path != SCOPE.workspace_id and "vaults" not in path:
            assert _put(cloud, path, wanted).status_code == 201
    assert "/onlineEndpoints/" not in str(cloud.inventory())
    blocked = _put(cloud, SCOPE.workspace_id, {**_HERE, "properties": _wanted_properties()})
    assert (blocked.status_code, "Soft-deleted workspace exists." in blocked.text) == (400, True)


@pytest.mark.slow
def test_what_runs_in_a_workspace_ends_with_it(cloud: EmulatorProcess) -> None:
    """A job is ended and forgotten; in the workspace that is made again, its name is free."""
    _seed(cloud)
    bench = Workbench(cloud)
    bench.submit("same", bench.job("sleep 600", bench.cluster("cpu", 1)))
    until(lambda: bench.status("same") == "Running")
    (command,) = _running("sleep 600")
    assert cloud.send("DELETE", f"{SCOPE.workspace_id}?api-version=2024-10-01-preview&forceToPurge=true").ok
    until(lambda: SCOPE.workspace_id not in cloud.inventory())
    assert not psutil.pid_exists(command)
    _seed(cloud)
    bench = Workbench(cloud)
    bench.submit("same", bench.job("true", bench.cluster("cpu", 1)))
    assert bench.ended("same") == "Completed"


def _running(command: str) -> list[int]:
    """The processes with this command line."""
    return [one.pid for one in psutil.process_iter(["cmdline"]) if " ".join(one.info["cmdline"] or []) == command]


def _seed(cloud: EmulatorProcess) -> None:
    for path, body in seed_bodies(SCOPE).items():
        assert _put(cloud, path, body).ok


def _wanted_properties() -> dict[str, Any]:
    properties: dict[str, Any] = seed_bodies(SCOPE)[SCOPE.workspace_id]["properties"]
    return properties


def _assign(cloud: EmulatorProcess, scope: str, guid: str, role: str, principal: str) -> tuple[int, str]:
    """Status and code of the answer."""
    definition = f"{SCOPE.subscription_id}/providers/Microsoft.Authorization/roleDefinitions/{role}"
    path = f"{scope}/providers/Microsoft.Authorization/roleAssignments/{guid}?api-version=2022-04-01"
    answer = cloud.send("PUT", path, {"properties": {"roleDefinitionId": definition, "principalId": principal}})
    return answer.status_code, answer.json().get("error", {}).get("code", "")


def _id(kind: str, name: str) -> str:
    return f"{_G}/providers/{kind}/{name}"


def _at(path: str, kind: str = "") -> str:
    """The path with an api-version that its type knows."""
    names = path.split("/providers/")[-1].split("/")
    known = TYPES.get((kind or "/".join([names[0], *names[1::2]])).lower())
    return f"{path}?api-version={known.versions[-1] if known else '2024-01-01'}"


def _put(cloud: EmulatorProcess, path: str, body: dict[str, Any]) -> Any:
    return cloud.send("PUT", _at(path), body)
