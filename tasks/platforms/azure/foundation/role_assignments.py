"""Role assignments by their own requests: what is given already, and those the template cannot reach.

A deployment to a resource group gives roles within it alone; an existing registry or storage account may be elsewhere.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.foundation.names import last_name
from tasks.platforms.azure.foundation.template import api_version
from tasks.platforms.azure.foundation.wanted_roles import ROLE_NAMES, Role
from tasks.platforms.errors import NotFoundError, PermissionDeniedError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tasks.platforms.azure.client import Workspace

_TYPE = "Microsoft.Authorization/roleAssignments"


def given_elsewise(workspace: Workspace, roles: Iterable[Role]) -> set[Role]:
    """Those of the roles that somebody gave already under another GUID; the service refuses to give them twice."""
    wanted, found = [role for role in roles if role.principal_id], set()
    for scope, principal in sorted({(role.scope, role.principal_id) for role in wanted}):
        there = [
            (last_name(_text(one, "roleDefinitionId")), one["name"]) for one in _given(workspace, scope, principal)
        ]
        for role in wanted:
            names = [name for definition, name in there if definition == role.role]
            is_here = (role.scope, role.principal_id) == (scope, principal)
            if is_here and names and last_name(role.id) not in names:
                found.add(role)
    return found


def is_assigned(workspace: Workspace, role: Role) -> bool:
    """Whether the role is given, under our GUID."""
    try:
        workspace.send("GET", role.id, params={"api-version": api_version(_TYPE)}, what=f"Role {role.told}")
    except NotFoundError:
        return False
    return True


def assign_role(workspace: Workspace, role: Role) -> None:
    """Give the role; giving it again changes nothing.

    Raises:
        PermissionDeniedError: the caller may not; names the command for somebody who may.
    """
    subscription = "/".join(role.scope.split("/")[:3])
    kind = "User" if role.is_person else "ServicePrincipal"
    properties = {
        "roleDefinitionId": f"{subscription}/providers/Microsoft.Authorization/roleDefinitions/{role.role}",
        "principalId": role.principal_id,
    } | ({} if role.is_person else {"principalType": kind})
    try:
        workspace.send(
            "PUT",
            role.id,
            params={"api-version": api_version(_TYPE)},
            json={"properties": properties},
            what=f"Role {role.told}",
        )
    except PermissionDeniedError as error:
        error.fix = (
            f"Let an owner of it run: az role assignment create --role '{ROLE_NAMES[role.role]}' --scope {role.scope} "
            f"--assignee-object-id {role.principal_id} --assignee-principal-type {kind}"
        )
        raise


def _given(workspace: Workspace, scope: str, principal_id: str) -> list[dict[str, Any]]:
    """The role assignments of a principal on exactly this scope; none where the scope is not there yet."""
    path: str | None = f"{scope}/providers/{_TYPE}"
    params: dict[str, str] | None = {"api-version": api_version(_TYPE), "$filter": f"principalId eq '{principal_id}'"}
    listed: list[dict[str, Any]] = []
    while path:
        try:
            page = workspace.send("GET", path, params=params, what=f"The roles on {last_name(scope)}").json()
        except NotFoundError:
            return []
        listed += page["value"]
        path, params = page.get("nextLink"), None
    return [
        one
        for one in listed
        if _text(one, "scope") == scope.lower() and _text(one, "principalId") == principal_id.lower()
    ]


def _text(assignment: dict[str, Any], key: str) -> str:
    return str(assignment["properties"][key]).lower()
