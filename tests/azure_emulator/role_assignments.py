"""Role assignments, stored by the id that they have on their scope; who may do what is for others to tell."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.behaviour import Behaviour, Wanted
from tests.azure_emulator.names import PRINCIPAL, TENANT
from tests.azure_emulator.resource_types import IDENTITY, ROLE_ASSIGNMENT
from tests.azure_emulator.web import ServiceError, arm_error, now

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_GUID = re.compile(r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_VERSION = "2022-04-01"


def role_assignments(emulator: Emulator) -> list[dict[str, Any]]:
    """All role assignments of the subscription and of what is in it."""
    below = emulator.store.walk(emulator.scope.subscription_id)
    return [one for one in below if one.get("type") == ROLE_ASSIGNMENT]


class RoleAssignment(Behaviour):
    """A role given to a principal on a scope."""

    def require(self, it: Wanted) -> None:
        for field in ("roleDefinitionId", "principalId"):
            if not it.properties.get(field):
                message = f"The request content was invalid: the property '{field}' of the role assignment is missing."
                raise arm_error(400, "InvalidCreateRoleAssignmentRequest", message)
        if not _GUID.fullmatch(str(it.properties["principalId"])):
            message = f"The Principal ID '{it.properties['principalId']}' is not valid. Principal ID must be a GUID."
            raise arm_error(400, "InvalidPrincipalId", message)

    def completed(self, it: Wanted, resource: dict[str, Any]) -> dict[str, Any]:
        _require_principal(it)
        _require_role(it)
        properties = {
            "roleDefinitionId": it.properties["roleDefinitionId"],
            "principalId": it.properties["principalId"],
            "principalType": it.properties.get("principalType") or "ServicePrincipal",
            "scope": it.target.scope,
            "condition": it.properties.get("condition"),
            "conditionVersion": it.properties.get("conditionVersion"),
            "createdOn": now(),
            "updatedOn": now(),
            "createdBy": PRINCIPAL,
            "updatedBy": PRINCIPAL,
            "delegatedManagedIdentityResourceId": None,
            "description": it.properties.get("description"),
        }
        if it.before:
            if not _same(it.before["properties"], properties):
                message = "Tenant ID, application ID, principal ID, and scope are not allowed to be updated."
                raise arm_error(409, "RoleAssignmentUpdateNotPermitted", message)
            properties["createdOn"] = it.before["properties"]["createdOn"]
        for other in role_assignments(it.emulator):
            if other["id"].lower() != resource["id"].lower() and _same(other["properties"], properties):
                message = (
                    f"The role assignment already exists. The ID of the existing role assignment is {other['name']}."
                )
                raise arm_error(409, "RoleAssignmentExists", message)
        return {**resource, "properties": properties}


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether both give the same role to the same principal on the same scope."""
    return all(_last(one[field]) == _last(other[field]) for field in ("principalId", "roleDefinitionId")) and (
        one["scope"].lower() == other["scope"].lower()
    )


def _last(text: str) -> str:
    return text.rsplit("/", 1)[-1].lower()


def _require_principal(it: Wanted) -> None:
    """Without its type a principal is looked for, and one that was just made is not found everywhere yet."""
    principal = str(it.properties["principalId"]).lower()
    if it.properties.get("principalType") or principal == PRINCIPAL:
        return
    below = it.emulator.store.walk(it.emulator.scope.subscription_id)
    known = {
        str(given.get("principalId", "")).lower()
        for one in below
        for given in (one.get("identity") or {}, one["properties"] if one.get("type") == IDENTITY else {})
    }
    if principal not in known:
        message = (
            f"Principal {principal.replace('-', '')} does not exist in the directory {TENANT}. Check that you have the "
            "correct principal ID. If you are creating this principal and then immediately assigning a role, this "
            "error might be related to a replication delay. In this case, set the role assignment principalType "
            "property to a value, such as ServicePrincipal, User, or Group. See "
            "https://aka.ms/docs-principaltype"
        )
        raise arm_error(400, "PrincipalNotFound", message)


def _require_role(it: Wanted) -> None:
    role = str(it.properties["roleDefinitionId"])
    message = f"The specified role definition with ID '{_last(role)}' does not exist."
    missing = arm_error(404, "RoleDefinitionDoesNotExist", message)
    if "/providers/microsoft.authorization/roledefinitions/" not in role.lower():
        raise missing
    path = role if role.lower().startswith("/subscriptions/") else f"{it.emulator.scope.subscription_id}{role}"
    try:
        it.emulator.call("GET", path, _VERSION)
    except ServiceError as error:
        if error.code.startswith("RoleDefinition"):
            raise missing from error
