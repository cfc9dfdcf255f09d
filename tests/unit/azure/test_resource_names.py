"""The names of what belongs to a workspace."""

from __future__ import annotations

import re
import uuid

import pytest

from tasks.config import AzurePlatformConfig
from tasks.platforms.azure.foundation.names import (
    is_within,
    last_name,
    resource_names,
    resource_tags,
    role_assignment_name,
)

PLACE = {"subscription_id": "00000000-0000-0000-0000-000000000001", "resource_group": "Team", "workspace": "Chat"}


def place(**changed: str) -> AzurePlatformConfig:
    """A workspace's coordinates."""
    return AzurePlatformConfig.model_validate({**PLACE, **changed})


def test_every_service_takes_the_name() -> None:
    """The name has what a storage account, a key vault and a registry allow: letters first, lower case, 24 at most."""
    assert re.fullmatch(r"[a-z][a-z0-9]{4,23}", resource_names(place()).base)


def test_case_of_the_coordinates_makes_no_other_name() -> None:
    """Azure's names are told apart without regard to case, and so are the coordinates."""
    lower = {key: value.lower() for key, value in PLACE.items()}
    assert resource_names(place(**lower)).base == resource_names(place()).base


@pytest.mark.parametrize("key", PLACE)
def test_another_workspace_has_other_names(key: str) -> None:
    """Each coordinate counts."""
    assert resource_names(place(**{key: "other"})).base != resource_names(place()).base


def test_names_stay_as_they_are() -> None:
    """A name that changed with a release would leave the old resources billing; this one is what it was."""
    assert resource_names(place()).base == "phib712ef2595df6c9868"


def test_everything_but_the_workspace_has_the_one_name() -> None:
    """The ids differ in their types alone."""
    names = resource_names(place())
    ids = [names.storage_account, names.container_registry, names.identity, names.log_analytics, names.key_vault]
    ids += [names.application_insights, names.chat_history, names.budget]
    assert {last_name(one) for one in ids} == {names.base}
    assert len({one.lower() for one in ids}) == 8
    assert all(is_within(one, names.group) for one in [*ids, names.workspace])
    assert resource_tags(place()) == {"phiflow": "1", "phiflow.workspace": "Chat"}


def test_role_assignment_is_named_by_what_it_is() -> None:
    """Scope, role and principal, in any case, give one GUID; another of them another."""
    name = role_assignment_name("/subscriptions/s", "role", "principal")
    assert str(uuid.UUID(name)) == name == role_assignment_name("/SUBSCRIPTIONS/S", "ROLE", "Principal")
    others = [("/subscriptions/t", "role", "principal"), ("/subscriptions/s", "other", "principal")]
    assert name not in {role_assignment_name(*one) for one in [*others, ("/subscriptions/s", "role", "other")]}


def test_scope_is_no_prefix_of_a_longer_name() -> None:
    """The group `team` does not hold what is in the group `team2`."""
    group = "/subscriptions/s/resourceGroups/team"
    assert is_within(f"{group}/providers/p/t/n", group.upper())
    assert is_within(group, group)
    assert not is_within("/subscriptions/s/resourceGroups/team2/providers/p/t/n", group)
