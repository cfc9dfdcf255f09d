"""`GET /_emulator/inventory`: everything that exists in the subscription, for tests that ask what is left.

    {"value": [{"id": ..., "type": ..., "tags": {...}}, ...]}

Resource groups, resources with the children that cost or are tagged, role assignments other than the caller's own on
the subscription, deployments of templates, deleted vaults and workspaces that are not purged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.azure_emulator.names import PRINCIPAL
from tests.azure_emulator.resource_types import TYPES, WORKSPACE
from tests.azure_emulator.role_assignments import role_assignments
from tests.azure_emulator.web import Answer

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator


def install(emulator: Emulator) -> None:
    """Register the route."""
    emulator.register("GET", "/_emulator/inventory", lambda _: Answer(200, {"value": inventory(emulator)}))


def inventory(emulator: Emulator) -> list[dict[str, Any]]:
    """What exists, in the order of the ids."""
    subscription = emulator.scope.subscription_id
    found = [*emulator.store.list(f"{subscription}/resourceGroups")]
    for one in emulator.store.walk(f"{subscription}/resourceGroups"):
        kind = TYPES.get(str(one.get("type", "")).lower())
        if kind and not kind.name.endswith("roleAssignments"):
            found.append(one)
    own = {"principalId": PRINCIPAL, "scope": subscription}
    for one in role_assignments(emulator):
        if {key: str(one["properties"].get(key)).lower() for key in own} != own:
            found.append(one)
    shown = [{"id": one["id"], "type": one["type"], "tags": one.get("tags") or {}} for one in found]
    for deployment in emulator.template_deployments.ids():
        shown.append({"id": deployment, "type": "Microsoft.Resources/deployments", "tags": {}})
    for vault in emulator.soft_deleted.vaults():
        shown.append({"id": vault["id"], "type": vault["type"], "tags": vault["properties"]["tags"]})
    for workspace in emulator.soft_deleted.workspaces():
        shown.append({"id": workspace, "type": f"deleted {WORKSPACE}", "tags": {}})
    return sorted(shown, key=lambda one: one["id"].lower())
