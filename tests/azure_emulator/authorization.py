"""Who may do what: role definitions, role assignments, effective permissions, and the refusal of the rest.

    PUT /_emulator/caller {"roles": [{"scope": "/subscriptions/...", "role": "Reader"}], "tenant": "..."}
    PUT /_emulator/rights {"delay_seconds": 2}    how long a new assignment has no effect

A role is one of `roles.py` by name or GUID, or written out with `actions` and `notActions`. Without the first the
caller is Owner of the subscription. Assignments that are made for the caller count besides.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.action_names import asked_of
from tests.azure_emulator.names import PRINCIPAL
from tests.azure_emulator.roles import ROLES, Role, custom_role, find_role
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

VERSIONS = ("2015-07-01", "2018-01-01-preview", "2020-04-01-preview", "2022-04-01", "2022-05-01-preview")
_DEFINITIONS = "Microsoft.Authorization/roleDefinitions"
_ASSIGNMENTS = "Microsoft.Authorization/roleAssignments"
_PRINCIPAL = re.compile(r"(?:principalId\s+eq\s+|assignedTo\(\s*)'([^']+)'", re.IGNORECASE)
_ROLE_NAME = re.compile(r"roleName\s+eq\s+'([^']*)'", re.IGNORECASE)
_LONG_AGO = "2021-01-01T00:00:00.0000000Z"


def install(emulator: Emulator) -> Rights:
    """Register the routes and the guard."""
    rights = Rights(emulator)
    emulator.allow_versions(*VERSIONS)
    emulator.guard(rights.check)
    register = emulator.register
    base = "{scope:path}/providers/Microsoft.Authorization"
    register("GET", f"{base}/permissions", rights.list_permissions)
    register("GET", f"{base}/roleAssignments", rights.list_assignments)
    register("GET", f"{base}/roleDefinitions", rights.list_definitions)
    register("GET", f"{base}/roleDefinitions/{{name}}", rights.read_definition)
    return rights


class Rights:
    """The roles of everybody in one subscription."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def check(self, request: Request) -> None:
        """Refuse a request that the caller has no role for.

        Raises:
            ServiceError: 403 AuthorizationFailed.
        """
        asked = asked_of(request.method, request.path) if request.path.count("/") > 1 else None
        if asked is not None:
            self.require(asked.action, asked.scope)

    def require(self, action: str, scope: str) -> None:
        """Refuse the caller an action over a scope that no role allows.

        Raises:
            ServiceError: 403 AuthorizationFailed.
        """
        if not self.may(action, scope):
            raise ServiceError(
                403,
                "AuthorizationFailed",
                f"The client '{PRINCIPAL}' with object id '{PRINCIPAL}' does not have authorization to perform action "
                f"'{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please "
                "refresh your credentials.",
                plain=True,
            )

    def may(self, action: str, scope: str, principal: str = PRINCIPAL) -> bool:
        """Whether somebody may do that to something."""
        return any(role.allows(action) for role in self.roles_at(scope, principal))

    def may_use(self, data_action: str, scope: str, principal: str = PRINCIPAL) -> bool:
        """Whether somebody may use a service's data so."""
        return any(role.allows_data(data_action) for role in self.roles_at(scope, principal))

    def has_any(self) -> bool:
        """Whether the caller has a role anywhere in the subscription."""
        return any(True for _ in self._effective(PRINCIPAL))

    def roles_at(self, scope: str, principal: str = PRINCIPAL) -> list[Role]:
        """The roles that somebody has at a scope or above it, and that have come into effect."""
        return [role for held, role in self._effective(principal) if _is_within(scope, held)]

    def _effective(self, principal: str) -> Iterator[tuple[str, Role]]:
        if principal == PRINCIPAL:
            for given in self._callers_own():
                yield given["scope"], find_role(given["role"]) or custom_role(given)
        delay = float(self._emulator.settings.get("rights").get("delay_seconds", 0))
        for one in self._stored():
            properties = one["properties"]
            role = find_role(str(properties.get("roleDefinitionId")))
            if role and properties.get("principalId") == principal and _age(properties.get("createdOn")) >= delay:
                yield _scope_of(one), role

    def _callers_own(self) -> list[dict[str, Any]]:
        owner = {"scope": self._emulator.scope.subscription_id, "role": "Owner"}
        given = self._emulator.settings.get("caller").get("roles")
        return [owner] if given is None else list(given)

    def _stored(self) -> list[dict[str, Any]]:
        found = self._emulator.store.walk(self._emulator.scope.subscription_id)
        return [one for one in found if str(one.get("type", "")).lower() == _ASSIGNMENTS.lower()]

    def list_permissions(self, request: Request) -> Answer:
        """One entry for each role that the caller has there."""
        roles = self.roles_at(_scope(request))
        return Answer(200, {"value": [role.permission() for role in roles]})

    def list_assignments(self, request: Request) -> Answer:
        """The assignments at a scope, above it and below it; with atScope() not those below."""
        scope, told = _scope(request), request.query.get("$filter", "")
        principal = _PRINCIPAL.search(told)
        if told and not principal and "atscope()" not in told.lower():
            raise arm_error(400, "UnsupportedQuery", f"The filter '{told}' is not supported.")
        found = [*self._callers_assignments(), *self._stored()]
        if principal:
            found = [one for one in found if one["properties"]["principalId"] == principal[1]]
        below = "atscope()" not in told.lower()
        chosen = [
            one for one in found if _is_within(scope, _scope_of(one)) or (below and _is_within(_scope_of(one), scope))
        ]
        return self._emulator.page(request, chosen)

    def _callers_assignments(self) -> list[dict[str, Any]]:
        subscription = self._emulator.scope.subscription_id
        result = []
        for given in self._callers_own():
            role, scope = find_role(given["role"]), given["scope"].rstrip("/")
            definition = f"{subscription}/providers/{_DEFINITIONS}/{role.guid if role else _guid(given['role'])}"
            name = _guid(f"{scope}|{given['role']}|{PRINCIPAL}".lower())
            told = {"scope": scope, "roleDefinitionId": definition, "principalId": PRINCIPAL}
            result.append(
                {
                    "id": f"{scope}/providers/{_ASSIGNMENTS}/{name}",
                    "type": _ASSIGNMENTS,
                    "name": name,
                    "properties": {
                        **told,
                        "principalType": "ServicePrincipal",
                        "condition": None,
                        "conditionVersion": None,
                        "createdOn": _LONG_AGO,
                        "updatedOn": _LONG_AGO,
                        "createdBy": PRINCIPAL,
                        "updatedBy": PRINCIPAL,
                        "delegatedManagedIdentityResourceId": None,
                        "description": None,
                    },
                }
            )
        return result

    def list_definitions(self, request: Request) -> Answer:
        told = request.query.get("$filter", "")
        name = _ROLE_NAME.search(told)
        roles = [role for role in ROLES.values() if not name or role.name.lower() == name[1].lower()]
        if "customrole" in told.lower():
            roles = []
        return self._emulator.page(request, [self._definition(role) for role in roles])

    def read_definition(self, request: Request) -> Answer:
        role = find_role(request.parameters["name"])
        if role is None or request.parameters["name"].lower() != role.guid:
            message = f"The specified role definition with ID '{request.parameters['name']}' does not exist."
            raise arm_error(404, "RoleDefinitionDoesNotExist", message)
        return Answer(200, self._definition(role))

    def _definition(self, role: Role) -> dict[str, Any]:
        return {
            "properties": {
                "roleName": role.name,
                "type": "BuiltInRole",
                "description": role.name,
                "assignableScopes": ["/"],
                "permissions": [role.permission()],
                "createdOn": _LONG_AGO,
                "updatedOn": _LONG_AGO,
                "createdBy": None,
                "updatedBy": None,
            },
            "id": f"{self._emulator.scope.subscription_id}/providers/{_DEFINITIONS}/{role.guid}",
            "type": _DEFINITIONS,
            "name": role.guid,
        }


def checked_caller(document: dict[str, Any]) -> dict[str, Any]:
    """The document of `PUT /_emulator/caller`, when it makes sense.

    Raises:
        ServiceError: 400, with what is wrong.
    """
    for given in document.get("roles") or []:
        known = find_role(str(given.get("role"))) or given.get("actions") is not None
        if not known or not str(given.get("scope", "")).startswith("/"):
            raise arm_error(400, "InvalidRole", f"{given} has no scope, or a role that is not in roles.py.")
    return document


def _scope(request: Request) -> str:
    return f"/{request.parameters['scope'].strip('/')}"


def _scope_of(assignment: dict[str, Any]) -> str:
    return re.split(r"(?i)/providers/Microsoft\.Authorization/roleAssignments/", assignment["id"])[0]


def _is_within(scope: str, held: str) -> bool:
    return f"{scope.rstrip('/')}/".lower().startswith(f"{held.rstrip('/')}/".lower())


def _age(created: Any) -> float:
    try:
        # Azure writes seven digits after the point, and Python reads six.
        moment = datetime.fromisoformat(re.sub(r"(\.\d{6})\d+", r"\1", str(created)))
        return (datetime.now(moment.tzinfo) - moment).total_seconds()
    except ValueError:
        return float("inf")


def _guid(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, text))
