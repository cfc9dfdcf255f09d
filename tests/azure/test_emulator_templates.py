"""From an empty subscription to a workspace and back, by the real clients, against an emulator that begins empty."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from azure.ai.ml import MLClient
from azure.ai.ml.entities import Data
from azure.core.credentials import AccessToken
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.identity import ManagedIdentityCredential
from azure.mgmt.resource.deployments import DeploymentsMgmtClient
from azure.storage.blob import BlobServiceClient, ContainerClient

from tests.azure.conftest import reach
from tests.azure.emptying import delete_group, purge_vault, purge_workspace
from tests.azure.foundation_template import TYPES, foundation_template, template
from tests.azure.workbench import until
from tests.azure_contract.exchange import logged
from tests.azure_contract.judge import Judge, contract_folder
from tests.azure_emulator.azurite import open_client
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE
from tests.azure_emulator.workspace import workspace_guid

_V = "?api-version=2022-09-01"
_GROUP = SCOPE.group
_NAME = "phitemplatetest"


class _Token:
    """A credential with one token."""

    def __init__(self, token: str) -> None:
        self._token = token

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken(self._token, int(time.time()) + 3600)


@pytest.fixture
def client(cloud: EmulatorProcess) -> Iterator[DeploymentsMgmtClient]:
    """The real client, for a subscription with one resource group."""
    answer = cloud.send("PUT", f"{SCOPE.group_id}{_V}", {"location": SCOPE.location})
    assert answer.status_code == 201, answer.text
    options = {"base_url": cloud.url, "credential_scopes": [f"{cloud.url}/.default"]}
    verify = {"connection_verify": cloud.env["REQUESTS_CA_BUNDLE"]}
    with DeploymentsMgmtClient(_Token(cloud.token()), SCOPE.subscription, **options, **verify) as opened:
        yield opened


def test_an_empty_subscription_becomes_a_workspace_that_the_sdk_uses(
    cloud: EmulatorProcess, client: DeploymentsMgmtClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """One deployment makes all; azure-ai-ml finds workspace and cluster, and uploads to the account that was named."""
    before = client.deployments.begin_what_if(_GROUP, "phiflow", _body()).result()
    assert {str(change.change_type.value) for change in before.changes} == {"Create"}
    assert cloud.inventory() == [SCOPE.group_id]
    done = client.deployments.begin_create_or_update(_GROUP, "phiflow", _body()).result()
    assert done.properties.provisioning_state == "Succeeded"
    assert done.properties.outputs["storage"]["value"].startswith(f"https://{_NAME}.blob.core.")
    operations = [one.properties for one in client.deployment_operations.list(_GROUP, "phiflow")]
    assert sorted(one.target_resource.resource_type for one in operations if one.target_resource) == sorted(TYPES)

    reach(cloud, monkeypatch)
    credential = ManagedIdentityCredential()
    quiet = {"show_progress": False, "enable_telemetry": False}
    ml = MLClient(credential, SCOPE.subscription, _GROUP, SCOPE.workspace, **quiet)
    assert ml.workspaces.get(SCOPE.workspace).storage_account.endswith(f"/storageAccounts/{_NAME}")
    assert ml.compute.get("cpu").size == "STANDARD_DS3_V2"
    (tmp_path / "chats.jsonl").write_text("{}")
    ml.data.create_or_update(Data(name="chats", version="1", path=str(tmp_path / "chats.jsonl"), type="uri_file"))
    store = ml.datastores.get_default()
    url = f"https://{store.account_name}.blob.{store.endpoint}/{store.container_name}"
    with ContainerClient.from_container_url(url, credential) as container:
        assert [one.name.rsplit("/", 1)[1] for one in container.list_blobs()] == ["chats.jsonl"]

    after = client.deployments.begin_what_if(_GROUP, "phiflow", _body()).result()
    assert {str(change.change_type.value) for change in after.changes} == {"NoChange"}
    again = client.deployments.begin_create_or_update(_GROUP, "phiflow", _body()).result()
    assert again.properties.outputs == done.properties.outputs


def test_what_if_tells_properties(cloud: EmulatorProcess, client: DeploymentsMgmtClient) -> None:
    """A change is told by path, with what was and what will be; what the template does not name is left alone."""
    client.deployments.begin_create_or_update(_GROUP, "logs", _body(_logs())).result()
    other = {"location": "westeurope", "tags": {}}
    path = f"{SCOPE.group_id}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/other"
    assert cloud.send("PUT", f"{path}?api-version=2023-01-31", other).status_code == 201
    wanted = _logs(days=60, tags={"phiflow": "2", "new": "x"})
    changes = client.deployments.begin_what_if(_GROUP, "logs", _body(wanted)).result().changes
    assert {change.change_type.value: change.resource_id.rsplit("/", 1)[1] for change in changes} == {
        "Modify": "phi-logs",
        "Ignore": "other",
    }
    (changed,) = [change for change in changes if change.change_type.value == "Modify"]
    told = {one.path: (one.property_change_type.value, one.before, one.after) for one in changed.delta}
    assert told == {
        "properties.retentionInDays": ("Modify", 30, 60),
        "tags.phiflow": ("Modify", "1", "2"),
        "tags.new": ("Create", None, "x"),
        "tags.old": ("Delete", "y", None),
    }


def test_a_deployment_that_failed_anywhere_goes_on(cloud: EmulatorProcess, client: DeploymentsMgmtClient) -> None:
    """At each resource: refused in the service's words, nothing behind it is made, and the next try makes the rest."""
    assert client.deployments.check_existence(_GROUP, "phiflow") is False
    for number, kind in enumerate(TYPES):
        cloud.add_scenario("fail", match={"kind": "template-resource", "name": f"^{kind}/"}, code="Busy", message="No.")
        with pytest.raises(HttpResponseError) as refused:
            client.deployments.begin_create_or_update(_GROUP, "phiflow", _body()).result()
        assert "DeploymentFailed" in str(refused.value), str(refused.value)
        assert "(Busy) No." in str(refused.value)
        assert client.deployments.check_existence(_GROUP, "phiflow") is True
        failed = [
            one.properties
            for one in client.deployment_operations.list(_GROUP, "phiflow")
            if one.properties.provisioning_state == "Failed"
        ]
        assert [one.target_resource.resource_type for one in failed] == [kind], number
        assert (failed[0].status_code, failed[0].status_message.error.code) == ("Conflict", "Busy")
    client.deployments.begin_create_or_update(_GROUP, "phiflow", _body()).result()
    kinds = [one.rsplit("/providers/", 1)[-1].split("/")[0:-1:2] for one in cloud.inventory()]
    assert len(kinds) == len(TYPES) + 2  # with the group and the deployment, and nothing twice


def test_one_deployment_at_a_time_by_name(cloud: EmulatorProcess, client: DeploymentsMgmtClient) -> None:
    """While one of the name runs, another is refused; a cancelled one leaves the name and what it has made."""
    cloud.add_scenario("stuck", match={"kind": "template-resource", "name": "phi-logs"})
    client.deployments.begin_create_or_update(_GROUP, "one", _body(_logs()), polling=False)
    with pytest.raises(ResourceExistsError, match="DeploymentActive"):
        client.deployments.begin_create_or_update(_GROUP, "one", _body(_logs()), polling=False)
    with pytest.raises(ResourceExistsError, match="DeploymentActive"):
        client.deployments.begin_delete(_GROUP, "one").result()
    client.deployments.cancel(_GROUP, "one")
    assert client.deployments.get(_GROUP, "one").properties.provisioning_state == "Canceled"
    client.deployments.begin_create_or_update(_GROUP, "one", _body(_logs())).result()
    client.deployments.begin_delete(_GROUP, "one").result()
    with pytest.raises(ResourceNotFoundError):
        client.deployments.get(_GROUP, "one")
    assert [one.rsplit("/", 1)[1] for one in cloud.inventory()] == [_GROUP, "phi-logs"]


@pytest.mark.slow
def test_a_killed_emulator_goes_on_with_the_deployment(cloud: EmulatorProcess, client: DeploymentsMgmtClient) -> None:
    """Whoever dies, Resource Manager does not: the deployment ends, and each resource is there once."""
    cloud.add_scenario("slow", match={"kind": "template-resource", "name": "phi-logs"}, seconds=30)
    client.deployments.begin_create_or_update(_GROUP, "one", _body(_logs()), polling=False)
    until(lambda: not cloud.waiting_scenarios())
    assert _states(client, "one") == ["Running"]
    cloud.kill()
    cloud.start()
    path = f"{SCOPE.group_id}/providers/Microsoft.Resources/deployments/one{_V}"
    state: Callable[[], Any] = lambda: cloud.send("GET", path).json()["properties"]["provisioningState"]  # noqa: E731
    until(lambda: state() == "Succeeded", 20)
    assert [one.rsplit("/", 1)[1] for one in cloud.inventory()] == [_GROUP, "phi-logs", "one"]


_REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "parameter missing": ({"parameters": {}}, "InvalidTemplate", "'name'.* is not provided"),
    "parameter unknown": ({"more": {"size": 1}}, "InvalidTemplate", "'size' in the parameters file are not valid"),
    "parameter of another type": ({"more": {"chat": "yes"}}, "InvalidTemplate", "Expected 'Bool'"),
    "parameter not allowed": ({"more": {"days": 31}}, "InvalidTemplate", "not part of the allowed value"),
    "parameter too short": ({"more": {"name": "ab"}}, "InvalidTemplate", "greater than or equal to '3'"),
    "unknown function": ({"first": {"name": "[newGuid()]"}}, "InvalidTemplate", "'newguid' is not valid"),
    "unknown type": ({"first": {"type": "Microsoft.Storage/boxes"}, "waits": False}, "InvalidResourceType", "'boxes'"),
    "unknown provider": ({"first": {"type": "Box.Box/boxes"}, "waits": False}, "InvalidResourceNamespace", "'Box.Box'"),
    "unknown version": ({"first": {"apiVersion": "1999-01-01"}}, "NoRegisteredProviderFound", "'1999-01-01'"),
    "no location": ({"first": {"location": None}}, "LocationRequired", "location property is required"),
    "no such location": ({"more": {"location": "mars"}}, "LocationNotAvailableForResourceType", "'mars'"),
    "invalid name": (
        {"first": {"name": "Phi_Store"}, "waits": False},
        "InvalidTemplateDeployment",
        "AccountNameInvalid",
    ),
    "depends on nothing": ({"first": {"dependsOn": ["x"]}}, "InvalidTemplate", "'x' is not defined in the template"),
    "depends in a circle": ({"first": {"dependsOn": ["[parameters('workspace')]"]}}, "InvalidTemplate", "Circular"),
    "unknown member": ({"first": {"copy": {"count": 2}}}, "InvalidTemplate", "'copy'"),
    "names do not fit": ({"first": {"name": "a/b"}}, "InvalidTemplate", "incorrect segment lengths"),
}


@pytest.mark.parametrize("case", _REFUSED)
def test_what_resource_manager_refuses_is_refused(
    case: str, cloud: EmulatorProcess, client: DeploymentsMgmtClient
) -> None:
    """Before anything is made, by validate, by what-if and by the deployment itself, in the same words."""
    change, code, words = _REFUSED[case]
    body = _body(_changed(change), {**({} if "parameters" in change else _parameters()), **_values(change)})
    with pytest.raises(HttpResponseError, match=words) as refused:
        client.deployments.begin_create_or_update(_GROUP, "phiflow", body)
    assert refused.value.error is not None
    assert refused.value.error.code == code
    with pytest.raises(HttpResponseError) as invalid:
        client.deployments.begin_validate(_GROUP, "phiflow", body)
    assert invalid.value.error is not None
    assert invalid.value.error.code == code
    told = client.deployments.begin_what_if(_GROUP, "phiflow", body).result()
    assert (told.status, told.error.code) == ("Failed", code)
    assert cloud.inventory() == [SCOPE.group_id]


def test_names_of_others_are_not_to_be_had(cloud: EmulatorProcess, client: DeploymentsMgmtClient) -> None:
    """A storage account's name is refused before anything is made, a deleted vault's by its provider until purged."""
    cloud.configure(f"taken-names/{_NAME}", {})
    check = f"{SCOPE.subscription_id}/providers/Microsoft.Storage/checkNameAvailability?api-version=2024-01-01"
    asked = {"name": _NAME, "type": "Microsoft.Storage/storageAccounts"}
    assert cloud.send("POST", check, asked).json()["reason"] == "AlreadyExists"
    with pytest.raises(HttpResponseError, match="StorageAccountAlreadyTaken"):
        client.deployments.begin_create_or_update(_GROUP, "phiflow", _body())
    cloud.configure(f"taken-names/{_NAME}")
    cloud.control("PUT", f"deleted-vaults/{_NAME}", {})
    vault = _only("Microsoft.KeyVault/vaults")
    with pytest.raises(HttpResponseError, match=r"ConflictError.* already exists in deleted state"):
        client.deployments.begin_create_or_update(_GROUP, "phiflow", _body(vault)).result()
    purge_vault(cloud, _NAME)
    client.deployments.begin_create_or_update(_GROUP, "phiflow", _body(vault)).result()


def test_deleting_a_group_leaves_what_azure_leaves(cloud: EmulatorProcess, client: DeploymentsMgmtClient) -> None:
    """Its resources and deployments are gone; a vault and a workspace are deleted and keep their names until purged."""
    client.deployments.begin_create_or_update(_GROUP, "phiflow", _body()).result()
    _blobs(cloud).create_container("mine")
    tagged = f"{_V}&$filter=tagName eq 'phiflow' and tagValue eq '1'"
    assert len(cloud.send("GET", f"{SCOPE.subscription_id}/resources{tagged}").json()["value"]) == len(TYPES) - 3
    delete_group(cloud)
    assert cloud.send("GET", f"{SCOPE.workspace_id}/jobs?api-version=2024-10-01-preview").status_code == 404
    left = [one.rsplit("/", 2)[1:] for one in cloud.inventory()]
    assert sorted(left) == [["deletedVaults", _NAME], ["workspaces", SCOPE.workspace]]
    purge_workspace(cloud)
    purge_vault(cloud, _NAME)
    assert client.deployments.begin_create_or_update(_GROUP, "phiflow", _body()).result().properties.error is None
    made = {one.name for one in _blobs(cloud).list_containers()}
    assert made == {"azureml", f"azureml-blobstore-{workspace_guid(SCOPE.workspace_id)}"}


def test_all_of_it_is_as_described(empty_emulator: EmulatorProcess) -> None:
    """What passed for these tests holds against Microsoft's descriptions and the recordings."""
    folder = contract_folder()
    if folder is None:
        pytest.skip("Microsoft's descriptions are not on this machine")
    found = Judge(folder).findings(logged(empty_emulator.log))
    assert [str(one) for one in found] == []


def _body(given: dict[str, Any] | None = None, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
    declared = (given or foundation_template()).get("parameters", {})
    values = _parameters() if parameters is None else parameters
    if parameters is None:
        values = {name: value for name, value in values.items() if name in declared}
    kept = {name: {"value": value} for name, value in values.items()}
    return {"properties": {"mode": "Incremental", "template": given or foundation_template(), "parameters": kept}}


def _parameters() -> dict[str, Any]:
    return {"name": _NAME, "workspace": SCOPE.workspace}


def _values(change: dict[str, Any]) -> dict[str, Any]:
    return dict(change.get("more") or change.get("parameters") or {})


def _changed(change: dict[str, Any]) -> dict[str, Any]:
    """The foundation with its first resource, the storage account, changed; alone when nothing may wait for it."""
    made = foundation_template()
    first = {**made["resources"][0], **change.get("first", {})}
    made["resources"][0] = {key: value for key, value in first.items() if value is not None}
    if not change.get("waits", True):
        made = {**made, "resources": made["resources"][:1], "outputs": {}}
    return made


def _only(kind: str) -> dict[str, Any]:
    made = foundation_template()
    return {**made, "resources": [one for one in made["resources"] if one["type"] == kind], "outputs": {}}


def _logs(days: int = 30, tags: dict[str, str] | None = None) -> dict[str, Any]:
    return template(
        {
            "type": "Microsoft.OperationalInsights/workspaces",
            "apiVersion": "2025-07-01",
            "name": "phi-logs",
            "location": "West Europe",
            "tags": tags or {"phiflow": "1", "old": "y"},
            "properties": {"retentionInDays": days},
        }
    )


def _blobs(cloud: EmulatorProcess) -> BlobServiceClient:
    """The workspace's storage account."""
    return open_client(json.loads((cloud.state / "emulator" / "secrets" / "storage.json").read_text()))


def _states(client: DeploymentsMgmtClient, name: str) -> list[str]:
    return [str(one.properties.provisioning_state) for one in client.deployment_operations.list(_GROUP, name)]
