"""Clusters: made, changed in what may change, deleted; checked as the service checks them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.sizes import SIZES
from tests.azure_emulator.skus import is_available
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error, now, validation_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,30})[A-Za-z0-9]")
_IDLE = re.compile(r"PT(?:\d+H)?(?:\d+M)?(?:\d+S)?")
_SECONDS = 0.2


def install(emulator: Emulator) -> None:
    """Register the routes, and end what a killed emulator left half made."""
    computes = Computes(emulator)
    emulator.register("PUT", "W/computes/{name}", computes.put)
    emulator.register("GET", "W/computes/{name}", computes.read)
    emulator.register("GET", "W/computes", computes.list)
    emulator.register("DELETE", "W/computes/{name}", computes.delete)
    computes.resume()


class Computes:
    """The clusters of one workspace."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def put(self, request: Request) -> Answer:
        name, body = request.parameters["name"], request.json
        with self._emulator.store.lock:
            before = self._emulator.store.get(self._id(name))
            self._require_valid(name, body, before)
            resource = self._resource(name, body, before)
            request.fault = request.fault or self._emulator.quota.cluster_error(resource)
            self._emulator.store.put(self._id(name), resource)
        operation = self._emulator.operations.start(
            request, lambda fault: self._end(name, fault), seconds=_SECONDS, resource=self._id(name)
        )
        return Answer(201, _creating(resource), self._emulator.operations.headers(operation, request))

    def read(self, request: Request) -> Answer:
        return Answer(200, self._find(request))

    def list(self, request: Request) -> Answer:
        return self._emulator.page(request, self._emulator.store.list(f"{self._emulator.workspace_id}/computes"))

    def delete(self, request: Request) -> Answer:
        if request.query.get("underlyingResourceAction") not in ("Delete", "Detach"):
            raise validation_error("The underlyingResourceAction query parameter must be Delete or Detach.")
        with self._emulator.store.lock:
            resource, name = self._find(request), request.parameters["name"]
            resource["properties"]["provisioningState"] = "Deleting"
            self._emulator.store.put(resource["id"], resource)
        operation = self._emulator.operations.start(request, lambda fault: self._gone(name, fault), seconds=_SECONDS)
        return Answer(202, None, self._emulator.operations.headers(operation, request))

    def resume(self) -> None:
        """Bring to an end what was on its way when the emulator was killed."""
        unfinished = [one for one in self._emulator.operations.unfinished() if one["family"] == "compute"]
        stuck = {one["resource"] for one in unfinished if one["stuck"]}
        for resource in self._emulator.store.list(f"{self._emulator.workspace_id}/computes"):
            if resource["id"] in stuck:
                continue
            state = resource["properties"]["provisioningState"]
            if state == "Deleting":
                self._emulator.store.delete(resource["id"])
            elif state == "Creating":
                self._end(resource["name"])
        for operation in unfinished:
            self._emulator.operations.finish(operation["name"])

    def _id(self, name: str) -> str:
        return f"{self._emulator.workspace_id}/computes/{name}"

    def _find(self, request: Request) -> dict[str, Any]:
        name = request.parameters["name"]
        found = self._emulator.store.get(self._id(name))
        if found is None:
            message = (
                f"The Resource 'Microsoft.MachineLearningServices/workspaces/{self._emulator.scope.workspace}/computes/"
                f"{name}' under resource group '{self._emulator.scope.group}' was not found. For more details please "
                "go to https://aka.ms/ARMResourceNotFoundFix"
            )
            raise arm_error(404, "ResourceNotFound", message)
        return found

    def _require_valid(self, name: str, body: dict[str, Any], before: dict[str, Any] | None) -> None:
        if not _NAME.fullmatch(name):
            raise validation_error(
                f"Compute name '{name}' is invalid. It can include letters, digits and dashes. It must start with a "
                "letter, end with a letter or digit, and be between 2 and 32 characters in length."
            )
        properties = body.get("properties") or {}
        if properties.get("computeType") != "AmlCompute":
            raise validation_error(f"The computeType '{properties.get('computeType')}' is not supported here.")
        if not body.get("location"):
            raise arm_error(400, "LocationRequired", "The location property is required for this definition.")
        inner = properties.get("properties") or {}
        size = str(inner.get("vmSize") or "")
        if size.upper() not in SIZES or not is_available(self._emulator, size, body["location"]):
            raise ServiceError(
                400,
                "BadRequest",
                f"STANDARD_VM_SIZE_NOT_AVAILABLE: VM size {size or '(none)'} is not available in {body['location']}.",
            )
        if inner.get("vmPriority") not in ("Dedicated", "LowPriority", None):
            raise validation_error(f"The vmPriority '{inner['vmPriority']}' is not Dedicated or LowPriority.")
        _require_scale(inner.get("scaleSettings") or {})
        if before:
            _require_same(name, before["properties"]["properties"], inner)

    def _resource(self, name: str, body: dict[str, Any], before: dict[str, Any] | None) -> dict[str, Any]:
        properties, moment = body["properties"], now()
        inner = properties["properties"]
        created = before["properties"]["createdOn"] if before else moment
        resource: dict[str, Any] = {
            "id": self._id(name),
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/computes",
            "location": body["location"],
            "tags": dict(body.get("tags") or {}),
            "properties": {
                "createdOn": created,
                "modifiedOn": moment,
                "disableLocalAuth": bool(properties.get("disableLocalAuth")),
                "description": properties.get("description"),
                "resourceId": None,
                "computeType": "AmlCompute",
                "computeLocation": body["location"],
                "provisioningState": "Creating",
                "provisioningErrors": None,
                "isAttachedCompute": False,
                "properties": {
                    "vmSize": inner["vmSize"].upper(),
                    "vmPriority": inner.get("vmPriority") or "Dedicated",
                    "scaleSettings": _scale(inner.get("scaleSettings") or {}),
                    "subnet": inner.get("subnet"),
                    "currentNodeCount": 0,
                    "targetNodeCount": 0,
                    "nodeStateCounts": dict.fromkeys(_NODE_STATES, 0),
                    "allocationState": "Steady",
                    "allocationStateTransitionTime": moment,
                    "errors": None,
                    "remoteLoginPortPublicAccess": inner.get("remoteLoginPortPublicAccess") or "NotSpecified",
                    "osType": "Linux",
                    "virtualMachineImage": None,
                    "isolatedNetwork": bool(inner.get("isolatedNetwork")),
                    "enableNodePublicIp": inner.get("enableNodePublicIp", True),
                    "propertyBag": {},
                },
            },
        }
        if body.get("identity"):
            resource["identity"] = _identity(body["identity"], self._emulator)
        return resource

    def _end(self, name: str, fault: dict[str, Any] | None = None) -> None:
        """Bring a cluster to where its making ends."""
        with self._emulator.store.lock:
            resource = self._emulator.store.get(self._id(name))
            if resource is not None:
                errors = [{"error": {"details": [], "additionalInfo": [], **fault}}] if fault else None
                state = "Failed" if fault else "Succeeded"
                resource["properties"] |= {
                    "provisioningState": state,
                    "provisioningErrors": errors,
                    "modifiedOn": now(),
                }
                self._emulator.store.put(resource["id"], resource)

    def _gone(self, name: str, fault: dict[str, Any] | None) -> None:
        if fault:
            self._end(name, fault)
        else:
            self._emulator.store.delete(self._id(name))


_NODE_STATES = (
    "preparingNodeCount",
    "runningNodeCount",
    "idleNodeCount",
    "unusableNodeCount",
    "leavingNodeCount",
    "preemptedNodeCount",
)
_UNKNOWN_YET = ("currentNodeCount", "targetNodeCount", "nodeStateCounts", "allocationState")


def _creating(resource: dict[str, Any]) -> dict[str, Any]:
    """The answer to a creation knows nothing of nodes yet."""
    properties = resource["properties"]
    hidden = ("allocationStateTransitionTime", "propertyBag")
    inner = {key: value for key, value in properties["properties"].items() if key not in hidden}
    return {**resource, "properties": {**properties, "properties": {**inner, **dict.fromkeys(_UNKNOWN_YET)}}}


def _scale(given: dict[str, Any]) -> dict[str, Any]:
    return {
        "maxNodeCount": given.get("maxNodeCount", 1),
        "minNodeCount": given.get("minNodeCount", 0),
        "nodeIdleTimeBeforeScaleDown": given.get("nodeIdleTimeBeforeScaleDown") or "PT2M",
    }


def _require_scale(given: dict[str, Any]) -> None:
    smallest, largest = given.get("minNodeCount", 0), given.get("maxNodeCount", 1)
    if not isinstance(smallest, int) or not isinstance(largest, int) or not 0 <= smallest <= largest:
        raise validation_error(f"minNodeCount {smallest} and maxNodeCount {largest} are not a range of node counts.")
    if not _IDLE.fullmatch(given.get("nodeIdleTimeBeforeScaleDown") or "PT0S"):
        raise validation_error(
            f"nodeIdleTimeBeforeScaleDown '{given['nodeIdleTimeBeforeScaleDown']}' is not a duration in ISO 8601."
        )


def _require_same(name: str, before: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Only scale, identity and tags of a cluster change; the rest needs another cluster."""
    for field in ("vmSize", "vmPriority", "enableNodePublicIp"):
        value = wanted.get(field)
        if value is not None and str(value).upper() != str(before[field]).upper():
            raise ServiceError(
                400,
                "BadRequest",
                f"The {field} of compute {name} cannot be changed from {before[field]} to {value}. "
                "Delete the compute and create it again.",
            )


def _identity(given: dict[str, Any], emulator: Emulator) -> dict[str, Any]:
    kinds = {part.strip() for part in str(given.get("type")).split(",")}
    if not kinds <= {"SystemAssigned", "UserAssigned", "None"}:
        raise validation_error(f"The identity type '{given.get('type')}' is not valid.")
    return emulator.identity_resource(given)
