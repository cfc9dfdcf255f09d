"""Resource groups, and the lists of the resources in them and in the subscription.

What a request asks for below a group or a workspace that does not exist is refused here, before its handler.
"""

from __future__ import annotations

import re
import threading
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.resource_ids import group_of
from tests.azure_emulator.resource_types import (
    TYPES,
    WORKSPACE,
    normal_location,
    require_location,
    resource_not_found,
)
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_NAME = re.compile(r"[\w.()-]{0,89}[\w()-]")
_GENERIC = ("id", "name", "type", "kind", "managedBy", "location", "identity", "sku", "tags", "plan")
_CLAUSE = re.compile(r"(?i)(\w+)\s+(eq|ne)\s+'([^']*)'|substringof\('([^']*)',\s*name\)")
_BELOW_WORKSPACE = re.compile(rf"(?i)(.*/providers/{re.escape(WORKSPACE)}/(?P<name>[^/]+))/.+")
_FIELDS = {"resourcetype": "type", "name": "name", "location": "location"}


def install(emulator: Emulator) -> None:
    """Register the routes, and go on with deletions that an end of the emulator interrupted."""
    groups = emulator.groups
    emulator.guard(groups.require_place)
    register = emulator.register
    register("GET", "S/resourcegroups", groups.list)
    register("PUT", "S/resourcegroups/{group}", groups.put)
    register("GET", "S/resourcegroups/{group}", groups.read)
    register("HEAD", "S/resourcegroups/{group}", groups.check)
    register("PATCH", "S/resourcegroups/{group}", groups.patch)
    register("DELETE", "S/resourcegroups/{group}", groups.delete)
    register("GET", "S/resourcegroups/{group}/resources", groups.list_resources)
    register("GET", "S/resources", groups.list_resources)
    register("GET", "S/operationresults/{id}", emulator.operations.read_result)


class ResourceGroups:
    """The resource groups of the subscription."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._store = emulator.store
        self._folder = f"{emulator.scope.subscription_id}/resourceGroups"

    def ensure(self, name: str, location: str) -> None:
        """Have a group, as somebody else made it: without tags."""
        if self._store.get(f"{self._folder}/{name}") is None:
            self._store.put(f"{self._folder}/{name}", self._resource(name, {"location": location}))

    def find(self, name: str) -> dict[str, Any]:
        """The group of this name.

        Raises:
            ServiceError: 404.
        """
        found = self._store.get(f"{self._folder}/{name}")
        if found is None:
            raise arm_error(404, "ResourceGroupNotFound", f"Resource group '{name}' could not be found.")
        return found

    def resources(self, group_id: str = "") -> list[dict[str, Any]]:
        """The resources that lists show, of a group or of all."""
        below = self._store.walk(group_id or self._folder)
        return [one for one in below if _is_tracked(one)]

    def require_place(self, request: Request) -> None:
        """Refuse what is below a group or a workspace that does not exist, and what is new in one that is deleted.

        Raises:
            ServiceError: 404 or 409.
        """
        if request.route == "template":  # which may make the place, too
            return
        group = group_of(request.path)
        if group and len(group) < len(request.path):
            found = self.find(group.rsplit("/", 1)[-1])
            if request.method in ("PUT", "PATCH") and found["properties"]["provisioningState"] == "Deleting":
                raise being_deleted(found["name"])
        below = _BELOW_WORKSPACE.fullmatch(request.path)
        if below and self._store.get(below[1]) is None:
            raise resource_not_found(WORKSPACE, below["name"], group.rsplit("/", 1)[-1])

    def list(self, request: Request) -> Answer:
        found = self._store.list(self._folder)
        if text := request.query.get("$filter", ""):
            found = [one for one in found if _matches(one, _clauses(text))]
        return self._emulator.page(request, found)

    def put(self, request: Request) -> Answer:
        name, body = request.parameters["group"], request.json
        if not _NAME.fullmatch(name):
            message = (
                f"The provided resource group name '{name}' has these invalid characters or is too long. The name can "
                "only be a letter, digit, '-', '.', '(', ')' or '_', and at most 90 of them."
            )
            raise arm_error(400, "InvalidResourceGroupName", message)
        location = require_location(body, "Microsoft.Resources/resourceGroups")
        with self._store.lock:
            before = self._store.get(f"{self._folder}/{name}")
            if before and before["properties"]["provisioningState"] == "Deleting":
                raise being_deleted(name)
            if before and before["location"] != location:
                message = (
                    f"Invalid resource group location '{location}'. The Resource group already exists in location "
                    f"'{before['location']}'."
                )
                raise arm_error(409, "InvalidResourceGroupLocation", message)
            resource = self._resource(before["name"] if before else name, body)
            self._store.put(resource["id"], resource)
        return Answer(200 if before else 201, resource)

    def read(self, request: Request) -> Answer:
        return Answer(200, self.find(request.parameters["group"]))

    def check(self, request: Request) -> Answer:
        return Answer(204 if self._store.get(f"{self._folder}/{request.parameters['group']}") else 404)

    def patch(self, request: Request) -> Answer:
        with self._store.lock:
            resource = self.find(request.parameters["group"])
            if "tags" in request.json:
                resource["tags"] = dict(request.json["tags"] or {})
            self._store.put(resource["id"], resource)
        return Answer(200, resource)

    def delete(self, request: Request) -> Answer:
        with self._store.lock:
            resource = self.find(request.parameters["group"])
            if resource["properties"]["provisioningState"] == "Deleting":
                raise being_deleted(resource["name"])
            resource["properties"]["provisioningState"] = "Deleting"
            self._store.put(resource["id"], resource)
        operations = self._emulator.operations
        operation = operations.start(request, lambda fault: self._remove(resource["id"], fault), family="arm")
        headers = {"Location": operations.result_url(operation, request.api_version), "retry-after-ms": "50"}
        return Answer(202, None, headers)

    def list_resources(self, request: Request) -> Answer:
        group = request.parameters.get("group")
        found = self.resources(self.find(group)["id"] if group else "")
        clauses = _clauses(request.query.get("$filter", ""))
        shown = [{key: one[key] for key in _GENERIC if one.get(key) is not None} for one in found]
        return self._emulator.page(request, [one for one in shown if _matches(one, clauses)])

    def resume(self) -> None:
        """Delete what was being deleted when the emulator ended."""
        for group in self._store.list(self._folder):
            if group["properties"]["provisioningState"] == "Deleting":
                threading.Thread(target=self._remove, args=(group["id"], None), daemon=True).start()

    def _remove(self, group_id: str, fault: dict[str, Any] | None) -> None:
        """Delete a group with all that is in it, or leave it as it is when a scenario says so."""
        name = group_id.rsplit("/", 1)[-1]
        if fault:
            resource = self.find(name)
            resource["properties"]["provisioningState"] = "Succeeded"
            self._store.put(group_id, resource)
            return
        self._emulator.foundation.remove_all(group_id)
        self._emulator.template_deployments.forget(group_id)
        self._store.delete_below(group_id)
        self._store.delete(group_id)

    def _resource(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        resource = {
            "id": f"{self._folder}/{name}",
            "name": name,
            "type": "Microsoft.Resources/resourceGroups",
            "location": normal_location(body["location"]),
            **({"tags": dict(body["tags"])} if body.get("tags") else {}),
            "properties": {"provisioningState": "Succeeded"},
        }
        return {**resource, "managedBy": body["managedBy"]} if body.get("managedBy") else resource


def _is_tracked(resource: dict[str, Any]) -> bool:
    kind = TYPES.get(str(resource.get("type", "")).lower())
    return kind is not None and kind.tracked


def _clauses(text: str) -> list[tuple[str, str, str]]:
    """The conditions of a $filter, all of which must hold: field, `eq`, `ne` or `has`, value.

    Raises:
        ServiceError: 400.
    """
    found: list[tuple[str, str, str]] = []
    for part in re.split(r"(?i)\s+and\s+", text.strip()) if text.strip() else []:
        match = _CLAUSE.fullmatch(part.strip())
        field = match[1].lower() if match and match[1] else "name"
        if match is None or field not in (*_FIELDS, "tagname", "tagvalue"):
            message = f"Invalid $filter '{text}' specified in the query string."
            raise arm_error(400, "InvalidFilterInQueryString", message)
        found.append((field, "has" if match[4] is not None else match[2].lower(), match[4] or match[3] or ""))
    by_tag = [field for field, _, _ in found if field.startswith("tag")]
    if by_tag and len(by_tag) < len(found):
        raise arm_error(400, "InvalidFilterInQueryString", "A filter by tag cannot be combined with other filters.")
    return found


def _matches(resource: dict[str, Any], clauses: list[tuple[str, str, str]]) -> bool:
    tags = {key.lower(): value for key, value in (resource.get("tags") or {}).items()}
    wanted = next((value.lower() for field, _, value in clauses if field == "tagname"), None)
    if wanted is not None:
        values = [value for field, _, value in clauses if field == "tagvalue"]
        return wanted in tags and (not values or tags[wanted] == values[0])
    for field, comparison, value in clauses:
        given, value = str(resource.get(_FIELDS.get(field, field), "")).lower(), value.lower()
        if comparison == "has" and value not in given:
            return False
        if comparison != "has" and (given == value) != (comparison == "eq"):
            return False
    return True


def being_deleted(name: str) -> ServiceError:
    """What Resource Manager says of changes in a group that is being deleted."""
    message = f"The resource group '{name}' is in deprovisioning state and cannot perform this operation."
    return arm_error(409, "ResourceGroupBeingDeleted", message)
