"""Which roles the identity of cluster and endpoint has, and who works with the workspace; no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.platforms.azure.foundation.names import ResourceNames, is_within, last_name, role_assignment_name

if TYPE_CHECKING:
    from tasks.config import AzurePlatformConfig

# https://learn.microsoft.com/azure/role-based-access-control/built-in-roles
CONTRIBUTOR = "b24988ac-6180-42a0-ab88-20f7382dd24c"
STORAGE_BLOB_DATA_CONTRIBUTOR = "ba92f5b4-2d11-453d-a403-e96b0029c9fe"
ACR_PULL = "7f951dda-4ed3-4680-a7ca-43fe172d538d"
AZUREML_METRICS_WRITER = "635dd51f-9968-44d3-b7fb-6d9a6bd613ae"
KEY_VAULT_SECRETS_USER = "4633458b-17de-408a-b874-0445c86b69e6"
KEY_VAULT_SECRETS_OFFICER = "b86a8fe4-44ce-4948-aee5-eccb2c155cd7"
ROLE_NAMES = {
    CONTRIBUTOR: "Contributor",
    STORAGE_BLOB_DATA_CONTRIBUTOR: "Storage Blob Data Contributor",
    ACR_PULL: "AcrPull",
    AZUREML_METRICS_WRITER: "AzureML Metrics Writer",
    KEY_VAULT_SECRETS_USER: "Key Vault Secrets User",
    KEY_VAULT_SECRETS_OFFICER: "Key Vault Secrets Officer",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Role:
    """One role assignment; without a principal it is to come, when the identity is there.

    `word` is empty for a scope outside the resource group, which the template cannot reach.
    """

    word: str
    role: str
    scope: str
    principal_id: str
    is_person: bool = False

    @property
    def id(self) -> str:
        name = role_assignment_name(self.scope, self.role, self.principal_id)
        return f"{self.scope}/providers/Microsoft.Authorization/roleAssignments/{name}"

    @property
    def told(self) -> str:
        """For people: which role, on what."""
        return f"{ROLE_NAMES[self.role]} on {last_name(self.scope)}"


def wanted_roles(
    config: AzurePlatformConfig, names: ResourceNames, ids: Mapping[str, str], principal_id: str
) -> tuple[Role, ...]:
    """The roles of the identity, and of the engineer where one is named.

    Args:
        ids: resource ids by word, as in `blueprint`.
        principal_id: the identity's; empty: it is to come.
    Source: https://learn.microsoft.com/azure/machine-learning/how-to-access-resources-from-endpoints-managed-identities
    """
    vault = names.group if is_within(ids["keyVault"], names.group) else ids["keyVault"]
    storage = names.group if is_within(ids["storageAccount"], names.group) else ids["storageAccount"]
    wanted = [
        ("identityStorageRole", STORAGE_BLOB_DATA_CONTRIBUTOR, ids["storageAccount"]),
        ("identityRegistryRole", ACR_PULL, ids["containerRegistry"] or names.group),
        ("identityMetricsRole", AZUREML_METRICS_WRITER, names.group),
    ]
    if config.hub_token_secret:
        wanted.append(("identitySecretsRole", KEY_VAULT_SECRETS_USER, vault))
    if config.resources.identity_roles == "contributor":
        wanted.append(("identityContributorRole", CONTRIBUTOR, names.group))
    if config.resources.engineer:
        wanted += [
            ("engineerContributorRole", CONTRIBUTOR, names.group),
            ("engineerStorageRole", STORAGE_BLOB_DATA_CONTRIBUTOR, storage),
            ("engineerSecretsRole", KEY_VAULT_SECRETS_OFFICER, vault),
        ]
    return tuple(
        Role(
            word=word if is_within(scope, names.group) else "",
            role=role,
            scope=scope,
            principal_id=config.resources.engineer if word.startswith("engineer") else principal_id,
            is_person=word.startswith("engineer"),
        )
        for word, role, scope in wanted
    )
