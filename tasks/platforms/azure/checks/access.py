"""Checks of what is allowed: resource providers, the caller's rights, the identity's roles, the data."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from tasks.platforms.azure.checks import permissions
from tasks.platforms.azure.checks.facts import Facts
from tasks.platforms.azure.checks.quota import CONFIGURATION
from tasks.platforms.azure.foundation.names import is_within, last_name
from tasks.platforms.errors import Failure, PermissionDeniedError, PhiflowError
from tasks.platforms.local.checking import failed, passed, warned
from tasks.platforms.upkeep import Check

AUTHORIZATION_API = "2022-04-01"
_PROVIDERS_API = "2021-04-01"
_IDENTITY_API = "2023-01-31"
_PROVIDERS = (
    "Microsoft.MachineLearningServices",
    "Microsoft.Storage",
    "Microsoft.KeyVault",
    "Microsoft.Insights",
    "Microsoft.OperationalInsights",
    "Microsoft.ContainerRegistry",
    "Microsoft.ManagedIdentity",
    "Microsoft.Authorization",
)
_STORAGE_ROLE, _REGISTRY_ROLE, _SECRETS_ROLE = "Storage Blob Data Contributor", "AcrPull", "Key Vault Secrets User"
# Roles that are enough, by GUID: https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
_ENOUGH = {
    _STORAGE_ROLE: ("ba92f5b4-2d11-453d-a403-e96b0029c9fe", "b7e6dc6d-f1e8-4753-8033-0f276bb0955b"),
    _REGISTRY_ROLE: (
        "7f951dda-4ed3-4680-a7ca-43fe172d538d",
        "8311e382-0749-4cb8-b61a-304f252e45ec",  # AcrPush
        "b24988ac-6180-42a0-ab88-20f7382dd24c",  # Contributor
        "8e3af657-a8ff-443c-a75c-2fe8c4bcb635",  # Owner
    ),
    _SECRETS_ROLE: (
        "4633458b-17de-408a-b874-0445c86b69e6",
        "b86a8fe4-44ce-4948-aee5-eccb2c155cd7",  # Key Vault Secrets Officer
        "00482a5a-887f-4fb3-b363-3b7fe8e74483",  # Key Vault Administrator
    ),
}


def check_providers(facts: Facts) -> Iterator[Check]:
    """Whether the services are switched on in the subscription; one line for each that is not."""
    with ThreadPoolExecutor(max_workers=len(_PROVIDERS)) as pool:
        states = dict(zip(_wanted(facts), pool.map(lambda name: _state(facts, name), _wanted(facts)), strict=True))
    off = {name: state for name, state in states.items() if state != "Registered"}
    for name, state in off.items():
        if state == "Registering":
            yield warned("provider", f"{name} is being registered", "Wait some minutes.")
        else:
            yield failed("provider", f"{name} is {state}", f"az provider register --namespace {name} --wait")
    if not off:
        yield passed("providers", f"{len(states)} registered")


def check_rights(facts: Facts) -> Iterator[Check]:
    """Whether the caller may do what is to be done, by the permissions that are effective, inherited ones too."""
    num_missing = 0
    for scope, actions in _wanted_actions(facts).items():
        by_role: dict[str, list[str]] = {}
        for action in missing_rights(facts, scope, actions):
            by_role.setdefault(permissions.role_for(action), []).append(action)
        for role, lacking in by_role.items():
            num_missing += 1
            more = f" and {len(lacking) - 1} more" if len(lacking) > 1 else ""
            found = f"{lacking[0]}{more} is not allowed on {last_name(scope)}"
            yield failed("rights", found, _assignment(facts, role, scope), Failure.AUTHORISATION)
    if facts.purpose == "run" and facts.has_workspace:
        scope, action = facts.workspace.resource_id, permissions.METRICS_ACTION
        if missing_rights(facts, scope, (action,)):
            found = "the endpoint's counters may not be read, so that a rollout is judged by its own probes alone"
            yield warned("rights", found, _assignment(facts, permissions.role_for(action), scope))
    if not num_missing:
        yield passed("rights", f"{_purpose(facts)} is allowed on {last_name(next(iter(_wanted_actions(facts))))}")


def missing_rights(facts: Facts, scope: str, actions: tuple[str, ...]) -> tuple[str, ...]:
    """The actions that the caller's roles do not allow on a resource, a group or a subscription."""
    if scope not in facts.permissions:
        url = f"{scope}/providers/Microsoft.Authorization/permissions"
        facts.permissions[scope] = list(facts.pages(url, AUTHORIZATION_API, f"The permissions on {last_name(scope)}"))
    return permissions.missing_actions(facts.permissions[scope], actions)


def check_identity(facts: Facts) -> Iterator[Check]:
    """Whether the identity of cluster and endpoint may read and write data and pull images."""
    identity_id = facts.place.identity.resource_id
    if not identity_id or facts.existing_workspace is None:
        return
    what = f"Identity {last_name(identity_id)}"
    identity = facts.find(identity_id, _IDENTITY_API, what)
    if identity is None:
        yield failed(
            "identity",
            f"platform.identity.resource_id names {last_name(identity_id)}, which does not exist",
            f"Correct platform.identity, or empty it and run: phiflow up {CONFIGURATION}",
        )
        return
    principal, client = (str(identity["properties"].get(key) or "") for key in ("principalId", "clientId"))
    configured = facts.place.identity.client_id
    if configured and client and configured.lower() != client.lower():
        found = f"platform.identity.client_id is {configured}, but {last_name(identity_id)} has {client}"
        yield failed("identity", found, f"Set platform.identity.client_id to {client}")
    yield from _identity_roles(facts, last_name(identity_id), principal)


def check_data_access(facts: Facts) -> Iterator[Check]:
    """Read a blob that need not exist, with what a run reads with."""
    if not facts.has_workspace:
        return
    try:
        facts.workspace.storage.exists("phiflow/doctor")
    except PermissionDeniedError as error:
        storage = str((facts.existing_workspace or {})["properties"].get("storageAccount") or "STORAGE_ID")
        yield failed("data access", error.message, _assignment(facts, _STORAGE_ROLE, storage), Failure.AUTHORISATION)
        return
    except PhiflowError as error:
        yield failed("data access", error.message, error.fix)
        return
    yield passed("data access", "the workspace's storage was read")


def _identity_roles(facts: Facts, name: str, principal: str) -> Iterator[Check]:
    properties = (facts.existing_workspace or {})["properties"]
    scopes = {_STORAGE_ROLE: properties.get("storageAccount"), _REGISTRY_ROLE: properties.get("containerRegistry")}
    if facts.place.hub_token_secret:
        scopes[_SECRETS_ROLE] = properties.get("keyVault")
    url = f"{facts.subscription_id}/providers/Microsoft.Authorization/roleAssignments"
    chosen = f"principalId eq '{principal}'"
    what = f"The role assignments of {name}"
    held = [entry["properties"] for entry in facts.pages(url, AUTHORIZATION_API, what, **{"$filter": chosen})]
    lacking = 0
    for role, scope in scopes.items():
        if not scope or any(
            is_within(str(scope), str(one.get("scope") or ""))
            and last_name(str(one.get("roleDefinitionId") or "")).lower() in _ENOUGH[role]
            for one in held
        ):
            continue
        lacking += 1
        fix = (
            f"az role assignment create --assignee-object-id {principal} --assignee-principal-type ServicePrincipal "
            f'--role "{role}" --scope {scope}'
        )
        found = f"{name} lacks {role} on {last_name(str(scope))}"
        yield failed("identity", found, fix, Failure.AUTHORISATION)
    if not lacking:
        roles = ", ".join(role for role, scope in scopes.items() if scope)
        yield passed("identity", f"{name} has {roles}")


def _wanted(facts: Facts) -> tuple[str, ...]:
    resources = facts.place.resources
    more = [("Microsoft.DocumentDB", resources.chat_history), ("Microsoft.Consumption", resources.monthly_budget)]
    return (*_PROVIDERS, *(name for name, used in more if used))


def _state(facts: Facts, namespace: str) -> str:
    url = f"{facts.subscription_id}/providers/{namespace}"
    return str(facts.get(url, _PROVIDERS_API, f"Provider {namespace}").get("registrationState") or "NotRegistered")


def _wanted_actions(facts: Facts) -> dict[str, tuple[str, ...]]:
    """What is to be allowed, by the resource, group or subscription on which it is asked."""
    place = facts.place
    wanted: dict[str, tuple[str, ...]] = {}
    if facts.purpose == "run" and facts.has_workspace:
        wanted[facts.workspace.resource_id] = permissions.RUN_ACTIONS
    else:
        scope = facts.group_id if facts.group else facts.subscription_id
        actions = list(permissions.OWNER_ACTIONS) if facts.part in ("all", "owner") else []
        if facts.part in ("all", "engineer"):
            used = {
                "Microsoft.DocumentDB/databaseAccounts/write": place.resources.chat_history,
                "Microsoft.Consumption/budgets/write": bool(place.resources.monthly_budget),
            }
            actions += [*permissions.ENGINEER_ACTIONS, *(action for action, is_used in used.items() if is_used)]
        wanted[scope] = tuple(actions)
    if place.identity.resource_id and facts.part != "owner" and facts.has_workspace:
        wanted[place.identity.resource_id] = (permissions.IDENTITY_ACTION,)
    return wanted


def _assignment(facts: Facts, role: str, scope: str) -> str:
    principal = facts.claims.get("oid") or "OBJECT_ID"
    return f'az role assignment create --assignee {principal} --role "{role}" --scope {scope}'


def _purpose(facts: Facts) -> str:
    up = "phiflow up" if facts.part == "all" else f"phiflow up --part {facts.part}"
    return up if facts.makes_workspace else "a run"
