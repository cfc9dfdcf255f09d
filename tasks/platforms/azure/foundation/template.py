"""The template of `environments/infrastructure/`, and the parameters that fill it."""

from __future__ import annotations

import functools
import json
import math
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.foundation.blueprint import Blueprint
from tasks.platforms.azure.foundation.names import last_name, resource_tags, role_assignment_name
from tasks.platforms.local.state import project_folder

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tasks.config import PipelineConfig


@functools.cache
def load_template() -> dict[str, Any]:
    """The template as it ships."""
    text = (project_folder("environments", "infrastructure") / "template.json").read_text(encoding="utf-8")
    template: dict[str, Any] = json.loads(text)
    return template


def api_version(resource_type: str) -> str:
    """The version of a resource type that the template is written in; KeyError when it has none of that type."""
    versions = {str(one["type"]).lower(): str(one["apiVersion"]) for one in load_template()["resources"]}
    return versions[resource_type.lower()]


def template_parameters(
    config: PipelineConfig, blueprint: Blueprint, words: Iterable[str], budget_start: str
) -> dict[str, dict[str, Any]]:
    """What the template is deployed with, to make the resources and roles of these words.

    Args:
        budget_start: the first of a month, as in 2026-11-01T00:00:00Z.
    """
    platform = config.platform
    assert platform.kind == "azure"
    values: dict[str, Any] = {
        "make": list(words),
        "location": blueprint.location,
        "tags": resource_tags(platform),
        **_resources(blueprint),
        **_roles(blueprint),
        **_cluster(config, blueprint),
        "engineerPrincipalId": platform.resources.engineer,
        "budgetAmount": math.ceil(platform.resources.monthly_budget),
        "budgetStart": budget_start,
        "budgetContact": platform.resources.budget_contact,
    }
    return {name: {"value": value} for name, value in values.items()}


def _resources(blueprint: Blueprint) -> dict[str, str]:
    """The name and the id of each resource, as far as the template asks for them.

    Resource Manager wants a name of what is not deployed, too.
    """
    wanted = load_template()["parameters"]
    values: dict[str, str] = {}
    for word, resource_id in blueprint.ids.items():
        values |= {f"{word}Name": last_name(resource_id) or "none", f"{word}Id": resource_id}
    return {name: value for name, value in values.items() if name in wanted}


def _roles(blueprint: Blueprint) -> dict[str, str]:
    """The GUID of each role assignment; one of its own, too, for each that is not given."""
    names = [name for name in load_template()["parameters"] if name.endswith("RoleName")]
    given = {f"{role.word}Name": last_name(role.id) for role in blueprint.roles if role.word and role.principal_id}
    identity = next((role.principal_id for role in blueprint.roles if not role.is_person), "")
    return {
        **{name: given.get(name) or role_assignment_name(name, "", "") for name in names},
        "identityPrincipalId": identity,
    }


def _cluster(config: PipelineConfig, blueprint: Blueprint) -> dict[str, Any]:
    """As `infrastructure` makes a cluster, so that a run adopts this one."""
    compute = config.compute
    return {
        "clusterLocation": blueprint.cluster_location,
        "clusterSize": compute.size.upper(),  # as the service shows it: a change of case is no change
        "clusterPriority": "LowPriority" if compute.tier == "low_priority" else "Dedicated",
        "clusterMinNodes": compute.min_instances,
        "clusterMaxNodes": compute.max_instances,
        "clusterIdleTime": iso_duration(compute.idle_seconds),
        "clusterPublicIp": compute.public_ip,
    }


def iso_duration(seconds: int) -> str:
    """An ISO 8601 duration in the service's own form: PT5M, not PT300S."""
    hours, rest = divmod(seconds, 3600)
    parts = zip((hours, *divmod(rest, 60)), "HMS", strict=True)
    return f"PT{''.join(f'{number}{unit}' for number, unit in parts if number) or '0S'}"
