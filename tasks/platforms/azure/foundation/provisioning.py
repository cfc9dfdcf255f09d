"""Makes the workspace of a configuration and what belongs to it, in two parts for two people; safe to repeat.

`survey` looks, `blueprint` decides, `template` fills in, `deployment` deploys; this module is the order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.foundation.blueprint import Blueprint, Found, draw_blueprint, identity_id, named_resources
from tasks.platforms.azure.foundation.deployment import TemplateDeployments
from tasks.platforms.azure.foundation.names import last_name, resource_tags
from tasks.platforms.azure.foundation.role_assignments import assign_role, given_elsewise, is_assigned
from tasks.platforms.azure.foundation.survey import GROUPS_API, budget_start, exists, survey
from tasks.platforms.azure.foundation.template import template_parameters
from tasks.platforms.azure.foundation.what_if import ROLE, creation, kind_of, read_changes, role_creation, role_name
from tasks.platforms.errors import NotFoundError, PhiflowError
from tasks.platforms.upkeep import ResourceChange

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.azure.client import Workspace

_log = logging.getLogger(__name__)
# The names of the deployments; fixed, so that a second command finds the first one's.
OWNER_DEPLOYMENT = "phiflow-owner"
ROLES_DEPLOYMENT = "phiflow-roles"
ENGINEER_DEPLOYMENT = "phiflow-engineer"
_RIGHTS = {
    "owner": "Owner of the resource group (of the subscription, where the group is to be made), or Contributor and "
    "Role Based Access Control Administrator",
    "engineer": "Contributor on the resource group",
    "all": "Owner of the resource group, or of the subscription, where the group is to be made",
}


class Provisioning:
    """One workspace's resources.

    Args:
        part: of every method: owner, engineer or all.
    """

    def __init__(self, config: PipelineConfig, workspace: Workspace) -> None:
        assert config.platform.kind == "azure"
        self._config = config
        self._platform = config.platform
        self._workspace = workspace
        self._deployments = TemplateDeployments(workspace)
        self._deploying = ""

    def plan(self, part: str) -> tuple[ResourceChange, ...]:
        """What `apply` would make and change, by the service's own what-if; empty: nothing.

        Raises:
            NotFoundError: an existing resource that the configuration names is not there, or, for the engineer's part,
                something of the owner's is not.
        """
        found, blueprint = self._look()
        self._require_existing(blueprint)
        if part == "engineer":
            self._require_owners_part(found, blueprint)
        if found.group is not None:
            return tuple(self._changes(part, found, blueprint))
        resources = [creation(blueprint.ids[word]) for word in blueprint.made_by(part)]
        roles = [role_creation(role) for role in blueprint.roles]
        return (creation(blueprint.names.group), *resources, *roles)

    def await_running(self) -> Iterator[str]:
        """Wait for an earlier command's deployments; whatever becomes of them, `plan` goes on from there."""
        for name in (OWNER_DEPLOYMENT, ROLES_DEPLOYMENT, ENGINEER_DEPLOYMENT):
            if not self._deployments.is_active(name):
                continue
            yield f"deployment {name} runs already; waiting for its end"
            self._deploying = name
            try:
                for resource_id in self._deployments.follow(name):
                    yield f"done: {kind_of(resource_id)} {last_name(resource_id)}"
            except PhiflowError as error:
                _log.info("An earlier deployment failed name=%s error=%s", name, error)
            self._deploying = ""

    def apply(self, part: str, changes: Sequence[ResourceChange]) -> Iterator[str]:
        """Make them; yields a line as each resource is done.

        Args:
            changes: of `plan`; what none of them is about is not touched.
        Raises:
            PhiflowError: one resource was refused or failed; names it, the reason and what to do.
        """
        if part in ("owner", "all"):
            yield from self._ensure_group(changes)
            yield from self._deploy(OWNER_DEPLOYMENT, "owner", changes)
            yield from self._give_roles(changes)
        if part in ("engineer", "all"):
            yield from self._deploy(ENGINEER_DEPLOYMENT, "engineer", changes)

    def outputs(self) -> dict[str, str]:
        """What a run needs of it, by configuration key; the identity's ids are left out while there is none."""
        place = self._platform
        told = {
            "platform.subscription_id": place.subscription_id,
            "platform.resource_group": place.resource_group,
            "platform.workspace": place.workspace,
        }
        identity = survey(self._workspace).identity
        if identity is not None:
            told["platform.identity.resource_id"] = identity_id(place)
            told["platform.identity.client_id"] = str(identity["properties"]["clientId"])
        return told

    def rights(self, part: str) -> str:
        """Who may make a part."""
        return _RIGHTS[part]

    def how_to_stop(self) -> tuple[str, ...]:
        """For somebody who interrupted it: what goes on, and the commands that look at it and end it."""
        if not self._deploying:
            return ("Interrupted; nothing is being made now. What was made stays, and the same command goes on.",)
        where = f"--resource-group {self._platform.resource_group} --name {self._deploying}"
        return (
            f"Interrupted. Deployment {self._deploying} goes on in Azure; the same command waits for it and goes on.",
            f"  look at it: az deployment operation group list {where} --output table",
            f"  end it:     az deployment group cancel {where}",
        )

    def _look(self) -> tuple[Found, Blueprint]:
        """What is there, and what is to be there, without the roles that somebody gave already."""
        found = survey(self._workspace)
        blueprint = draw_blueprint(self._config, found)
        return found, blueprint.without(given_elsewise(self._workspace, blueprint.roles))

    def _require_existing(self, blueprint: Blueprint) -> None:
        for key, resource_id in named_resources(self._platform, blueprint).items():
            if not exists(self._workspace, resource_id):
                raise NotFoundError(
                    f"platform.{key} names {last_name(resource_id)}, which does not exist: {resource_id}.",
                    fix=f"Correct platform.{key}, or empty it to have one made.",
                )

    def _require_owners_part(self, found: Found, blueprint: Blueprint) -> None:
        missing = [] if found.group else [f"resource group {self._platform.resource_group}"]
        if found.group:
            for word in blueprint.made_by("owner"):
                if not exists(self._workspace, blueprint.ids[word]):
                    missing.append(f"{kind_of(blueprint.ids[word])} {last_name(blueprint.ids[word])}")
            for role in blueprint.roles:
                if role.principal_id and not is_assigned(self._workspace, role):
                    missing.append(f"role {role_name(role)}")
        if missing:
            raise NotFoundError(
                f"The owner's part is not done; missing: {', '.join(missing)}.",
                fix=f"Let somebody run 'phiflow up --part owner' with this configuration who is {_RIGHTS['owner']}.",
            )

    def _changes(self, part: str, found: Found, blueprint: Blueprint) -> Iterator[ResourceChange]:
        roles = blueprint.roles if part != "engineer" else ()
        words = [*blueprint.made_by(part), *(role.word for role in roles if role.word and role.principal_id)]
        if words:
            name = ENGINEER_DEPLOYMENT if part == "engineer" else OWNER_DEPLOYMENT
            result = self._deployments.what_if(name, self._parameters(found, blueprint, words))
            yield from read_changes(result, blueprint)
        for role in roles:
            # An identity that is to come has no roles yet, and their names come from its id.
            if not role.principal_id or (not role.word and not is_assigned(self._workspace, role)):
                yield role_creation(role)

    def _ensure_group(self, changes: Sequence[ResourceChange]) -> Iterator[str]:
        _, blueprint = self._look()
        if any(change.location == blueprint.names.group for change in changes):
            body = {"location": blueprint.location, "tags": resource_tags(self._platform)}
            what = f"Resource group {self._platform.resource_group}"
            self._workspace.send("PUT", blueprint.names.group, params={"api-version": GROUPS_API}, json=body, what=what)
            yield f"made resource group {self._platform.resource_group}"

    def _deploy(self, name: str, part: str, changes: Sequence[ResourceChange]) -> Iterator[str]:
        found, blueprint = self._look()
        words = blueprint.made_by(part)
        mine = {blueprint.ids[word].lower() for word in words}
        if changes := [change for change in changes if change.location.lower() in mine]:
            yield from self._begin(name, self._parameters(found, blueprint, words), changes)

    def _give_roles(self, changes: Sequence[ResourceChange]) -> Iterator[str]:
        if not any(change.kind == ROLE for change in changes):
            return
        found, blueprint = self._look()
        new = [role for role in blueprint.roles if not is_assigned(self._workspace, role)]
        if words := [role.word for role in new if role.word]:
            roles = [role_creation(role) for role in new]
            yield from self._begin(ROLES_DEPLOYMENT, self._parameters(found, blueprint, words), roles)
        for role in new:
            if not role.word:
                assign_role(self._workspace, role)
                yield f"made role {role_name(role)}"

    def _begin(self, name: str, parameters: dict[str, Any], changes: Sequence[ResourceChange]) -> Iterator[str]:
        """Deploy, and yield what was made and changed."""
        by_id = {change.location.lower(): change for change in changes}
        self._deploying = name
        self._deployments.begin(name, parameters)
        called = {location: f"{change.kind} {change.name}" for location, change in by_id.items()}
        for resource_id in self._deployments.follow(name, called):
            if change := by_id.get(resource_id.lower()):
                yield f"{'made' if change.action == 'create' else 'changed'} {called[resource_id.lower()]}"
        self._deploying = ""

    def _parameters(self, found: Found, blueprint: Blueprint, words: Sequence[str]) -> dict[str, Any]:
        return template_parameters(self._config, blueprint, words, budget_start(found))
