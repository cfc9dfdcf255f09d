"""What a workspace stands on, and whatever else is a resource in a group: made, read, changed and deleted by id.

What is special to a type is in `foundation_types.py`; the children of a workspace have modules of their own.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.behaviour import Behaviour, Wanted
from tests.azure_emulator.foundation_types import BEHAVIOURS
from tests.azure_emulator.resource_ids import ResourceId, group_of, parse_id
from tests.azure_emulator.resource_types import (
    ROLE_ASSIGNMENT,
    TYPES,
    WORKSPACE,
    ResourceType,
    find_type,
    invalid_name,
    name_taken,
    require_location,
    resource_not_found,
)
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_MEMBERS = frozenset(
    {
        *("id", "name", "type", "apiVersion", "location", "tags", "kind", "sku", "identity", "properties", "plan"),
        *("zones", "managedBy", "extendedLocation", "eTag", "scope"),
    }
)


def install(emulator: Emulator) -> None:
    """Register the routes; last of all modules, since they match any resource."""
    foundation = emulator.foundation
    places = (
        "W",
        "{scope:path}/providers/Microsoft.Authorization/roleAssignments/{name}",
        "{scope:path}/providers/Microsoft.Consumption/budgets/{name}",
        "S/resourceGroups/{group}/providers/{namespace}/{rest:path}",
    )
    for place in places:
        emulator.register("PUT", place, foundation.put)
        emulator.register("PATCH", place, foundation.patch)
        emulator.register("DELETE", place, foundation.delete)
        emulator.register("GET", place, foundation.read)
    emulator.register("GET", "{scope:path}/providers/Microsoft.Consumption/budgets", foundation.read)
    emulator.register("GET", "S/providers/{namespace}/{rest:path}", foundation.list_all)


class Foundation:
    """The resources of the subscription besides the children of its workspace."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._store = emulator.store

    def put(self, request: Request) -> Answer:
        target, kind = self._target(request.path, request.api_version)
        if target.is_list:
            raise _not_supported(request)
        with self._store.lock:
            before = self._store.get(str(target))
            self.require_shape(target, kind, request.json)
            self._require_free(target, kind, request.json, before)
            resource = self._completed(target, kind, request.json, before)
            self._store.put(resource["id"], resource)
        self._behaviour(kind).made(self._emulator, resource, before)
        if kind.name != WORKSPACE:
            return Answer(200 if before else 201, self._shown(resource["id"]))
        operations = self._emulator.operations
        operation = operations.start(
            request, lambda fault: self._end(resource["id"], fault), family="workspace", seconds=0.2
        )
        return Answer(202, self._shown(resource["id"]), operations.headers(operation, request))

    def patch(self, request: Request) -> Answer:
        target, kind = self._target(request.path, request.api_version)
        with self._store.lock:
            resource = self._find(target)
            given = request.json
            if "tags" in given:
                resource["tags"] = dict(given["tags"] or {})
            for field in ("sku", "identity", "kind"):
                if given.get(field) is not None:
                    resource[field] = given[field]
            resource["properties"] = {**resource["properties"], **(given.get("properties") or {})}
            resource = self._completed(target, kind, resource, resource)
            self._store.put(resource["id"], resource)
        return Answer(200, self._shown(resource["id"]))

    def read(self, request: Request) -> Answer:
        target, _ = self._target(request.path, request.api_version)
        if target.is_list:
            return self._emulator.page(request, self._store.list(str(target)))
        return Answer(200, self._shown(self._find(target)["id"]))

    def list_all(self, request: Request) -> Answer:
        """All of a type in the subscription."""
        target, kind = self._target(request.path, request.api_version)
        if not target.is_list or len(target.names) > 0:
            raise arm_error(404, "InvalidResourceType", f"The resource type could not be found: {request.path}.")
        below = self._store.walk(f"{self._emulator.scope.subscription_id}/resourceGroups")
        return self._emulator.page(request, [one for one in below if one.get("type") == kind.name])

    def delete(self, request: Request) -> Answer:
        target, kind = self._target(request.path, request.api_version)
        if target.is_list:
            raise _not_supported(request)
        resource = self._store.get(str(target))
        if resource is None:
            return self._behaviour(kind).absent(self._emulator, target, request)
        self._behaviour(kind).require_removable(self._emulator, resource)
        if kind.name != WORKSPACE:
            self.remove(resource["id"], request.query)
            return Answer(200, resource if kind.name == ROLE_ASSIGNMENT else None)
        resource["properties"]["provisioningState"] = "Deleting"
        self._store.put(resource["id"], resource)
        operations = self._emulator.operations
        query = dict(request.query)
        operation = operations.start(
            request, lambda fault: self._gone(resource["id"], query, fault), family="workspace"
        )
        headers = operations.headers(operation, request, location=operations.result_url(operation, request.api_version))
        return Answer(202, None, headers)

    def exists(self, resource_id: str) -> bool:
        """Whether there is such a resource."""
        return bool(resource_id) and self._store.get(resource_id) is not None

    def require_shape(self, target: ResourceId, kind: ResourceType, body: dict[str, Any]) -> None:
        """Refuse a body that its provider would refuse whatever else is there.

        Raises:
            ServiceError: 400 or 409.
        """
        if unknown := sorted(body.keys() - _MEMBERS):
            message = (
                "The request content was invalid and could not be deserialized: 'Could not find member "
                f"'{unknown[0]}' on object of type 'ResourceDefinition'.'."
            )
            raise arm_error(400, "InvalidRequestContent", message)
        if not re.fullmatch(kind.pattern, target.name):
            raise invalid_name(kind, target.name)
        if kind.tracked:
            location = require_location(body, kind.name)
            before = self._store.get(str(target))
            if before and before["location"] != location:
                message = (
                    f"The resource '{target.name}' already exists in location '{before['location']}' in resource group "
                    f"'{_group_name(before['id'])}'. A resource with the same name cannot be created in location "
                    f"'{location}'. Please select a new resource name."
                )
                raise arm_error(409, "InvalidResourceLocation", message)
        tags = body.get("tags") or {}
        if not isinstance(tags, dict) or not all(isinstance(value, str) for value in tags.values()):
            raise arm_error(400, "InvalidRequestContent", "The request content was invalid: tags are texts by name.")
        self._behaviour(kind).require(Wanted(self._emulator, target, body, self._store.get(str(target))))

    def is_taken(self, kind: ResourceType, target_name: str, resource_id: str = "") -> bool:
        """Whether somebody, here or elsewhere, has a name that is unique in the world."""
        if target_name.lower() in self._emulator.settings.all("taken-names"):
            return True
        below = self._store.walk(f"{self._emulator.scope.subscription_id}/resourceGroups")
        same = [
            one["id"].lower()
            for one in below
            if one.get("type") == kind.name and one["name"].lower() == target_name.lower()
        ]
        return any(one != resource_id.lower() for one in same)

    def remove(self, resource_id: str, query: dict[str, str] | None = None) -> None:
        """Delete a resource with its children and what is made on it."""
        resource = self._store.get(resource_id)
        if resource is None:
            return
        self._behaviour(TYPES[resource["type"].lower()]).removed(self._emulator, resource, query)
        self._store.delete_below(resource_id)
        self._store.delete(resource_id)

    def remove_all(self, group_id: str) -> None:
        """Delete the resources of a group: workspaces first, as others stand below them."""
        found = [one for one in self._store.walk(group_id) if str(one.get("type", "")).lower() in TYPES]
        top = [one for one in found if (parsed := parse_id(one["id"])) and len(parsed.names) == 1]
        for one in sorted(top, key=lambda one: one["type"] != WORKSPACE):
            if one["id"].lower() == self._emulator.workspace_id.lower():
                self._emulator.execution.forget()
            self.remove(one["id"])

    def resume(self) -> None:
        """Bring to an end what was on its way when the emulator was killed."""
        for record in self._emulator.operations.unfinished():
            if record["family"] == "workspace" and not record["stuck"]:
                self._emulator.operations.finish(record["name"])
        for one in self._store.walk(f"{self._emulator.scope.subscription_id}/resourceGroups"):
            if one.get("type") != WORKSPACE:
                continue
            if one["properties"]["provisioningState"] == "Creating":
                self._end(one["id"], None)
            elif one["properties"]["provisioningState"] == "Deleting":
                threading.Thread(
                    target=self._gone, args=(one["id"], {"forceToPurge": "true"}, None), daemon=True
                ).start()

    def _target(self, path: str, version: str) -> tuple[ResourceId, ResourceType]:
        parsed = parse_id(path)
        if parsed is None:
            raise arm_error(404, "InvalidResourceType", f"The resource type could not be found: {path}.")
        kind = find_type(parsed.type, version)
        return ResourceId(self._canonical(parsed.scope), kind.name, parsed.names), kind

    def _canonical(self, scope: str) -> str:
        """A scope as it was first spelled."""
        if found := self._store.get(scope):
            return str(found["id"])
        base = self._emulator.scope.subscription_id
        return base if scope.lower() == base.lower() else scope

    def _completed(
        self, target: ResourceId, kind: ResourceType, body: dict[str, Any], before: dict[str, Any] | None
    ) -> dict[str, Any]:
        resource: dict[str, Any] = {
            "id": before["id"] if before else str(target),
            "name": before["name"] if before else target.name,
            "type": kind.name,
        }
        if kind.tracked:
            resource |= {"location": require_location(body, kind.name), "tags": dict(body.get("tags") or {})}
        for field in ("kind", "sku", "identity", "zones"):
            if body.get(field) is not None:
                resource[field] = body[field]
        given = {key: value for key, value in (body.get("properties") or {}).items() if value is not None}
        resource["properties"] = {**((before or {}).get("properties") or {}), **given}
        return self._behaviour(kind).completed(Wanted(self._emulator, target, body, before), resource)

    def _require_free(
        self, target: ResourceId, kind: ResourceType, body: dict[str, Any], before: dict[str, Any] | None
    ) -> None:
        if kind.extension and target.scope.lower() != self._emulator.scope.subscription_id.lower():
            if not self.exists(target.scope):
                scope = parse_id(target.scope)
                raise resource_not_found(
                    scope.type if scope else "", scope.full_name if scope else "", _group_name(target.scope)
                )
        elif target.parent and not self.exists(target.parent):
            message = (
                "Can not perform requested operation on nested resource. Parent resource "
                f"'{target.full_name.rpartition('/')[0]}' not found."
            )
            raise arm_error(404, "ParentResourceNotFound", message)
        if kind.worldwide and before is None and self.is_taken(kind, target.name):
            raise name_taken(kind, target.name)
        if before is None:
            self._behaviour(kind).require_new(Wanted(self._emulator, target, body, None))

    def _find(self, target: ResourceId) -> dict[str, Any]:
        found = self._store.get(str(target))
        if found is None:
            if target.type == "Microsoft.Authorization/roleAssignments":
                raise arm_error(404, "RoleAssignmentNotFound", f"The role assignment '{target.name}' is not found.")
            raise resource_not_found(target.type, target.full_name, _group_name(target.scope))
        return found

    def _shown(self, resource_id: str) -> dict[str, Any]:
        return self._store.get(resource_id) or {}

    def _end(self, resource_id: str, fault: dict[str, Any] | None) -> None:
        with self._store.lock:
            resource = self._store.get(resource_id)
            if resource is not None:
                resource["properties"]["provisioningState"] = "Failed" if fault else "Succeeded"
                self._store.put(resource_id, resource)

    def _gone(self, resource_id: str, query: dict[str, str], fault: dict[str, Any] | None) -> None:
        if fault:
            self._end(resource_id, fault)
            return
        if resource_id.lower() == self._emulator.workspace_id.lower():
            self._emulator.execution.forget()
        self.remove(resource_id, query)

    @staticmethod
    def _behaviour(kind: ResourceType) -> Behaviour:
        return BEHAVIOURS.get(kind.name) or Behaviour()


def _group_name(resource_id: str) -> str:
    return group_of(resource_id).rpartition("/")[2]


def _not_supported(request: Request) -> ServiceError:
    message = f"The http method '{request.method}' is not supported for a resource type."
    return arm_error(405, "HttpMethodNotSupported", message)
