"""The types of resources that the emulated subscription can have: their api-versions, names and rules of their kind.

The versions are those of https://github.com/Azure/bicep-types-az that clients of today name; the rules for names are at
https://learn.microsoft.com/azure/azure-resource-manager/management/resource-name-rules.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tests.azure_emulator.regions import REGIONS
from tests.azure_emulator.web import ServiceError, arm_error

LOCATIONS = tuple(REGIONS)
MACHINE_LEARNING = "Microsoft.MachineLearningServices"
WORKSPACE = f"{MACHINE_LEARNING}/workspaces"
STORAGE = "Microsoft.Storage/storageAccounts"
VAULT = "Microsoft.KeyVault/vaults"
REGISTRY = "Microsoft.ContainerRegistry/registries"
INSIGHTS = "Microsoft.Insights/components"
LOG_ANALYTICS = "Microsoft.OperationalInsights/workspaces"
IDENTITY = "Microsoft.ManagedIdentity/userAssignedIdentities"
COSMOS = "Microsoft.DocumentDB/databaseAccounts"
ROLE_ASSIGNMENT = "Microsoft.Authorization/roleAssignments"
BUDGET = "Microsoft.Consumption/budgets"


@dataclass(frozen=True)
class ResourceType:
    """One type of resource.

    Attributes:
        name: as in Microsoft.Storage/storageAccounts.
        versions: the api-versions that its provider knows.
        pattern: what the last part of its names must be.
        tracked: has a location and tags, and is in lists of resources.
        worldwide: its names are unique in all subscriptions.
        extension: is made on the group, on a resource or on the subscription.
    """

    name: str
    versions: tuple[str, ...]
    pattern: str = r"[A-Za-z0-9][\w.()-]{0,88}[\w()-]"
    tracked: bool = True
    worldwide: bool = False
    extension: bool = False


def _years(*versions: str) -> tuple[str, ...]:
    """Versions written short, as in 2023-01-01 2024-05-01-preview."""
    return tuple(" ".join(versions).split())


_STORAGE_VERSIONS = _years(
    "2019-06-01 2021-01-01 2021-02-01 2021-04-01 2021-06-01 2021-08-01 2021-09-01 2022-05-01 2022-09-01",
    "2023-01-01 2023-04-01 2023-05-01 2024-01-01 2025-01-01 2025-06-01 2025-08-01",
)
_COSMOS_VERSIONS = _years(
    "2021-04-15 2021-06-15 2021-10-15 2022-05-15 2022-08-15 2022-11-15 2023-03-15 2023-04-15 2023-09-15",
    "2023-11-15 2024-05-15 2024-08-15 2024-11-15 2025-04-15 2025-10-15",
)
# Those of Microsoft.MachineLearningServices that clients of today name.
ML_VERSIONS = _years(
    "2018-11-19 2019-05-01 2019-11-01 2020-06-01 2021-04-01 2021-07-01 2022-02-01-preview 2022-05-01 2022-10-01",
    "2022-10-01-preview 2022-12-01-preview 2023-02-01-preview 2023-04-01 2023-04-01-preview 2023-06-01-preview",
    "2023-08-01-preview 2023-10-01 2024-01-01-preview 2024-04-01 2024-04-01-preview 2024-07-01-preview 2024-10-01",
    "2024-10-01-preview 2025-01-01-preview 2025-04-01 2025-04-01-preview 2025-06-01 2025-07-01-preview 2025-09-01",
    "2025-10-01-preview 2025-12-01",
)
_SETTING = {"tracked": False, "pattern": r"[\w.$-]{1,90}"}
_TYPES = (
    ResourceType(STORAGE, _STORAGE_VERSIONS, r"[a-z0-9]{3,24}", worldwide=True),
    ResourceType(f"{STORAGE}/blobServices", _STORAGE_VERSIONS, **_SETTING),
    ResourceType(f"{STORAGE}/blobServices/containers", _STORAGE_VERSIONS, **_SETTING),
    ResourceType(f"{STORAGE}/managementPolicies", _STORAGE_VERSIONS, **_SETTING),
    ResourceType(
        VAULT,
        _years("2019-09-01 2021-10-01 2022-07-01 2022-11-01 2023-02-01 2023-07-01 2024-11-01 2025-05-01"),
        r"(?=.{3,24}$)[A-Za-z](?:-?[A-Za-z0-9])+",
        worldwide=True,
    ),
    ResourceType(
        LOG_ANALYTICS,
        _years("2015-03-20 2020-08-01 2020-10-01 2021-06-01 2022-10-01 2023-09-01 2025-02-01 2025-07-01"),
        r"[A-Za-z0-9][A-Za-z0-9-]{2,61}[A-Za-z0-9]",
    ),
    ResourceType(INSIGHTS, _years("2015-05-01 2018-05-01-preview 2020-02-02-preview 2020-02-02"), r"[\w.()-]{1,260}"),
    ResourceType(
        REGISTRY,
        _years("2019-05-01 2021-09-01 2022-12-01 2023-07-01 2025-04-01 2025-11-01"),
        r"[A-Za-z0-9]{5,50}",
        worldwide=True,
    ),
    ResourceType(IDENTITY, _years("2018-11-30 2023-01-31 2024-11-30"), r"[A-Za-z0-9][\w-]{2,127}"),
    ResourceType(COSMOS, _COSMOS_VERSIONS, r"[a-z0-9][a-z0-9-]{1,42}[a-z0-9]", worldwide=True),
    ResourceType(f"{COSMOS}/tables", _COSMOS_VERSIONS, **_SETTING),
    ResourceType(WORKSPACE, ML_VERSIONS, r"[A-Za-z0-9][A-Za-z0-9_-]{2,32}"),
    ResourceType(f"{WORKSPACE}/computes", ML_VERSIONS, tracked=False),
    ResourceType(f"{WORKSPACE}/onlineEndpoints", ML_VERSIONS),
    ResourceType(f"{WORKSPACE}/onlineEndpoints/deployments", ML_VERSIONS),
    ResourceType(
        ROLE_ASSIGNMENT,
        _years("2015-07-01 2018-09-01-preview 2020-04-01-preview 2020-08-01-preview 2020-10-01-preview 2022-04-01"),
        r"(?i)[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}",
        tracked=False,
        extension=True,
    ),
    ResourceType(
        BUDGET,
        _years("2019-10-01 2021-10-01 2022-09-01 2023-03-01 2023-05-01 2023-11-01 2024-08-01"),
        r"[\w-]{1,63}",
        tracked=False,
        extension=True,
    ),
)
TYPES = {one.name.lower(): one for one in _TYPES}
# Resource Manager's own: resource groups, deployments, lists of resources.
RESOURCES_VERSIONS = _years(
    "2018-05-01 2019-05-10 2019-10-01 2020-06-01 2020-10-01 2021-01-01 2021-04-01 2022-09-01 2023-07-01 2024-03-01",
    "2024-07-01 2024-11-01 2025-03-01 2025-04-01 2025-05-01 2026-06-01",
)


def all_versions() -> set[str]:
    """Every api-version that some type knows."""
    return {*RESOURCES_VERSIONS, *(version for one in _TYPES for version in one.versions)}


def find_type(name: str, version: str) -> ResourceType:
    """The type of this name.

    Raises:
        ServiceError: there is none, or it does not know the version.
    """
    namespace, _, kind = name.partition("/")
    known = TYPES.get(name.lower())
    if known is None:
        if not any(one.startswith(f"{namespace.lower()}/") for one in TYPES):
            raise arm_error(404, "InvalidResourceNamespace", f"The resource namespace '{namespace}' is invalid.")
        message = (
            f"The resource type '{kind}' could not be found in the namespace '{namespace}' for api version '{version}'."
        )
        raise arm_error(404, "InvalidResourceType", message)
    if version not in known.versions:
        message = (
            f"No registered resource provider found for location '{LOCATIONS[0]}' and API version '{version}' for type "
            f"'{kind}'. The supported api-versions are '{', '.join(known.versions)}'. The supported locations are "
            f"'{', '.join(LOCATIONS)}'."
        )
        raise arm_error(400, "NoRegisteredProviderFound", message)
    return known


def normal_location(text: str) -> str:
    """A location as it is stored: `West Europe` is westeurope."""
    return re.sub(r"\s", "", text).lower()


def require_location(body: dict[str, object], kind: str) -> str:
    """The location of a body.

    Raises:
        ServiceError: it has none, or one that does not exist.
    """
    given = body.get("location")
    if not given:
        raise arm_error(400, "LocationRequired", "The location property is required for this definition.")
    location = normal_location(str(given))
    if location not in LOCATIONS:
        message = (
            f"The provided location '{given}' is not available for resource type '{kind}'. List of available regions "
            f"for the resource type is '{','.join(LOCATIONS)}'."
        )
        raise arm_error(400, "LocationNotAvailableForResourceType", message)
    return location


def invalid_name(kind: ResourceType, name: str) -> ServiceError:
    """What the provider says of a name that breaks its rule."""
    code, message = {
        STORAGE: (
            "AccountNameInvalid",
            f"{name} is not a valid storage account name. Storage account name must be between 3 and 24 characters in "
            "length and use numbers and lower-case letters only.",
        ),
        VAULT: (
            "VaultNameNotValid",
            f"The vault name '{name}' is invalid. A vault's name must be between 3-24 alphanumeric characters. The "
            "name must begin with a letter, end with a letter or digit, and not contain consecutive hyphens.",
        ),
        REGISTRY: (
            "InvalidResourceName",
            f"Resource name '{name}' is invalid: alphanumeric characters only, between 5 and 50 of them.",
        ),
        ROLE_ASSIGNMENT: (
            "InvalidRoleAssignmentId",
            f"The role assignment ID '{name}' is not valid. It must be a GUID.",
        ),
    }.get(kind.name, ("InvalidResourceName", f"Resource name '{name}' of type '{kind.name}' is invalid."))
    return arm_error(400, code, message)


def name_taken(kind: ResourceType, name: str) -> ServiceError:
    """What the provider says of a name that somebody else has."""
    code, message = {
        STORAGE: ("StorageAccountAlreadyTaken", f"The storage account named {name} is already taken."),
        VAULT: (
            "VaultAlreadyExists",
            f"The vault name '{name}' is already in use. Vault names are globally unique so it is possible that the "
            "name is already taken. If you are sure that the vault name was not taken then it is possible that a vault "
            "with the same name was recently deleted but not purged after being placed in a recoverable state.",
        ),
        REGISTRY: ("AlreadyInUse", f"The registry DNS name {name}.azurecr.io is already in use."),
    }.get(kind.name, ("Conflict", f"The name '{name}' is already in use. Names of {kind.name} are globally unique."))
    return arm_error(409, code, message)


def resource_not_found(kind: str, name: str, group: str) -> ServiceError:
    """What Resource Manager says of a resource that is not there."""
    message = (
        f"The Resource '{kind}/{name}' under resource group '{group}' was not found. For more details please go to "
        "https://aka.ms/ARMResourceNotFoundFix"
    )
    return arm_error(404, "ResourceNotFound", message)
