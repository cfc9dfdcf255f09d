"""What is to be there for a configuration, given what is there: made, used, refused."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.config import PipelineConfig
from tasks.platforms.azure.foundation.blueprint import Found, draw_blueprint, identity_id, named_resources
from tasks.platforms.azure.foundation.names import resource_names, resource_tags
from tasks.platforms.azure.foundation.wanted_roles import ACR_PULL, CONTRIBUTOR, KEY_VAULT_SECRETS_USER
from tasks.platforms.errors import ConfigError, ConflictError

GROUP = "/subscriptions/s/resourceGroups/team"
ELSEWHERE = "/subscriptions/s/resourceGroups/other/providers"
REGISTRY = f"{ELSEWHERE}/Microsoft.ContainerRegistry/registries/theirs"
VAULT = f"{ELSEWHERE}/Microsoft.KeyVault/vaults/theirs"
IDENTITY = f"{ELSEWHERE}/Microsoft.ManagedIdentity/userAssignedIdentities/theirs"
ALL = (
    "storageAccount",
    "containerRegistry",
    "identity",
    "logAnalytics",
    "applicationInsights",
    "keyVault",
    "workspace",
)


def configuration(compute: dict[str, Any] | None = None, **platform: Any) -> PipelineConfig:
    """A configuration of workspace `chat` in group `team`."""
    place = {
        "kind": "azure",
        "subscription_id": "s",
        "resource_group": "team",
        "workspace": "chat",
        "location": "eastus",
    }
    sections = {"platform": {**place, **platform}, "compute": compute or {"size": "Standard_E16s_v3"}}
    return PipelineConfig.model_validate({"name": "support", "data": {"source": "x/y"}, **sections})


def workspace(config: PipelineConfig, *, ours: bool = True, **changed: str) -> dict[str, Any]:
    """The workspace as the service tells it."""
    names = resource_names(config.platform)  # type: ignore[arg-type]
    uses = {
        "storageAccount": names.storage_account,
        "containerRegistry": names.container_registry,
        "applicationInsights": names.application_insights,
        "keyVault": names.key_vault,
    }
    tags = resource_tags(config.platform) if ours else {"team": "x"}  # type: ignore[arg-type]
    return {"name": "chat", "location": "westeurope", "tags": tags, "properties": {**uses, **changed}}


def test_all_is_made_where_there_is_nothing() -> None:
    """Without anything there, what belongs to a workspace is made, and no more than was asked for."""
    blueprint = draw_blueprint(configuration(), Found())
    assert blueprint.made == (*ALL, "cluster")
    assert blueprint.made_by("owner") == ALL[:3]
    assert blueprint.made_by("engineer") == (*ALL[3:], "cluster")
    assert [role.told for role in blueprint.roles] == [
        f"Storage Blob Data Contributor on {blueprint.names.base}",
        f"AcrPull on {blueprint.names.base}",
        "AzureML Metrics Writer on team",
    ]


def test_cluster_is_made_for_a_size() -> None:
    """A configuration without compute.size gets all but a cluster."""
    assert "cluster" not in draw_blueprint(configuration({"name": "nodes"}), Found()).made


def test_more_is_made_and_given_when_asked() -> None:
    """Chat history, budget, hub token and the engineer's roles come by their keys."""
    resources = {"chat_history": True, "monthly_budget": 5, "budget_contact": "a@b", "identity_roles": "contributor"}
    config = configuration(hub_token_secret="hub", resources={**resources, "engineer": "e"})
    blueprint = draw_blueprint(config, Found())
    assert blueprint.made[-2:] == ("chatHistory", "budget")
    given = {(role.role, role.is_person) for role in blueprint.roles}
    assert {(KEY_VAULT_SECRETS_USER, False), (CONTRIBUTOR, False), (CONTRIBUTOR, True)} < given
    assert {role.principal_id for role in blueprint.roles if role.is_person} == {"e"}


def test_existing_resources_are_used_with_roles_where_they_are() -> None:
    """What is named is not made; a role on what is in another group is out of the template's reach."""
    config = configuration(hub_token_secret="hub", resources={"container_registry": REGISTRY, "key_vault": VAULT})
    blueprint = draw_blueprint(config, Found())
    assert not {"containerRegistry", "keyVault"} & set(blueprint.made)
    assert named_resources(config.platform, blueprint) == {  # type: ignore[arg-type]
        "resources.container_registry": REGISTRY,
        "resources.key_vault": VAULT,
    }
    outside = {role.role: role.scope for role in blueprint.roles if not role.word}
    assert outside == {ACR_PULL: REGISTRY, KEY_VAULT_SECRETS_USER: VAULT}


def test_insights_that_exist_need_no_logs() -> None:
    """A log analytics workspace is made for the application insights that are made, and for no others."""
    insights = f"{ELSEWHERE}/microsoft.insights/components/theirs"
    assert (
        "logAnalytics" not in draw_blueprint(configuration(resources={"application_insights": insights}), Found()).made
    )


def test_identity_is_the_configured_one_or_the_own() -> None:
    """Another's identity is used; what an earlier `up` wrote for another workspace is not, and is written anew."""
    config = configuration(identity={"resource_id": IDENTITY})
    blueprint = draw_blueprint(config, Found())
    assert blueprint.ids["identity"] == IDENTITY and "identity" not in blueprint.made
    stale = f"{GROUP}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/phi0123456789abcdef01"
    again = configuration(identity={"resource_id": stale})
    assert identity_id(again.platform) == blueprint.names.identity  # type: ignore[arg-type]
    assert "identity" in draw_blueprint(again, Found()).made
    assert named_resources(again.platform, draw_blueprint(again, Found())) == {}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "platform",
    [
        {"resources": {"key_vault": "my-vault"}},
        {"resources": {"key_vault": REGISTRY}},
        {"identity": {"resource_id": f"{IDENTITY}/x"}},
    ],
)
def test_id_of_another_kind_is_a_mistake(platform: dict[str, Any]) -> None:
    """A name, or the id of something else, is refused with the form that is expected."""
    with pytest.raises(ConfigError, match=r"is no resource id of a Microsoft\.\w+/\w+\. Expected /subscriptions/"):
        draw_blueprint(configuration(**platform), Found())


def test_region_is_the_workspaces_then_the_configured_then_the_groups() -> None:
    """Resources are beside their workspace; the cluster is where the configuration says."""
    config, nowhere = configuration(), configuration(location="")
    there = draw_blueprint(config, Found(group={"location": "northeurope"}, workspace=workspace(config)))
    assert (there.location, there.cluster_location) == ("westeurope", "eastus")
    assert draw_blueprint(config, Found(group={"location": "northeurope"})).location == "eastus"
    assert draw_blueprint(nowhere, Found(group={"location": "northeurope"})).location == "northeurope"
    with pytest.raises(ConfigError, match=r"--set platform\.location=westeurope"):
        draw_blueprint(nowhere, Found())


def test_workspace_of_others_is_not_touched() -> None:
    """Around it only the identity, its roles and the cluster are made; its registry may not be there yet."""
    config = configuration()
    found = Found(group={}, workspace=workspace(config, ours=False, containerRegistry="", storageAccount=f"{GROUP}/x"))
    blueprint = draw_blueprint(config, found)
    assert blueprint.made == ("identity", "cluster")
    scopes = {role.role: role.scope for role in blueprint.roles}
    assert scopes[ACR_PULL] == GROUP
    assert f"{GROUP}/x" in scopes.values()


def test_workspace_of_ours_keeps_what_it_uses() -> None:
    """What was given to it when it was made is used on, also when the configuration no longer names it."""
    config = configuration()
    blueprint = draw_blueprint(config, Found(group={}, workspace=workspace(config, keyVault=VAULT)))
    assert blueprint.ids["keyVault"] == VAULT and "keyVault" not in blueprint.made
    assert "workspace" in blueprint.made


def test_another_vault_for_an_existing_workspace_is_refused() -> None:
    """The service changes none of these; the key and both values are named."""
    config = configuration(resources={"key_vault": VAULT})
    with pytest.raises(ConflictError, match=r"platform\.resources\.key_vault names theirs, but workspace chat exists"):
        draw_blueprint(config, Found(group={}, workspace=workspace(config)))
