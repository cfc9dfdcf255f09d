"""What a deployment of a template would change: what the template names, compared with what is there.

https://learn.microsoft.com/azure/azure-resource-manager/templates/deploy-what-if
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.expressions import TemplateError
from tests.azure_emulator.resource_ids import parse_id
from tests.azure_emulator.resource_types import TYPES, normal_location
from tests.azure_emulator.templates import Template, TemplateResource
from tests.azure_emulator.web import ServiceError

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_MEMBERS = ("location", "tags", "kind", "sku", "identity", "zones", "properties")


def changes(emulator: Emulator, template: Template, group_id: str, *, payloads: bool) -> list[dict[str, Any]]:
    """The changes, one for each resource of the template and of the group, in the order of their ids.

    Args:
        payloads: whether to tell the resources before and after.
    """
    found = [_change(emulator, template, one) for one in template.order]
    named = {one.id.lower() for one in template.resources}
    for one in emulator.groups.resources(group_id):
        if one["id"].lower() not in named:
            found.append(
                {"resourceId": one["id"], "changeType": "Ignore", "before": _payload(one, _version(one["id"]))}
            )
    if not payloads:
        found = [{key: one[key] for key in ("resourceId", "changeType")} for one in found]
    return sorted(found, key=lambda one: str(one["resourceId"]).lower())


def _change(emulator: Emulator, template: Template, one: TemplateResource) -> dict[str, Any]:
    wanted = _wanted(emulator, template, one)
    after = {"apiVersion": one.version, "id": one.id, "name": one.name.rsplit("/", 1)[-1], "type": one.type, **wanted}
    there = _there(emulator, one.id, one.version)
    if there is None:
        return {"resourceId": one.id, "changeType": "Create", "after": after}
    before = _payload(there, one.version)
    delta = [change for key in _MEMBERS if key in wanted for change in differences(key, before.get(key), wanted[key])]
    if "tags" in wanted:  # which a deployment replaces
        delta += [
            {"path": f"tags.{key}", "propertyChangeType": "Delete", "before": value}
            for key, value in (before.get("tags") or {}).items()
            if key not in wanted["tags"]
        ]
    kind = "Modify" if delta else "NoChange"
    change: dict[str, Any] = {"resourceId": one.id, "changeType": kind, "before": before, "after": after}
    return {**change, "delta": delta} if delta else change


def _wanted(emulator: Emulator, template: Template, one: TemplateResource) -> dict[str, Any]:
    """What would be sent; what refers to something that is not there stays as the template has it."""

    def reference(resource_id: str, version: str, full: bool) -> Any:
        found = _there(emulator, resource_id, version or _version(resource_id))
        if found is None:
            raise TemplateError("It is not there yet.")
        return found if full else found.get("properties") or {}

    with contextlib.suppress(TemplateError):
        return template.body(one, reference)
    return {key: one.raw[key] for key in _MEMBERS if key in one.raw}


def _there(emulator: Emulator, resource_id: str, version: str) -> dict[str, Any] | None:
    with contextlib.suppress(ServiceError):
        found = emulator.call("GET", resource_id, version).body
        return found if isinstance(found, dict) else None
    return None


def _version(resource_id: str) -> str:
    parsed = parse_id(resource_id)
    known = TYPES.get(parsed.type.lower()) if parsed else None
    return known.versions[-1] if known else ""


def _payload(resource: dict[str, Any], version: str) -> dict[str, Any]:
    kept = {key: resource[key] for key in ("id", "name", "type", *_MEMBERS) if resource.get(key) is not None}
    return {"apiVersion": version, **kept}


def differences(path: str, before: Any, after: Any) -> list[dict[str, Any]]:
    """The differences of what is wanted from what is there; what nobody wants anything of is left out."""
    if after is None:
        return []
    if isinstance(after, dict) and isinstance(before, dict):
        known = {key.lower(): value for key, value in before.items()}
        pairs = [(f"{path}.{key}", known.get(key.lower()), value) for key, value in after.items()]
        return [change for pair in pairs for change in differences(*pair)]
    if isinstance(after, list) and isinstance(before, list):
        children = [
            change
            for number, value in enumerate(after)
            for change in differences(str(number), before[number] if number < len(before) else None, value)
        ]
        if len(before) > len(after):
            children += [
                {"path": str(number), "propertyChangeType": "Delete", "before": before[number]}
                for number in range(len(after), len(before))
            ]
        return [{"path": path, "propertyChangeType": "Array", "children": children}] if children else []
    if before is None:
        return [] if after in ({}, []) else [{"path": path, "propertyChangeType": "Create", "after": after}]
    same = _normal(path, before) == _normal(path, after)
    return [] if same else [{"path": path, "propertyChangeType": "Modify", "before": before, "after": after}]


def _normal(path: str, value: Any) -> Any:
    """Providers keep texts in a case of their own, and locations without spaces."""
    if not isinstance(value, str):
        return value
    return normal_location(value) if path.lower().endswith("location") else value.lower()
