"""Deletes what `phiflow up` made around a workspace: what has its tags, and what its names make certain.

Resources are known by the tags `phiflow` and `phiflow.workspace`. What cannot have tags is known by names that phiflow
computes: role assignments, the budget, the records of template deployments. All else in the group is left, and told.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.clean_up.inventory import Inventory
from tasks.platforms.azure.foundation.names import (
    WORKSPACE_TAG,
    is_within,
    last_name,
    resource_names,
    role_assignment_name,
)
from tasks.platforms.azure.foundation.provisioning import ENGINEER_DEPLOYMENT, OWNER_DEPLOYMENT, ROLES_DEPLOYMENT
from tasks.platforms.azure.foundation.wanted_roles import ROLE_NAMES
from tasks.platforms.azure.foundation.what_if import kind_of, type_of
from tasks.platforms.azure.resource_manager import delete_resource, list_resources, purge_resource, read_resource
from tasks.platforms.errors import (
    ConflictError,
    PermissionDeniedError,
    PhiflowError,
)
from tasks.platforms.upkeep import Remainder, Removal

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.azure.client import Workspace

WORKSPACE, VAULT, DELETED_VAULT, GROUP = "workspace", "key vault", "deleted key vault", "resource group"
ROLE, BUDGET, RECORD = "role assignment", "budget", "deployment record"
_GROUPS_API, _ROLES_API, _BUDGETS_API, _VAULTS_API = "2021-04-01", "2022-04-01", "2023-11-01", "2023-07-01"
_WORKSPACE_TYPE = "microsoft.machinelearningservices/workspaces"
# Api-version and further parameters of a deletion, in the order in which things can go.
_TYPES: dict[str, tuple[str, dict[str, str]]] = {
    # Without it the name stays taken for 14 days: https://learn.microsoft.com/azure/machine-learning/concept-soft-delete
    _WORKSPACE_TYPE: ("2024-04-01", {"forceToPurge": "true"}),
    "microsoft.insights/components": ("2020-02-02", {}),
    # Without it a deleted one is kept for 14 days, and comes back with its data when its name is used again:
    # https://learn.microsoft.com/azure/azure-monitor/logs/delete-workspace
    "microsoft.operationalinsights/workspaces": ("2023-09-01", {"force": "true"}),
    "microsoft.containerregistry/registries": ("2023-07-01", {}),
    "microsoft.documentdb/databaseaccounts": ("2024-11-15", {}),
    "microsoft.storage/storageaccounts": ("2023-05-01", {}),
    "microsoft.managedidentity/userassignedidentities": ("2023-01-31", {}),
    "microsoft.keyvault/vaults": (_VAULTS_API, {}),
}
_ACTIVE = ("Accepted", "Running", "Creating", "Created", "Deleting", "Updating")
# What Azure itself puts beside Application Insights, without tags; it goes with the group.
_AUTOMATIC = ("failure anomalies - ", "application insights smart detection")
Item = Removal | Remainder


class Foundation:
    """What is around one workspace; read when it is first asked for."""

    def __init__(self, config: PipelineConfig, workspace: Workspace, inventory: Inventory) -> None:
        assert config.platform.kind == "azure"
        self._config = config.platform
        self._workspace = workspace
        self._inventory = inventory
        self._names = resource_names(config.platform)

    @functools.cached_property
    def workspace(self) -> dict[str, Any] | None:
        """The workspace's resource, if it is there."""
        return self._read(self._names.workspace, _TYPES[_WORKSPACE_TYPE][0], f"Workspace {self._workspace.name}")

    @property
    def owns_workspace(self) -> bool:
        """Whether `phiflow up` made the workspace."""
        return self.workspace is not None and self._is_ours(self.workspace)

    def items(self) -> list[Item]:
        """What goes, in this order, and what is left and why."""
        going = [item for item in self._resources() if isinstance(item, Removal)]
        staying = [item for item in self._resources() if isinstance(item, Remainder)]
        whole_group = self._group is not None and self._is_ours(self._group) and not staying
        items: list[Item] = [*self._roles(whole_group, engineer=False), *going]
        try:
            items += self._deleted_vaults()
        except PermissionDeniedError:
            vault = last_name(self._names.key_vault)
            reason = "if it was deleted, its name stays taken; whether it was cannot be seen, for want of rights"
            staying.append(Remainder(kind=DELETED_VAULT, name=vault, reason=reason, fix=_purge_command(vault)))
        items += [*self._budget(), *self._records(), *self._roles(whole_group, engineer=True)]
        if whole_group:
            effect = "phiflow made it, and nothing else is in it"
            items.append(
                Removal(kind=GROUP, name=last_name(self._names.group), location=self._names.group, effect=effect)
            )
        elif self._group is not None:
            reason = "other things are in it" if self._is_ours(self._group) else "phiflow did not make it"
            staying.append(Remainder(kind=GROUP, name=last_name(self._names.group), reason=reason))
        return [*items, *staying]

    def remove(self, removal: Removal) -> None:
        """Delete one thing, and return when it is gone."""
        what = f"{removal.kind.capitalize()} {removal.name}"
        if removal.kind == DELETED_VAULT:
            self._purge(removal, what)
            return
        if removal.kind == GROUP:
            self._require_empty(what)
        version, parameters = self._how(removal)
        delete_resource(self._workspace, removal.location, version, what, parameters)
        if removal.kind == VAULT:
            self._purge(removal, what)

    # What there is

    def _resources(self) -> Iterator[Item]:
        """The resources of the group, those with our tags in the order in which they can go."""
        needed = self._needed_by_workspace
        for resource in sorted(self._listed, key=_order):
            kind, name = kind_of(str(resource["id"])), str(resource["name"])
            if not self._is_ours(resource):
                if not name.lower().startswith(_AUTOMATIC):
                    yield Remainder(kind=kind, name=name, reason=self._why_not_ours(resource), bills=True)
            elif str(resource["type"]).lower() not in _TYPES:
                reason = "it has phiflow's tag, but is of a type that phiflow never makes"
                yield Remainder(kind=kind, name=name, reason=reason, bills=True)
            elif reason := needed.get(str(resource["id"]).lower(), ""):
                yield Remainder(kind=kind, name=name, reason=reason, bills=kind != WORKSPACE)
            else:
                effect = "with the jobs, models, environments and data in it" if kind == WORKSPACE else ""
                yield Removal(kind=kind, name=name, location=str(resource["id"]), effect=effect)

    def _why_not_ours(self, resource: dict[str, Any]) -> str:
        named = self._config.resources.model_dump(mode="json").items()
        identity = ("platform.identity.resource_id", self._config.identity.resource_id)
        for key, value in (*((f"platform.resources.{key}", value) for key, value in named), identity):
            if str(value).lower() == str(resource["id"]).lower():
                return f"{key} names it, and phiflow did not make it"
        tags = resource.get("tags") or {}
        other = tags.get(WORKSPACE_TAG) if tags.get("phiflow") == "1" else ""
        return f"it belongs to workspace {other}" if other else "phiflow did not make it"

    @functools.cached_property
    def _needed_by_workspace(self) -> dict[str, str]:
        """Ids, in lower case, of what must stay because the workspace must, with the reason."""
        if self.workspace is None:
            return {}
        if self.owns_workspace:
            strangers = self._inventory.strangers
            if not strangers:
                return {}
            reason = f"it has {', '.join(strangers[:3])}{', ...' if len(strangers) > 3 else ''}, not made by phiflow"
        else:
            reason = "phiflow did not make it"
        keys = ("storageAccount", "keyVault", "applicationInsights", "containerRegistry")
        ids = {str(self.workspace["properties"].get(key) or "").lower() for key in keys}
        needed = dict.fromkeys(ids, f"workspace {self._workspace.name} needs it, which stays: {reason}")
        needed[self._names.log_analytics.lower()] = f"workspace {self._workspace.name} logs to it, and stays"
        return needed | {self._names.workspace.lower(): reason}

    def _roles(self, whole_group: bool, *, engineer: bool) -> Iterator[Removal]:
        """Role assignments whose names are those that phiflow computes; those on a group that goes, go with it.

        Args:
            engineer: those of who runs phiflow, which go last since they may be what allows the rest; else the others.
        """
        shared = any(not self._is_ours(one) and (one.get("tags") or {}).get("phiflow") == "1" for one in self._listed)
        for assignment in self._assignments:
            properties = assignment["properties"]
            scope, principal = str(properties["scope"]), str(properties["principalId"])
            role = last_name(str(properties["roleDefinitionId"]))
            on_group = scope.lower() == self._names.group.lower()
            is_engineer = principal.lower() == self._config.resources.engineer.lower()
            if str(assignment["name"]).lower() != role_assignment_name(scope, role, principal):
                continue
            if is_engineer != engineer or (engineer and on_group and (whole_group or shared)):
                continue
            effect = f"{ROLE_NAMES.get(role, role)} on {last_name(scope)}"
            yield Removal(kind=ROLE, name=str(assignment["name"]), location=str(assignment["id"]), effect=effect)

    def _deleted_vaults(self) -> Iterator[Removal]:
        """Deleted key vaults of ours, whose names are taken until they are purged."""
        url = f"/subscriptions/{self._config.subscription_id}/providers/Microsoft.KeyVault/deletedVaults"
        for vault in self._list(url, _VAULTS_API, "The subscription's deleted key vaults"):
            properties = vault["properties"]
            if is_within(str(properties.get("vaultId") or ""), self._names.group) and self._is_ours(properties):
                location = str(vault["id"])
                yield Removal(kind=DELETED_VAULT, name=str(vault["name"]), location=location, effect="purged for good")

    def _budget(self) -> Iterator[Removal]:
        budget = self._names.budget
        if self._group is not None and self._read(budget, _BUDGETS_API, f"Budget {last_name(budget)}") is not None:
            yield Removal(kind=BUDGET, name=last_name(budget), location=budget)

    def _records(self) -> Iterator[Removal]:
        """The records of the deployments of phiflow's template; what they deployed stays."""
        names = (OWNER_DEPLOYMENT, ROLES_DEPLOYMENT, ENGINEER_DEPLOYMENT)
        for name in names if self._group is not None else ():
            location = f"{self._names.group}/providers/Microsoft.Resources/deployments/{name}"
            record = self._read(location, _GROUPS_API, f"Deployment {name}")
            if record is not None:
                state = str(record["properties"].get("provisioningState"))
                if state in _ACTIVE:
                    raise ConflictError(
                        f"Deployment {name} is {state.lower()}: phiflow up makes what this would delete.",
                        fix="Wait for it, and run the same command again.",
                    )
                yield Removal(kind=RECORD, name=name, location=location)

    @functools.cached_property
    def _group(self) -> dict[str, Any] | None:
        return self._read(self._names.group, _GROUPS_API, f"Resource group {self._config.resource_group}")

    @functools.cached_property
    def _listed(self) -> list[dict[str, Any]]:
        """The resources of the group, without those that are parts of others."""
        if self._group is None:
            return []
        found = self._list(f"{self._names.group}/resources", _GROUPS_API, "The resource group's resources")
        return [one for one in found if str(one["type"]).count("/") == 1]

    @functools.cached_property
    def _assignments(self) -> list[dict[str, Any]]:
        """Role assignments on the group, below it, and on existing resources elsewhere that phiflow was told to use."""
        if self._group is None:
            return []
        resources = self._config.resources
        named = (resources.storage_account, resources.container_registry, resources.key_vault)
        scopes = [self._names.group, *(one for one in named if one and not is_within(one, self._names.group))]
        found: dict[str, dict[str, Any]] = {}
        for scope in scopes:
            url = f"{scope}/providers/Microsoft.Authorization/roleAssignments"
            for one in self._list(url, _ROLES_API, f"The role assignments on {last_name(scope)}"):
                if is_within(str(one["properties"]["scope"]), scope):
                    found[str(one["id"]).lower()] = one
        return list(found.values())

    def _is_ours(self, resource: dict[str, Any]) -> bool:
        """Whether `up` made it for this workspace; names of workspaces do not differ by case alone."""
        tags = resource.get("tags") or {}
        return tags.get("phiflow") == "1" and str(tags.get(WORKSPACE_TAG)).lower() == self._workspace.name.lower()

    # How it goes

    def _how(self, removal: Removal) -> tuple[str, dict[str, str]]:
        """The api-version and parameters of a deletion."""
        apis = {ROLE: _ROLES_API, BUDGET: _BUDGETS_API, RECORD: _GROUPS_API, GROUP: _GROUPS_API}
        if removal.kind in apis:
            return apis[removal.kind], {}
        return _TYPES[type_of(removal.location).lower()]

    def _purge(self, removal: Removal, what: str) -> None:
        """Purge the deleted vaults of ours; PermissionDeniedError says who may."""
        try:
            for vault in self._deleted_vaults():
                purge_resource(self._workspace, vault.location, _VAULTS_API, what)
        except PermissionDeniedError as error:
            error.fix = f"Its name stays taken until it is purged; who may: {_purge_command(removal.name)}"
            raise

    def _require_empty(self, what: str) -> None:
        """Look again: what came into the group meanwhile must not go with it."""
        self.__dict__.pop("_listed", None)
        names = [str(one["name"]) for one in self._listed if not str(one["name"]).lower().startswith(_AUTOMATIC)]
        if names:
            raise PhiflowError(f"{what} has {', '.join(names)} by now, and stays.", fix="Run the same command again.")

    def _read(self, location: str, version: str, what: str) -> dict[str, Any] | None:
        return read_resource(self._workspace, location, version, what)

    def _list(self, location: str, version: str, what: str) -> Iterator[dict[str, Any]]:
        return list_resources(self._workspace, location, version, what)


def _purge_command(name: str) -> str:
    return f"az keyvault purge --name {name}"


def _order(resource: dict[str, Any]) -> tuple[int, str]:
    kinds = list(_TYPES)
    kind = str(resource["type"]).lower()
    return (kinds.index(kind) if kind in kinds else len(kinds), str(resource["name"]))
