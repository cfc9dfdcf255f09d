"""What a deployment would change, by Resource Manager's own what-if, as values for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from tasks.platforms.azure.foundation.blueprint import Blueprint
from tasks.platforms.azure.foundation.names import last_name
from tasks.platforms.azure.foundation.survey import type_of
from tasks.platforms.azure.foundation.wanted_roles import ROLE_NAMES, Role
from tasks.platforms.upkeep import ResourceChange

ROLE = "role"
# For people; a type that is not here is told as the service writes it.
_KINDS = {
    "microsoft.resources/resourcegroups": "resource group",
    "microsoft.storage/storageaccounts": "storage account",
    "microsoft.containerregistry/registries": "container registry",
    "microsoft.managedidentity/userassignedidentities": "identity",
    "microsoft.authorization/roleassignments": ROLE,
    "microsoft.operationalinsights/workspaces": "log analytics",
    "microsoft.insights/components": "application insights",
    "microsoft.keyvault/vaults": "key vault",
    "microsoft.machinelearningservices/workspaces": "workspace",
    "microsoft.machinelearningservices/workspaces/computes": "cluster",
    "microsoft.documentdb/databaseaccounts": "Cosmos DB account",
    "microsoft.consumption/budgets": "budget",
}
_ACTIONS = {"Create": "create", "Modify": "modify", "Deploy": "modify", "Unsupported": "unknown"}


def kind_of(resource_id: str) -> str:
    """What people call a resource of this id's type."""
    kind = type_of(resource_id) if "/providers/" in resource_id else "Microsoft.Resources/resourceGroups"
    return _KINDS.get(kind.lower(), kind)


def creation(resource_id: str, name: str = "") -> ResourceChange:
    """The change of something that is not there yet."""
    return ResourceChange(
        action="create", kind=kind_of(resource_id), name=name or last_name(resource_id), location=resource_id
    )


def role_creation(role: Role) -> ResourceChange:
    """The change of a role that is not given yet, perhaps to an identity that is not there yet."""
    return creation(role.id, role_name(role))


def role_name(role: Role) -> str:
    """Which role, on what, for whom."""
    whom = f"engineer {role.principal_id}" if role.is_person else "the identity"
    return f"{ROLE_NAMES[role.role]} on {kind_of(role.scope)} {last_name(role.scope)} for {whom}"


def read_changes(result: Any, blueprint: Blueprint) -> Iterator[ResourceChange]:
    """The changes that a what-if foretells; what stays as it is, and what the template does not have, is left out.

    Args:
        result: azure.mgmt.resource.deployments' WhatIfOperationResult.
    Source: https://learn.microsoft.com/azure/azure-resource-manager/templates/deploy-what-if#change-types
    """
    names = {role.id.lower(): role_name(role) for role in blueprint.roles if role.principal_id}
    for change in result.changes or ():
        action = _ACTIONS.get(str(getattr(change.change_type, "value", change.change_type)), "")
        paths, location = dict(_paths(change.delta or ())), str(change.resource_id)
        # What a resource has and the template does not speak of, the service leaves as it is: no reason to deploy.
        if not action or (change.change_type == "Modify" and set(paths.values()) <= {"Delete"}):
            continue
        details = {"modify": ", ".join(paths), "unknown": str(change.unsupported_reason or "")}
        yield ResourceChange(
            action=action,
            kind=kind_of(location),
            name=names.get(location.lower()) or last_name(location),
            location=location,
            detail=details.get(action, ""),
        )


def _paths(delta: Iterable[Any], above: str = "") -> Iterator[tuple[str, str]]:
    """The properties that change, each with how; one without effect does not."""
    for one in delta:
        how = str(getattr(one.property_change_type, "value", one.property_change_type))
        path = f"{above}.{one.path}".lstrip(".")
        if one.children:
            yield from _paths(one.children, path)
        elif how != "NoEffect":
            yield path, how
