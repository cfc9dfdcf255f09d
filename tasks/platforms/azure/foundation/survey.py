"""What is already there of what `phiflow up` makes; changes nothing."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.client import WORKSPACE_API
from tasks.platforms.azure.foundation.blueprint import Found, identity_id
from tasks.platforms.azure.foundation.names import last_name, resource_names
from tasks.platforms.azure.foundation.template import api_version
from tasks.platforms.errors import NotFoundError

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

GROUPS_API = "2021-04-01"


def survey(workspace: Workspace) -> Found:
    """Look for the resource group and, in it, what decides how the rest is made."""
    config = workspace.config
    names = resource_names(config)
    group = read_resource(workspace, names.group, GROUPS_API, f"Resource group {config.resource_group}")
    own_identity = identity_id(config)
    if group is None and own_identity == names.identity:
        return Found()
    return Found(
        group=group,
        workspace=read_resource(workspace, names.workspace, WORKSPACE_API, f"Workspace {config.workspace}"),
        identity=_read(workspace, own_identity),
        budget=_read(workspace, names.budget) if config.resources.monthly_budget else None,
    )


def read_resource(workspace: Workspace, resource_id: str, version: str, what: str) -> dict[str, Any] | None:
    """The resource as the service tells it; None: it does not exist."""
    try:
        told: dict[str, Any] = workspace.send("GET", resource_id, params={"api-version": version}, what=what).json()
    except NotFoundError:
        return None
    return told


def type_of(resource_id: str) -> str:
    """The resource type that an id says, such as Microsoft.KeyVault/vaults or, below one, its child's."""
    namespace, *parts = resource_id.rpartition("/providers/")[2].split("/")
    return "/".join((namespace, *parts[0::2]))


def exists(workspace: Workspace, resource_id: str) -> bool:
    """Whether a resource of one of the template's types is there."""
    return _read(workspace, resource_id) is not None


def budget_start(found: Found) -> str:
    """When the budget begins: as it did, since that never changes; else this month."""
    if found.budget:
        return str(found.budget["properties"]["timePeriod"]["startDate"])
    return f"{datetime.now(UTC):%Y-%m}-01T00:00:00Z"


def _read(workspace: Workspace, resource_id: str) -> dict[str, Any] | None:
    kind = type_of(resource_id)
    return read_resource(workspace, resource_id, api_version(kind), f"{kind} {last_name(resource_id)}")
