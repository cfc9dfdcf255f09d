"""The template of `phiflow up`: each resource, with the parameters that are computed, is what its service takes."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

pytest.importorskip("azure.mgmt.storage", reason="Microsoft's models are not installed: tests/requirements.txt")

from tasks.config import AzureIdentityConfig, PipelineConfig
from tasks.platforms.azure.foundation.blueprint import Blueprint, Found, draw_blueprint
from tasks.platforms.azure.foundation.names import last_name, resource_names
from tasks.platforms.azure.foundation.template import iso_duration, load_template, template_parameters
from tasks.platforms.azure.foundation.wanted_roles import ROLE_NAMES
from tasks.platforms.azure.infrastructure import TAGS, _identity
from tests.azure_contract import attribute_maps
from tests.azure_contract.bicep import BicepTypes
from tests.azure_contract.judge import contract_folder
from tests.azure_contract.reading import Problem, Reading
from tests.azure_emulator.expressions import evaluate, parse_all

SUBSCRIPTION = "00000000-0000-0000-0000-000000000001"
TENANT = "00000000-0000-0000-0000-0000000000aa"
PRINCIPAL = "00000000-0000-0000-0000-0000000000cc"
ENGINEER = "00000000-0000-0000-0000-0000000000dd"
EVERYTHING = {
    "name": "support",
    "platform": {
        "kind": "azure",
        "subscription_id": SUBSCRIPTION,
        "resource_group": "team",
        "workspace": "chat",
        "location": "westeurope",
        "hub_token_secret": "hub",
        "resources": {
            "identity_roles": "contributor",
            "engineer": ENGINEER,
            "chat_history": True,
            "monthly_budget": 99.5,
            "budget_contact": "a@example.org",
        },
    },
    "data": {"source": "x/y"},
    "compute": {"size": "Standard_E16s_v3", "tier": "low_priority", "idle_seconds": 5400},
}
# Which package has a type's models, which module of it those of the template's version, and what a PUT takes.
MODELS = {
    "Microsoft.Storage/storageAccounts": ("azure.mgmt.storage", "", "StorageAccountCreateParameters"),
    "Microsoft.ContainerRegistry/registries": ("azure.mgmt.containerregistry", "v2025_04_01", "Registry"),
    "Microsoft.ManagedIdentity/userAssignedIdentities": ("azure.mgmt.msi", "v2023_01_31", "Identity"),
    "Microsoft.Authorization/roleAssignments": (
        "azure.mgmt.authorization",
        "v2022_04_01",
        "RoleAssignmentCreateParameters",
    ),
    "Microsoft.OperationalInsights/workspaces": ("azure.mgmt.loganalytics", "", "Workspace"),
    "Microsoft.Insights/components": ("azure.mgmt.applicationinsights", "v2020_02_02", "ApplicationInsightsComponent"),
    "Microsoft.KeyVault/vaults": ("azure.mgmt.keyvault", "", "VaultCreateOrUpdateParameters"),
    "Microsoft.DocumentDB/databaseAccounts": ("azure.mgmt.cosmosdb", "", "DatabaseAccountCreateUpdateParameters"),
    "Microsoft.Consumption/budgets": ("azure.mgmt.consumption", "", "Budget"),
}
# Those that Microsoft's description for Bicep is at hand for.
BICEP = {
    "Microsoft.MachineLearningServices/workspaces",
    "Microsoft.MachineLearningServices/workspaces/computes",
    "Microsoft.ManagedIdentity/userAssignedIdentities",
    "Microsoft.Authorization/roleAssignments",
}
ABOVE_THE_BODY = ("condition", "type", "apiVersion", "name", "scope", "dependsOn")
Resource = dict[str, Any]


def configuration(**platform: Any) -> PipelineConfig:
    """The configuration that makes all there is, with some keys of its platform changed."""
    return PipelineConfig.model_validate({**EVERYTHING, "platform": {**EVERYTHING["platform"], **platform}})


def found_identity(config: PipelineConfig) -> Found:
    """A resource group with the identity in it."""
    identity = resource_names(config.platform).identity  # type: ignore[arg-type]
    return Found(group={}, identity={"id": identity, "properties": {"principalId": PRINCIPAL, "clientId": "c"}})


def everything(config: PipelineConfig | None = None) -> tuple[Blueprint, dict[str, Any]]:
    """What is to be there, and the parameters to make all of it."""
    config = config or configuration()
    blueprint = draw_blueprint(config, found_identity(config))
    words = [*blueprint.made_by("all"), *(role.word for role in blueprint.roles)]
    return blueprint, template_parameters(config, blueprint, words, "2026-11-01T00:00:00Z")


def resource_id(*segments: str) -> str:
    """As the template function does: a type and its names, here always in the one group."""
    (kind, *names), group = segments, f"/subscriptions/{SUBSCRIPTION}/resourceGroups/team"
    namespace, *types = kind.split("/")
    return f"{group}/providers/{namespace}/" + "/".join(f"{a}/{b}" for a, b in zip(types, names, strict=True))


def deployed(template: dict[str, Any], parameters: dict[str, Any]) -> list[Resource]:
    """The resources of the template as Resource Manager would send them."""
    functions: dict[str, Callable[..., Any]] = {
        "parameters": lambda name: parameters[name]["value"],
        "contains": lambda container, item: item in container,
        "concat": lambda *parts: "".join(parts),
        "resourceid": resource_id,
        "subscription": lambda: {"tenantId": TENANT},
        "subscriptionresourceid": lambda kind, name: f"/subscriptions/{SUBSCRIPTION}/providers/{kind}/{name}",
    }
    functions["variables"] = lambda name: evaluate(template["variables"][name], functions)
    resources = [evaluate(resource, functions) for resource in template["resources"]]
    return [resource for resource in resources if resource["condition"]]


def problems(resource: Resource) -> list[Problem]:
    """What Microsoft's descriptions of its type have against a resource."""
    reading = Reading("request")
    body = {key: value for key, value in resource.items() if key not in ABOVE_THE_BODY}
    kind = resource["type"]
    if kind in MODELS:
        package, module, model = MODELS[kind]
        models = importlib.import_module(".".join(filter(None, (package, module, "models"))))
        attribute_maps.read_model(models, model, body, "body", reading)
    if kind in BICEP and (types := bicep_types()):
        types.read_body(kind, resource["apiVersion"], body, reading)
    return reading.problems


@cache
def bicep_types() -> BicepTypes | None:
    """Microsoft's descriptions for Bicep; None where they are not at hand."""
    folder = contract_folder()
    return BicepTypes(folder / "bicep-types") if folder else None


def all_problems(template: dict[str, Any], parameters: dict[str, Any]) -> dict[str, list[Problem]]:
    """The problems by resource, of those that have any."""
    found = {f"{one['type']} {one['name']}": problems(one) for one in deployed(template, parameters)}
    return {name: listed for name, listed in found.items() if listed}


def resource_of(template: dict[str, Any], kind: str) -> Resource:
    """The first resource of a type, to plant mistakes in."""
    return next(one for one in template["resources"] if one["type"] == kind)


def test_every_resource_is_what_its_service_takes() -> None:
    """With everything asked for, each of the template's resources passes Microsoft's own models, or types for Bicep."""
    template, (_, parameters) = load_template(), everything()
    assert {one["type"] for one in deployed(template, parameters)} == set(MODELS) | BICEP
    assert len(deployed(template, parameters)) == len(template["resources"])
    assert all_problems(template, parameters) == {}
    if bicep_types() is None:
        pytest.skip("workspace and cluster not looked at: Microsoft's types for Bicep are not on this machine")


def test_descriptions_are_of_the_versions_that_the_template_names() -> None:
    """Each model is of the api-version of the resource that is held against it."""
    for resource in load_template()["resources"]:
        if resource["type"] in MODELS:
            package, module, _ = MODELS[resource["type"]]
            home = importlib.import_module(".".join(filter(None, (package, module, "_configuration"))))
            assert f'"{resource["apiVersion"]}"' in inspect.getsource(home), resource["type"]


@pytest.mark.parametrize(
    ("kind", "place", "value", "rule"),
    [
        ("Microsoft.Storage/storageAccounts", "properties.allowBlobPublicAces", False, "unknown"),
        ("Microsoft.Storage/storageAccounts", "properties.supportsHttpsTrafficOnly", "yes", "type"),
        ("Microsoft.Storage/storageAccounts", "properties.minimumTlsVersion", "TLS1_9", "enum"),
        ("Microsoft.Storage/storageAccounts", "sku", None, "required"),
        ("Microsoft.Storage/storageAccounts", "kind", "StorageV3", "enum"),
        ("Microsoft.ContainerRegistry/registries", "sku.name", "Tiny", "enum"),
        ("Microsoft.ContainerRegistry/registries", "properties.loginServer", "x.azurecr.io", "read-only"),
        ("Microsoft.ManagedIdentity/userAssignedIdentities", "properties.clientId", SUBSCRIPTION, "read-only"),
        ("Microsoft.Authorization/roleAssignments", "properties.principalId", None, "required"),
        ("Microsoft.Authorization/roleAssignments", "properties.principalType", "Robot", "enum"),
        ("Microsoft.OperationalInsights/workspaces", "properties.sku.name", "PerMB", "enum"),
        ("Microsoft.OperationalInsights/workspaces", "properties.retention", 30, "unknown"),
        ("Microsoft.Insights/components", "properties.IngestionMode", "Workspace", "enum"),
        ("Microsoft.Insights/components", "kind", None, "required"),
        ("Microsoft.KeyVault/vaults", "properties.softDeleteRetentionInDays", "7", "type"),
        ("Microsoft.KeyVault/vaults", "properties.tenantId", None, "required"),
        ("Microsoft.KeyVault/vaults", "properties.sku.tier", "standard", "unknown"),
        ("Microsoft.DocumentDB/databaseAccounts", "properties.locations", None, "required"),
        ("Microsoft.DocumentDB/databaseAccounts", "properties.capabilities", "EnableTable", "type"),
        ("Microsoft.Consumption/budgets", "properties.timeGrain", "Daily", "enum"),
        ("Microsoft.Consumption/budgets", "properties.notifications.spent80Percent.operator", "Over", "enum"),
        ("Microsoft.Consumption/budgets", "properties.amount", "100", "type"),
        ("Microsoft.MachineLearningServices/workspaces", "properties.storage", "x", "unknown"),
        ("Microsoft.MachineLearningServices/workspaces", "properties.workspaceId", "x", "read-only"),
        ("Microsoft.MachineLearningServices/workspaces/computes", "properties.computeType", "Cluster", "discriminator"),
        ("Microsoft.MachineLearningServices/workspaces/computes", "properties.properties.vmPriority", "Low", "enum"),
    ],
)
def test_planted_mistake_is_found(kind: str, place: str, value: Any, rule: str) -> None:
    """An unknown key, a wrong type or word, something missing or the service's own: each is found, where it is."""
    if kind not in MODELS and bicep_types() is None:
        pytest.skip("Microsoft's types for Bicep are not on this machine: set PHIFLOW_AZURE_CONTRACT")
    template, (_, parameters) = copy.deepcopy(load_template()), everything()
    target = resource_of(template, kind)
    *above, last = place.split(".")
    for key in above:
        target = target.setdefault(key, {})
    if value is None:
        del target[last]
    else:
        target[last] = value
    found = [one for listed in all_problems(template, parameters).values() for one in listed]
    assert {one.rule for one in found} == {rule}
    assert any(last in one.place for one in found)


def test_parameters_are_those_that_the_template_asks_for() -> None:
    """Python computes each parameter of the template and no other, of its type, and the template uses each."""
    template, (_, parameters) = load_template(), everything()
    assert parameters.keys() == template["parameters"].keys()
    types = {"string": str, "int": int, "bool": bool, "array": list, "object": dict}
    for name, declared in template["parameters"].items():
        value = parameters[name]["value"]
        assert type(value) is types[declared["type"]], name
        assert value in declared.get("allowedValues", [value])
    used = {name for kind in ("parameters", "variables") for name in names_of(template, kind)}
    assert used == template["parameters"].keys() | template["variables"].keys()


def names_of(template: dict[str, Any], function: str) -> set[str]:
    """The parameters or variables that the resources use."""
    parts = [template["resources"], template["variables"]]
    calls = [call for part in parts for node in parse_all(part) for call in node.calls(function)]
    return {str(call.parts[0].value) for call in calls}


def test_resources_are_unlike_one_another_and_wait_for_what_is_there() -> None:
    """No two resources are the same, and what a resource waits for is in the template."""
    (_, parameters), template = everything(), load_template()
    resources = deployed(template, parameters)
    scopes = {id(one): str(one.get("scope", "")) for one in resources}
    identities = [(one["type"].lower(), one["name"].lower(), scopes[id(one)].lower()) for one in resources]
    assert len(set(identities)) == len(identities)
    there = {resource_id(one["type"], *one["name"].split("/")) for one in resources if "scope" not in one}
    for resource in resources:
        assert set(resource.get("dependsOn", ())) <= there, resource["name"]


def test_conditions_have_the_words_that_python_knows() -> None:
    """Each resource is made by one word of its own, and each word makes one."""
    template, (blueprint, _) = load_template(), everything()
    words = [
        re.fullmatch(r"\[contains\(parameters\('make'\), '(\w+)'\)\]", one["condition"])
        for one in template["resources"]
    ]
    named = [match[1] for match in words if match]
    assert sorted(named) == sorted([*blueprint.made, *(role.word for role in blueprint.roles)])


def test_roles_are_the_same_in_template_and_python() -> None:
    """The template gives the role, on the scope and to the principal, that Python named it by."""
    blueprint, parameters = everything()
    given = {one["name"]: one for one in deployed(load_template(), parameters) if "roleAssignments" in one["type"]}
    assert len(given) == len(blueprint.roles) == 8
    for role in blueprint.roles:
        resource = given[last_name(role.id)]
        assert last_name(resource["properties"]["roleDefinitionId"]) == role.role
        assert resource["properties"]["principalId"] == role.principal_id
        assert resource.get("scope", blueprint.names.group) == role.scope
        assert (resource["properties"].get("principalType") == "ServicePrincipal") != role.is_person


def test_role_definitions_are_azures_own() -> None:
    """The GUIDs are those of the built-in roles of these names."""
    folder = contract_folder()
    if folder is None:
        pytest.skip("the list of built-in roles is not on this machine: set PHIFLOW_AZURE_CONTRACT")
    known = {}
    for file in (folder / "role-definitions").rglob("*.json"):
        told = json.loads(file.read_text(encoding="utf-8"))
        known[told["name"]] = told["roleName"]
    checked = {guid for guid in ROLE_NAMES if guid in known}
    assert len(checked) >= 3
    for guid in checked:
        assert known[guid].startswith(ROLE_NAMES[guid])


def test_cluster_is_the_one_that_a_run_would_make() -> None:
    """What `Infrastructure` sends for a cluster, through the SDK, is what the template sends."""
    from azure.ai.ml.entities import AmlCompute

    config, (blueprint, parameters) = configuration(), everything()
    compute = config.compute
    identity = AzureIdentityConfig(resource_id=blueprint.ids["identity"])
    wanted = AmlCompute(
        name="phi",
        size=compute.size,
        tier=compute.tier,
        min_instances=compute.min_instances,
        max_instances=compute.max_instances,
        idle_time_before_scale_down=compute.idle_seconds,
        enable_node_public_ip=compute.public_ip,
        location="westeurope",
        identity=_identity(identity),
        tags=TAGS,
    )
    sent = wanted._to_rest_object().as_dict()
    made = next(one for one in deployed(load_template(), parameters) if one["type"].endswith("/computes"))
    sent["properties"]["properties"]["vmSize"] = sent["properties"]["properties"]["vmSize"].upper()
    assert {key: made[key] for key in sent if key != "tags"} == {key: sent[key] for key in sent if key != "tags"}
    assert sent["tags"].items() <= made["tags"].items()


@pytest.mark.parametrize(
    ("seconds", "duration"),
    [(0, "PT0S"), (60, "PT1M"), (300, "PT5M"), (90, "PT1M30S"), (5400, "PT1H30M"), (86400, "PT24H")],
)
def test_durations_are_in_the_services_form(seconds: int, duration: str) -> None:
    """Whole minutes and hours are told as such, as the service does."""
    assert iso_duration(seconds) == duration
