"""What is to be there for a configuration, given what is there: resources to make or to use, and roles.

Every resource and role of the template has a word here, the same as in its condition. No I/O: `survey` looks,
`template` fills in, `provisioning` deploys.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.foundation.names import (
    WORKSPACE_TAG,
    ResourceNames,
    last_name,
    resource_names,
)
from tasks.platforms.azure.foundation.wanted_roles import Role, wanted_roles
from tasks.platforms.azure.infrastructure import cluster_name
from tasks.platforms.errors import ConfigError, ConflictError

if TYPE_CHECKING:
    from tasks.config import AzurePlatformConfig, AzureResourcesConfig, PipelineConfig

OWNER_RESOURCES = ("storageAccount", "containerRegistry", "identity")
ENGINEER_RESOURCES = (
    "logAnalytics",
    "applicationInsights",
    "keyVault",
    "workspace",
    "cluster",
    "chatHistory",
    "budget",
)
# Whose key in platform.resources names an existing one instead, and of which type that has to be.
_CONFIGURED = {
    "storageAccount": ("storage_account", "Microsoft.Storage/storageAccounts"),
    "containerRegistry": ("container_registry", "Microsoft.ContainerRegistry/registries"),
    "logAnalytics": ("log_analytics", "Microsoft.OperationalInsights/workspaces"),
    "applicationInsights": ("application_insights", "Microsoft.Insights/components"),
    "keyVault": ("key_vault", "Microsoft.KeyVault/vaults"),
}
# Of an existing workspace, which these are cannot be changed.
_OF_A_WORKSPACE = ("storageAccount", "containerRegistry", "applicationInsights", "keyVault")
_RESOURCE_ID = re.compile(r"/subscriptions/[^/]+/resourceGroups/[^/]+/providers/([^/]+/[^/]+)/[^/]+", re.IGNORECASE)
_IDENTITY = "Microsoft.ManagedIdentity/userAssignedIdentities"
_OUR_NAME = re.compile(r"phi[0-9a-f]{18}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is there already, as the service tells it; None: it is not."""

    group: dict[str, Any] | None = None
    workspace: dict[str, Any] | None = None
    identity: dict[str, Any] | None = None
    budget: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Blueprint:
    """What is to be there.

    Args:
        ids: resource ids by word, of what is made and of what is used; empty: there is none.
        made: the words of the resources that are ours to make.
    """

    names: ResourceNames
    location: str
    cluster_location: str
    ids: dict[str, str]
    made: tuple[str, ...]
    roles: tuple[Role, ...]

    def without(self, roles: Collection[Role]) -> Blueprint:
        """The same, less these roles."""
        return replace(self, roles=tuple(role for role in self.roles if role not in roles))

    def made_by(self, part: str) -> tuple[str, ...]:
        """The words of the resources that a part makes."""
        owner = OWNER_RESOURCES if part in ("owner", "all") else ()
        engineer = ENGINEER_RESOURCES if part in ("engineer", "all") else ()
        return tuple(word for word in (*owner, *engineer) if word in self.made)


def named_resources(config: AzurePlatformConfig, blueprint: Blueprint) -> dict[str, str]:
    """The existing resources that the configuration names, by its key; one of our own names is none of them."""
    named = {word: (f"resources.{key}", str(getattr(config.resources, key))) for word, (key, _) in _CONFIGURED.items()}
    named["identity"] = ("identity.resource_id", blueprint.ids["identity"])
    return {key: one for word, (key, one) in named.items() if one and word not in blueprint.made}


def identity_id(config: AzurePlatformConfig) -> str:
    """The identity of cluster and endpoint: the one that is configured, unless an earlier `up` wrote it for another
    workspace; else the workspace's own."""
    configured, own = config.identity.resource_id, resource_names(config).identity
    return own if not configured or _OUR_NAME.fullmatch(last_name(configured)) else configured


def is_ours(workspace: dict[str, Any]) -> bool:
    """Whether `phiflow up` made this workspace; another's is used as it is."""
    tag = (workspace.get("tags") or {}).get(WORKSPACE_TAG, "")
    return str(tag).lower() == str(workspace["name"]).lower()


def draw_blueprint(config: PipelineConfig, found: Found) -> Blueprint:
    """Decide what is to be there.

    Raises:
        ConfigError: no region is known, or an id in platform.resources is none of its kind.
        ConflictError: the workspace uses another resource than the configuration names.
    """
    platform = config.platform
    assert platform.kind == "azure"
    names = resource_names(platform)
    location = _location(platform, found)
    ids = _ids(platform, names, found)
    principal = str(found.identity["properties"]["principalId"]) if found.identity else ""
    ids["cluster"] = f"{names.workspace}/computes/{cluster_name(config.compute)}" if config.compute.size else ""
    return Blueprint(
        names=names,
        location=location,
        cluster_location=platform.location or location,
        ids=ids,
        made=_made(config, names, ids, found),
        roles=wanted_roles(platform, names, ids, principal),
    )


def _location(config: AzurePlatformConfig, found: Found) -> str:
    """The workspace's region; of one to make, the configured one, else its resource group's."""
    there = found.workspace or (None if config.location else found.group)
    location = str(there["location"]) if there else config.location
    if not location:
        raise ConfigError(
            f"platform.location is empty, and neither workspace {config.workspace} nor its resource group exists.",
            fix="Say in which region to make them: --set platform.location=westeurope",
        )
    return location


def _ids(config: AzurePlatformConfig, names: ResourceNames, found: Found) -> dict[str, str]:
    ids = {
        "storageAccount": names.storage_account,
        "containerRegistry": names.container_registry,
        "identity": identity_id(config),
        "logAnalytics": names.log_analytics,
        "applicationInsights": names.application_insights,
        "keyVault": names.key_vault,
        "workspace": names.workspace,
        "chatHistory": names.chat_history,
        "budget": names.budget,
    }
    for word, (key, kind) in _CONFIGURED.items():
        ids[word] = _existing(config.resources, key, kind) or ids[word]
    if config.identity.resource_id:
        _require_kind("identity.resource_id", config.identity.resource_id, _IDENTITY)
    if found.workspace:
        for word in _OF_A_WORKSPACE:
            there = str(found.workspace["properties"].get(word) or "")
            key = _CONFIGURED[word][0]
            if getattr(config.resources, key) and there.lower() != ids[word].lower():
                raise ConflictError(
                    f"platform.resources.{key} names {last_name(ids[word])}, but workspace {config.workspace} "
                    f"exists and uses {last_name(there) or 'none'}.",
                    fix=f"Empty platform.resources.{key}, or name another platform.workspace.",
                )
            if there or not is_ours(found.workspace):
                ids[word] = there
    return ids


def _existing(resources: AzureResourcesConfig, key: str, kind: str) -> str:
    configured = str(getattr(resources, key)).rstrip("/")
    if configured:
        _require_kind(f"resources.{key}", configured, kind)
    return configured


def _require_kind(key: str, resource_id: str, kind: str) -> None:
    match = _RESOURCE_ID.fullmatch(resource_id)
    if match is None or match[1].lower() != kind.lower():
        raise ConfigError(
            f"platform.{key}: '{resource_id}' is no resource id of a {kind}.",
            fix=f"Expected /subscriptions/ID/resourceGroups/GROUP/providers/{kind}/NAME; az resource list prints them.",
        )


def _made(config: PipelineConfig, names: ResourceNames, ids: dict[str, str], found: Found) -> tuple[str, ...]:
    assert config.platform.kind == "azure"
    resources = config.platform.resources
    foreign = found.workspace is not None and not is_ours(found.workspace)

    def is_made(word: str, name: str) -> bool:
        return not foreign and ids[word].lower() == name.lower()

    makes_insights = is_made("applicationInsights", names.application_insights)
    answers = {
        "storageAccount": is_made("storageAccount", names.storage_account),
        "containerRegistry": is_made("containerRegistry", names.container_registry),
        "identity": ids["identity"].lower() == names.identity.lower(),
        "logAnalytics": makes_insights and is_made("logAnalytics", names.log_analytics),
        "applicationInsights": makes_insights,
        "keyVault": is_made("keyVault", names.key_vault),
        "workspace": not foreign,
        "cluster": bool(ids["cluster"]),
        "chatHistory": resources.chat_history,
        "budget": resources.monthly_budget > 0,
    }
    return tuple(word for word, made in answers.items() if made)
