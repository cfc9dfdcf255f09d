"""Names and ids of what `phiflow up` makes around a workspace: computed from where the workspace is, and nothing else.

So the same configuration always names the same resources: a second `up` finds them, and `down` needs no record.
"""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.platforms.azure.infrastructure import TAGS
from tasks.platforms.refs import digest_of

if TYPE_CHECKING:
    from tasks.config import AzurePlatformConfig

WORKSPACE_TAG = "phiflow.workspace"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceNames:
    """Resource ids; all but the workspace share one name, `base`.

    Storage accounts, key vaults, registries and Cosmos DB accounts are named in one space with everybody else's, so
    the name is a digest. It fits the strictest rule of them, a storage account's: 24 lower-case letters and digits.
    """

    base: str
    group: str
    workspace: str
    storage_account: str
    container_registry: str
    identity: str
    log_analytics: str
    application_insights: str
    key_vault: str
    chat_history: str
    budget: str


def resource_names(config: AzurePlatformConfig) -> ResourceNames:
    """What belongs to a workspace, where nothing existing is named instead."""
    coordinates = (config.subscription_id, config.resource_group, config.workspace)
    base = f"phi{digest_of(*map(str.lower, coordinates))[:18]}"
    group = f"/subscriptions/{config.subscription_id}/resourceGroups/{config.resource_group}"
    return ResourceNames(
        base=base,
        group=group,
        workspace=f"{group}/providers/Microsoft.MachineLearningServices/workspaces/{config.workspace}",
        storage_account=f"{group}/providers/Microsoft.Storage/storageAccounts/{base}",
        container_registry=f"{group}/providers/Microsoft.ContainerRegistry/registries/{base}",
        identity=f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/{base}",
        log_analytics=f"{group}/providers/Microsoft.OperationalInsights/workspaces/{base}",
        application_insights=f"{group}/providers/Microsoft.Insights/components/{base}",
        key_vault=f"{group}/providers/Microsoft.KeyVault/vaults/{base}",
        chat_history=f"{group}/providers/Microsoft.DocumentDB/databaseAccounts/{base}",
        budget=f"{group}/providers/Microsoft.Consumption/budgets/{base}",
    )


def resource_tags(config: AzurePlatformConfig) -> dict[str, str]:
    """The tags of everything that `phiflow up` makes for a workspace."""
    return {**TAGS, WORKSPACE_TAG: config.workspace}


def role_assignment_name(scope: str, role: str, principal_id: str) -> str:
    """A role assignment's GUID: the same assignment always has the same, so that it is made once.

    Args:
        scope: the resource id that the role is given on.
        role: the role definition's GUID.
    """
    return str(uuid.uuid5(uuid.NAMESPACE_URL, "|".join((scope, role, principal_id)).lower()))


def last_name(resource_id: str) -> str:
    """The resource's own name."""
    return resource_id.rstrip("/").rpartition("/")[2]


def is_within(resource_id: str, scope: str) -> bool:
    """Whether a resource is the scope itself or below it; ids compare without regard to case."""
    return f"{resource_id.rstrip('/')}/".lower().startswith(f"{scope.rstrip('/')}/".lower())
