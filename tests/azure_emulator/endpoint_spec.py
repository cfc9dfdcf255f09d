"""Checks endpoints and deployments as the service checks them, and completes what it stores of them."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from typing import Any

from tests.azure_emulator.job_spec import InvalidJobError, seconds_of
from tests.azure_emulator.uris import Read

_ENDPOINT_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{1,30})[A-Za-z0-9]")
_DEPLOYMENT_NAME = re.compile(r"[A-Za-z](?:[A-Za-z0-9-]{0,30})[A-Za-z0-9]")
_INSTANCE = re.compile(r"(?i)standard_[a-z]+\d+[a-z0-9_-]*")
_SHORT_ASSET = re.compile(r"azureml:([\w.-]+):([\w.-]+)")
_IDENTITY = re.compile(
    r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/Microsoft\.ManagedIdentity/userAssignedIdentities/[^/]+",
    re.IGNORECASE,
)
_AUTH_MODES = {"key": "Key", "amltoken": "AMLToken", "aadtoken": "AADToken"}
_LONGEST_REQUEST_SECONDS = 180.0
TENANT = "00000000-0000-0000-0000-0000000000aa"


class InvalidEndpointError(Exception):
    """An endpoint or a deployment that the service refuses, with the reason."""


def require_endpoint(name: str, body: Mapping[str, Any], deployments: set[str]) -> None:
    """Refuse what the service refuses of an endpoint.

    Args:
        deployments: the names of the deployments that it has.
    Raises:
        InvalidEndpointError: says which field is wrong.
    """
    if not _ENDPOINT_NAME.fullmatch(name):
        raise InvalidEndpointError(
            f"Endpoint name '{name}' is not valid: 3 to 32 letters, digits and '-', beginning with a letter."
        )
    if not body.get("location"):
        raise InvalidEndpointError("The location field is required.")
    properties = body.get("properties") or {}
    if str(properties.get("authMode", "")).lower() not in _AUTH_MODES:
        raise InvalidEndpointError(f"The authMode '{properties.get('authMode')}' is not Key, AMLToken or AADToken.")
    _require_identity(body.get("identity"))
    for field in ("traffic", "mirrorTraffic"):
        _require_split(field, properties.get(field) or {}, deployments)


def _require_identity(identity: Mapping[str, Any] | None) -> None:
    if not identity:
        raise InvalidEndpointError("The identity field is required.")
    kinds = {part.strip() for part in str(identity.get("type", "")).split(",")}
    if not kinds <= {"SystemAssigned", "UserAssigned"} or not kinds:
        raise InvalidEndpointError(f"The identity type '{identity.get('type')}' is not valid.")
    assigned = identity.get("userAssignedIdentities") or {}
    if ("UserAssigned" in kinds) != bool(assigned):
        raise InvalidEndpointError("userAssignedIdentities must be given with type UserAssigned, and only then.")
    for resource in assigned:
        if not _IDENTITY.fullmatch(resource):
            raise InvalidEndpointError(f"'{resource}' is not the resource id of a user-assigned identity.")


def _require_split(field: str, split: Mapping[str, Any], deployments: set[str]) -> None:
    for deployment, percent in split.items():
        if deployment not in deployments:
            raise InvalidEndpointError(f"The {field} names deployment '{deployment}', which does not exist.")
        if isinstance(percent, bool) or not isinstance(percent, int) or not 0 <= percent <= 100:
            raise InvalidEndpointError(f"The {field} of '{deployment}' is {percent!r}, not a percentage.")
    total = sum(split.values())
    if field == "mirrorTraffic":
        if total > 50:
            raise InvalidEndpointError(f"The mirrorTraffic is {total}, and may be 50 at most.")
    elif total not in (0, 100):
        raise InvalidEndpointError(f"Sum of traffic is {total}, it must be 0 or 100.")


def endpoint_resource(
    resource_id: str, body: Mapping[str, Any], operation: str, before: Any, now: str
) -> dict[str, Any]:
    """The endpoint as the service stores it while it is made or changed."""
    properties = body["properties"]
    name = resource_id.rsplit("/", 1)[-1]
    known = (before or {}).get("properties", {})
    return {
        "id": resource_id,
        "name": name,
        "type": "Microsoft.MachineLearningServices/workspaces/onlineEndpoints",
        "properties": {
            "description": properties.get("description"),
            "properties": {
                **(properties.get("properties") or {}),
                "azureml.onlineendpointid": resource_id.lower(),
                "AzureAsyncOperationUri": operation,
            },
            "scoringUri": known.get("scoringUri"),
            "swaggerUri": known.get("swaggerUri"),
            "authMode": _AUTH_MODES[properties["authMode"].lower()],
            "provisioningState": "Updating" if before else "Creating",
            "compute": None,
            "traffic": dict(properties.get("traffic") or {}),
            "mirrorTraffic": dict(properties.get("mirrorTraffic") or {}),
            "publicNetworkAccess": properties.get("publicNetworkAccess") or "Enabled",
        },
        "systemData": _system_data(before, now),
        "tags": dict(body.get("tags") or {}),
        "location": body["location"],
        "kind": "Managed",
        "identity": _identity(body["identity"], name),
    }


def _identity(identity: Mapping[str, Any], name: str) -> dict[str, Any]:
    result: dict[str, Any] = {"type": identity["type"]}
    if "SystemAssigned" in identity["type"]:
        result["principalId"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"endpoint:{name}"))
        result["tenantId"] = TENANT
    if identity.get("userAssignedIdentities"):
        result["userAssignedIdentities"] = {
            resource: {
                "principalId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"principal:{resource.lower()}")),
                "clientId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"client:{resource.lower()}")),
            }
            for resource in identity["userAssignedIdentities"]
        }
    return result


def require_deployment(name: str, body: Mapping[str, Any], read: Read, workspace: str, before: Any) -> None:
    """Refuse what the service refuses of a deployment.

    Raises:
        InvalidEndpointError: says which field is wrong.
    """
    if not _DEPLOYMENT_NAME.fullmatch(name):
        raise InvalidEndpointError(
            f"Deployment name '{name}' is not valid: 2 to 32 letters, digits and '-', beginning with a letter."
        )
    properties = body.get("properties") or {}
    if properties.get("endpointComputeType") != "Managed":
        raise InvalidEndpointError(f"The endpointComputeType '{properties.get('endpointComputeType')}' is not Managed.")
    if not _INSTANCE.fullmatch(str(properties.get("instanceType", ""))):
        raise InvalidEndpointError(f"The instanceType '{properties.get('instanceType')}' is not a size that is known.")
    if before and before["properties"]["instanceType"].lower() != properties["instanceType"].lower():
        raise InvalidEndpointError("The instanceType of a deployment cannot be changed.")
    if not body.get("location"):
        raise InvalidEndpointError("The location field is required.")
    capacity = (body.get("sku") or {}).get("capacity")
    if not isinstance(capacity, int) or capacity < 1:
        raise InvalidEndpointError(f"The sku capacity is {capacity!r}, not a number of instances.")
    for field, kind in (("model", "models"), ("environmentId", "environments")):
        given = properties.get(field)
        if given and read(asset_id(given, kind, workspace)) is None:
            raise InvalidEndpointError(f"The {field} '{given}' does not exist in the workspace.")
    model = properties.get("model") and read(asset_id(properties["model"], "models", workspace))
    no_code = bool(model) and model["properties"].get("modelType") == "mlflow_model"
    if not properties.get("environmentId") and not no_code:
        raise InvalidEndpointError("environmentId is required unless the model is an mlflow_model.")
    _require_settings(properties)


def asset_id(given: str, kind: str, workspace: str) -> str:
    """The resource id of a model or environment that may be given in its short form."""
    match = _SHORT_ASSET.fullmatch(given)
    return f"{workspace}/{kind}/{match[1]}/versions/{match[2]}" if match else given


def _require_settings(properties: Mapping[str, Any]) -> None:
    settings = properties.get("requestSettings") or {}
    try:
        timeout = seconds_of(settings.get("requestTimeout"), 5)
        seconds_of(settings.get("maxQueueWait"), 0.5)
        for probe in ("livenessProbe", "readinessProbe"):
            for field in ("initialDelay", "period", "timeout"):
                seconds_of((properties.get(probe) or {}).get(field), 1)
    except InvalidJobError as error:
        raise InvalidEndpointError(str(error)) from error
    if timeout > _LONGEST_REQUEST_SECONDS:
        raise InvalidEndpointError(
            f"The requestTimeout is {timeout:g} s; the longest for managed online endpoints is 180 s."
        )
    if int(settings.get("maxConcurrentRequestsPerInstance") or 1) < 1:
        raise InvalidEndpointError("maxConcurrentRequestsPerInstance must be at least 1.")


def deployment_resource(
    resource_id: str, body: Mapping[str, Any], operation: str, before: Any, now: str
) -> dict[str, Any]:
    """The deployment as the service stores it, with the defaults it fills in."""
    properties = body["properties"]
    settings = properties.get("requestSettings") or {}
    return {
        "id": resource_id,
        "name": resource_id.rsplit("/", 1)[-1],
        "type": "Microsoft.MachineLearningServices/workspaces/onlineEndpoints/deployments",
        "properties": {
            "description": properties.get("description"),
            "properties": {**(properties.get("properties") or {}), "AzureAsyncOperationUri": operation},
            "codeConfiguration": properties.get("codeConfiguration"),
            "environmentId": properties.get("environmentId"),
            "environmentVariables": dict(properties.get("environmentVariables") or {}),
            "scaleSettings": properties.get("scaleSettings") or {"scaleType": "Default"},
            "requestSettings": {
                "maxQueueWait": settings.get("maxQueueWait") or "PT0.5S",
                "requestTimeout": settings.get("requestTimeout") or "PT5S",
                "maxConcurrentRequestsPerInstance": int(settings.get("maxConcurrentRequestsPerInstance") or 1),
            },
            "modelMountPath": properties.get("modelMountPath"),
            "appInsightsEnabled": bool(properties.get("appInsightsEnabled")),
            "livenessProbe": _probe(properties.get("livenessProbe")),
            "readinessProbe": _probe(properties.get("readinessProbe")),
            "provisioningState": "Updating" if before else "Creating",
            "instanceType": properties["instanceType"],
            "model": properties.get("model"),
            "egressPublicNetworkAccess": properties.get("egressPublicNetworkAccess") or "Enabled",
            "endpointComputeType": "Managed",
        },
        "systemData": _system_data(before, now),
        "tags": dict(body.get("tags") or {}),
        "location": body["location"],
        "kind": "Managed",
        "sku": {"name": "Default", "tier": "Standard", "capacity": body["sku"]["capacity"]},
    }


def _probe(given: Mapping[str, Any] | None) -> dict[str, Any]:
    given = given or {}
    return {
        "failureThreshold": int(given.get("failureThreshold") or 30),
        "successThreshold": int(given.get("successThreshold") or 1),
        "timeout": given.get("timeout") or "PT2S",
        "period": given.get("period") or "PT10S",
        "initialDelay": given.get("initialDelay") or "PT10S",
    }


def _system_data(before: Any, now: str) -> dict[str, Any]:
    created = (before or {}).get("systemData", {}).get("createdAt", now)
    return {"createdAt": created, "createdBy": "Emulator", "lastModifiedAt": now}
