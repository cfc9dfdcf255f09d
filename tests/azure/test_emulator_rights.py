"""Who may do what in the emulated cloud: roles, their assignments, effective permissions, and refusals."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from tests.azure.bodies import cluster_body
from tests.azure_emulator.action_names import Asked, asked_of
from tests.azure_emulator.names import PRINCIPAL
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.roles import ROLES, find_role
from tests.azure_emulator.server import SCOPE

S, G, W = SCOPE.subscription_id, SCOPE.group_id, SCOPE.workspace_id
L = f"{S}/providers/Microsoft.MachineLearningServices/locations/{SCOPE.location}"
STABLE, ROLE = "api-version=2024-04-01", "api-version=2022-04-01"
ML = "Microsoft.MachineLearningServices"
REGISTRIES = "Microsoft.ContainerRegistry/registries"
AUTHORIZATION = "providers/Microsoft.Authorization"


@pytest.fixture
def cloud(emulator: EmulatorProcess) -> Iterator[EmulatorProcess]:
    """The emulator, as it was again afterwards."""
    yield emulator
    emulator.reset()


def become(cloud: EmulatorProcess, **roles: str) -> None:
    """Be nobody but the holder of a role at each of the scopes S, G and W."""
    scopes = {"S": S, "G": G, "W": W}
    cloud.configure("caller", {"roles": [{"scope": scopes[at], "role": role} for at, role in roles.items()]})


def status(cloud: EmulatorProcess, method: str, path: str, body: Any = None) -> int:
    """The status of an answer; a path without a version gets a usual one."""
    return cloud.send(method, path if "?" in path else f"{path}?{STABLE}", body).status_code


def found(cloud: EmulatorProcess, path: str, told: str = "") -> list[dict[str, Any]]:
    """A list of Microsoft.Authorization."""
    more = f"&$filter={told}" if told else ""
    value: list[dict[str, Any]] = cloud.send("GET", f"{path}?{ROLE}{more}").json()["value"]
    return value


@pytest.mark.parametrize(
    ("method", "path", "action", "scope"),
    [
        ("PUT", G, "Microsoft.Resources/subscriptions/resourceGroups/write", G),
        ("GET", f"{W}/jobs/a", f"{ML}/workspaces/jobs/read", f"{W}/jobs/a"),
        ("GET", f"{W}/jobs", f"{ML}/workspaces/jobs/read", W),
        ("POST", f"{W}/onlineEndpoints/e/listKeys", f"{ML}/workspaces/onlineEndpoints/listKeys/action", None),
        ("DELETE", f"{W}/computes/c", f"{ML}/workspaces/computes/delete", None),
        ("PATCH", W, f"{ML}/workspaces/write", W),
        ("GET", f"{S}/providers/Microsoft.Storage", "Microsoft.Resources/subscriptions/providers/read", S),
        ("POST", f"{S}/providers/Microsoft.Storage/register", "Microsoft.Storage/register/action", S),
        ("GET", f"{G}/resources", "Microsoft.Resources/subscriptions/resourceGroups/resources/read", G),
        (
            "POST",
            f"{G}/providers/Microsoft.Resources/deployments/d/whatIf",
            "Microsoft.Resources/deployments/whatIf/action",
            f"{G}/providers/Microsoft.Resources/deployments/d",
        ),
        ("GET", f"{G}/deployments/d/operations", "Microsoft.Resources/deployments/operations/read", G),
        (
            "GET",
            f"{S}/providers/Microsoft.Compute/skus",
            "Microsoft.Compute/skus/read",
            S,
        ),
        (
            "PUT",
            f"{W}/{AUTHORIZATION}/roleAssignments/{uuid.UUID(int=1)}",
            "Microsoft.Authorization/roleAssignments/write",
            f"{W}/{AUTHORIZATION}/roleAssignments/{uuid.UUID(int=1)}",
        ),
        ("PUT", f"{L}/providers/Microsoft.Quota/quotas/f", "Microsoft.Quota/quotas/write", None),
    ],
)
def test_every_request_has_the_action_that_azure_names(method: str, path: str, action: str, scope: str | None) -> None:
    """By the type of the resource and the verb, over the resource, or over what a collection belongs to."""
    asked = asked_of(method, path)
    assert asked is not None and asked.action == action
    assert scope is None or asked == Asked(action, scope)


@pytest.mark.parametrize(
    "path",
    [S, f"{S}/locations", f"{S}/operationresults/x", f"{L}/mfeOperationsStatus/x", f"{G}/{AUTHORIZATION}/permissions"],
)
def test_some_questions_need_no_role(path: str) -> None:
    """The states of operations, one's own permissions, and the subscription that one has a role somewhere in."""
    assert asked_of("GET", path) is None


@pytest.mark.parametrize(
    ("role", "may", "may_not"),
    [
        ("Owner", ["Microsoft.Authorization/roleAssignments/write"], []),
        (
            "Contributor",
            [f"{ML}/workspaces/write", "Microsoft.Storage/register/action"],
            ["Microsoft.Authorization/roleAssignments/write", "Microsoft.Authorization/locks/delete"],
        ),
        ("Reader", [f"{ML}/workspaces/jobs/read"], [f"{ML}/workspaces/jobs/write", f"{ML}/workspaces/listKeys/action"]),
        ("User Access Administrator", ["Microsoft.Authorization/roleAssignments/write"], [f"{ML}/workspaces/write"]),
        (
            "AzureML Data Scientist",
            [f"{ML}/workspaces/read", f"{ML}/workspaces/jobs/write", f"{ML}/workspaces/onlineEndpoints/delete"],
            [f"{ML}/workspaces/write", f"{ML}/workspaces/computes/write", f"{ML}/workspaces/listKeys/action"],
        ),
        ("AzureML Compute Operator", [f"{ML}/workspaces/computes/write"], [f"{ML}/workspaces/jobs/write"]),
        ("AcrPull", [f"{REGISTRIES}/pull/read"], [f"{REGISTRIES}/read", f"{REGISTRIES}/push/write"]),
    ],
)
def test_roles_allow_what_their_descriptions_say(role: str, may: list[str], may_not: list[str]) -> None:
    """Actions less the ones that are taken out; case does not matter."""
    known = find_role(role)
    assert known is not None and known == find_role(known.guid)
    assert [action for action in may if not known.allows(action.upper())] == []
    assert [action for action in may_not if known.allows(action)] == []


def test_a_refusal_names_who_what_and_where(cloud: EmulatorProcess) -> None:
    """In the service's words, which a client looks for."""
    become(cloud, S="Reader")
    refused = cloud.send("PUT", f"{W}/computes/mine?{STABLE}", cluster_body())
    told = refused.json()["error"]
    assert (refused.status_code, told["code"]) == (403, "AuthorizationFailed")
    pattern = (
        rf"The client '\S+' with object id '{PRINCIPAL}' does not have authorization to perform action "
        rf"'{ML}/workspaces/computes/write' over scope '{W}/computes/mine' or the scope is invalid\."
    )
    assert re.match(pattern, told["message"])


def test_a_role_counts_below_its_scope_only(cloud: EmulatorProcess) -> None:
    """A Contributor of the group may read its workspace, and neither the quota of the region nor the providers."""
    become(cloud, G="Contributor")
    assert status(cloud, "GET", W) == 200
    assert status(cloud, "PUT", f"{W}/computes/c-1", {}) == 400  # not 403
    assert status(cloud, "GET", f"{L}/usages") == 403
    assert status(cloud, "GET", f"{S}/providers/Microsoft.Storage?api-version=2021-04-01") == 403
    assert status(cloud, "GET", f"{S}?api-version=2022-12-01") == 200  # it is seen by whoever has a role in it
    assert status(cloud, "POST", f"{S}/providers/Microsoft.Storage/register?api-version=2021-04-01") == 403


def test_nobody_sees_the_subscription_without_a_role(cloud: EmulatorProcess) -> None:
    """It is not listed, and reading it is refused; one's permissions are none."""
    become(cloud)
    assert cloud.send("GET", "/subscriptions?api-version=2022-12-01").json()["value"] == []
    assert status(cloud, "GET", f"{S}?api-version=2022-12-01") == 403
    assert status(cloud, "GET", W) == 403
    assert found(cloud, f"{G}/{AUTHORIZATION}/permissions") == []


def test_a_data_scientist_trains_and_makes_no_cluster(cloud: EmulatorProcess) -> None:
    """What the role's description says, request by request."""
    become(cloud, W="AzureML Data Scientist")
    assert status(cloud, "GET", W) == 200
    assert status(cloud, "GET", f"{W}/jobs") == 200
    assert status(cloud, "POST", f"{W}/datastores/workspaceblobstore/listSecrets") == 200
    assert status(cloud, "PUT", f"{W}/computes/c-1", cluster_body()) == 403
    assert status(cloud, "POST", f"{W}/listKeys") == 403


def test_effective_permissions_are_the_roles_at_the_scope_and_above(cloud: EmulatorProcess) -> None:
    """One entry a role, with its actions and those taken out; a role below the scope has none there."""
    become(cloud, S="Reader", G="Contributor", W="AzureML Data Scientist")

    def actions(scope: str) -> list[str]:
        return [one["actions"][0] for one in found(cloud, f"{scope}/{AUTHORIZATION}/permissions")]

    scientist = ROLES["AzureML Data Scientist"].actions[0]
    assert actions(S) == ["*/read"]
    assert actions(G) == ["*/read", "*"]
    assert actions(W) == ["*/read", "*", scientist]
    taken = found(cloud, f"{G}/{AUTHORIZATION}/permissions")[1]["notActions"]
    assert "Microsoft.Authorization/*/Write" in taken
    cloud.configure("caller", {"roles": [{"scope": G[:-1], "role": "Owner"}]})
    assert actions(G) == []


def test_a_role_that_is_written_out_counts_as_well(cloud: EmulatorProcess) -> None:
    """As a company's own roles are."""
    own = {"scope": S, "role": "Trainer", "actions": [f"{ML}/workspaces/read"], "notActions": []}
    cloud.configure("caller", {"roles": [own]})
    assert status(cloud, "GET", W) == 200
    assert status(cloud, "GET", f"{W}/jobs") == 403


def test_role_definitions_are_found_by_name_and_by_guid(cloud: EmulatorProcess) -> None:
    """With the identifiers that Azure gave them, wherever they are asked for."""
    for name, role in ROLES.items():
        one = found(cloud, f"{G}/{AUTHORIZATION}/roleDefinitions", f"roleName eq '{name}'")
        assert [definition["name"] for definition in one] == [role.guid]
    reader = ROLES["Reader"].guid
    read = cloud.send("GET", f"{S}/{AUTHORIZATION}/roleDefinitions/{reader}?{ROLE}").json()
    assert read["properties"]["roleName"] == "Reader"
    assert status(cloud, "GET", f"{S}/{AUTHORIZATION}/roleDefinitions/{uuid.UUID(int=9)}?{ROLE}") == 404


def test_assignments_are_listed_by_scope_and_principal(cloud: EmulatorProcess) -> None:
    """Those above and below a scope, or with atScope() not the ones below; of one principal when it is named."""
    become(cloud, S="Owner", W="Reader")
    path = f"{AUTHORIZATION}/roleAssignments"

    def scopes(scope: str, told: str = "") -> list[str]:
        return [one["properties"]["scope"] for one in found(cloud, f"{scope}/{path}", told)]

    assert (scopes(S, "atScope()"), scopes(W, "atScope()"), scopes(G)) == ([S], [S, W], [S, W])
    assert len(found(cloud, f"{G}/{path}", f"assignedTo('{PRINCIPAL}')")) == 2
    assert found(cloud, f"{G}/{path}", f"principalId eq '{uuid.UUID(int=5)}'") == []
    become(cloud, W="AzureML Data Scientist")
    assert status(cloud, "GET", f"{W}/{path}?{ROLE}") == 403


def test_an_assignment_takes_effect_after_a_while(cloud: EmulatorProcess) -> None:
    """What is assigned to the caller counts when the delay that was set is over, and no longer when it is deleted."""
    name = f"{W}/{AUTHORIZATION}/roleAssignments/{uuid.uuid4()}"
    definition = f"{S}/{AUTHORIZATION}/roleDefinitions/{ROLES['Reader'].guid}"
    told = {"roleDefinitionId": definition, "principalId": PRINCIPAL, "principalType": "ServicePrincipal"}
    assert status(cloud, "PUT", f"{name}?{ROLE}", {"properties": told}) == 201
    become(cloud)
    cloud.configure("rights", {"delay_seconds": 3600})
    assert status(cloud, "GET", W) == 403
    cloud.configure("rights", {"delay_seconds": 0.5})
    deadline = time.monotonic() + 10
    while status(cloud, "GET", W) == 403:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert status(cloud, "PUT", f"{W}/computes/c-1", cluster_body()) == 403
    become(cloud, S="Owner")
    assert status(cloud, "DELETE", f"{name}?{ROLE}") == 200
    become(cloud)
    assert status(cloud, "GET", W) == 403


def test_only_who_may_assign_roles_does(cloud: EmulatorProcess) -> None:
    """A Contributor may not, and is told so by the action that lacks."""
    become(cloud, S="Contributor")
    name = f"{W}/{AUTHORIZATION}/roleAssignments/{uuid.uuid4()}"
    refused = cloud.send("PUT", f"{name}?{ROLE}", {"properties": {}})
    assert refused.status_code == 403
    assert "'Microsoft.Authorization/roleAssignments/write'" in refused.json()["error"]["message"]


def deploy(cloud: EmulatorProcess, *resources: dict[str, Any], verb: str = "") -> requests.Response:
    """Deploy a template to the group, or only validate it or ask what it would change."""
    schema = "https://schema.management.azure.com/schemas/2019-04-01/deploymentTemplate.json#"
    template = {"$schema": schema, "contentVersion": "1.0.0.0", "resources": list(resources)}
    path = f"{G}/providers/Microsoft.Resources/deployments/rights{verb}?api-version=2022-09-01"
    told = {"properties": {"mode": "Incremental", "template": template}}
    return cloud.send("POST" if verb else "PUT", path, told)


IDENTITY = {
    "type": "Microsoft.ManagedIdentity/userAssignedIdentities",
    "apiVersion": "2023-01-31",
    "name": "rights",
    "location": SCOPE.location,
}
ASSIGNMENT = {
    "type": "Microsoft.Authorization/roleAssignments",
    "apiVersion": "2022-04-01",
    "name": str(uuid.UUID(int=7)),
    "properties": {
        "roleDefinitionId": f"{S}/{AUTHORIZATION}/roleDefinitions/{ROLES['Reader'].guid}",
        "principalId": PRINCIPAL,
        "principalType": "ServicePrincipal",
    },
}


def test_a_template_needs_the_rights_to_each_of_its_resources(cloud: EmulatorProcess) -> None:
    """A Contributor makes an identity and gives it no role: the refusal names the resource that is the trouble."""
    become(cloud, G="Contributor")
    refused = deploy(cloud, IDENTITY, ASSIGNMENT)
    told = refused.json()["error"]
    assert told["code"] == "InvalidTemplateDeployment"
    assert "'Microsoft.Authorization/roleAssignments/write'" in told["message"]
    assert "userAssignedIdentities/write" not in told["message"]
    assert deploy(cloud, IDENTITY, verb="/validate").status_code == 200
    become(cloud, G="Reader")
    assert deploy(cloud, IDENTITY).json()["error"]["code"] == "AuthorizationFailed"


def test_a_template_registers_providers_when_its_caller_may(cloud: EmulatorProcess) -> None:
    """Who has a role on the group only may not; asking what would change registers nothing."""
    namespace = "Microsoft.ManagedIdentity"
    provider = f"{S}/providers/{namespace}?api-version=2021-04-01"
    cloud.configure(f"providers/{namespace}", {"registrationState": "NotRegistered"})
    become(cloud, G="Contributor")
    assert deploy(cloud, IDENTITY).json()["error"]["code"] == "MissingSubscriptionRegistration"
    become(cloud, S="Owner")
    assert deploy(cloud, IDENTITY, verb="/whatIf").status_code in (200, 202)
    assert cloud.send("GET", provider).json()["registrationState"] == "NotRegistered"
    assert deploy(cloud, IDENTITY).status_code == 201
    deadline = time.monotonic() + 10
    made = f"{G}/providers/{IDENTITY['type']}/rights?api-version=2023-01-31"
    while status(cloud, "GET", made) == 404:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert cloud.send("GET", provider).json()["registrationState"] == "Registered"
    assert status(cloud, "DELETE", made) == 200
    assert status(cloud, "DELETE", f"{G}/providers/Microsoft.Resources/deployments/rights?api-version=2022-09-01") < 300
