"""What the caller may do, from the permissions that Resource Manager lists for a scope, and which role would allow it.

Source of the rules: https://learn.microsoft.com/azure/role-based-access-control/role-definitions
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

_ML = "Microsoft.MachineLearningServices/workspaces"
_DEPLOY = ("Microsoft.Resources/deployments/write", "Microsoft.Resources/deployments/validate/action")
# What the two parts of `phiflow up`, and a run, ask for.
OWNER_ACTIONS = (
    *_DEPLOY,
    "Microsoft.Resources/subscriptions/resourceGroups/write",
    "Microsoft.Storage/storageAccounts/write",
    "Microsoft.ContainerRegistry/registries/write",
    "Microsoft.ManagedIdentity/userAssignedIdentities/write",
    "Microsoft.Authorization/roleAssignments/write",
)
ENGINEER_ACTIONS = (
    *_DEPLOY,
    "Microsoft.OperationalInsights/workspaces/write",
    "Microsoft.Insights/components/write",
    "Microsoft.KeyVault/vaults/write",
    f"{_ML}/write",
    f"{_ML}/computes/write",
)
RUN_ACTIONS = (
    f"{_ML}/read",
    f"{_ML}/computes/write",
    f"{_ML}/environments/versions/write",
    f"{_ML}/codes/versions/write",
    f"{_ML}/jobs/write",
    f"{_ML}/jobs/cancel/action",
    f"{_ML}/models/versions/write",
    f"{_ML}/onlineEndpoints/write",
    f"{_ML}/onlineEndpoints/deployments/write",
    f"{_ML}/onlineEndpoints/listKeys/action",
)
# Of these, what a run asks for only when it has trained.
LATE_ACTIONS = (
    f"{_ML}/models/versions/write",
    f"{_ML}/onlineEndpoints/write",
    f"{_ML}/onlineEndpoints/deployments/write",
)
IDENTITY_ACTION = "Microsoft.ManagedIdentity/userAssignedIdentities/assign/action"
METRICS_ACTION = "Microsoft.Insights/metrics/read"
# The role to ask for, by the action; the first pattern that an action matches.
_ROLES = (
    (r"Microsoft\.Authorization/.*", "Role Based Access Control Administrator"),
    (r"Microsoft\.ManagedIdentity/userAssignedIdentities/assign/action", "Managed Identity Operator"),
    (r"Microsoft\.Insights/metrics/read", "Monitoring Reader"),
    (r"Microsoft\.MachineLearningServices/workspaces/computes/write", "AzureML Compute Operator"),
    (r"Microsoft\.MachineLearningServices/workspaces/write", "Contributor"),
    (r"Microsoft\.MachineLearningServices/workspaces/.*", "AzureML Data Scientist"),
)


def missing_actions(permissions: Iterable[Mapping[str, Any]], wanted: Iterable[str]) -> tuple[str, ...]:
    """The wanted actions that no entry allows; one entry's `notActions` take nothing from another's `actions`."""
    entries = list(permissions)
    return tuple(action for action in dict.fromkeys(wanted) if not any(_allows(entry, action) for entry in entries))


def role_for(action: str) -> str:
    """The narrowest built-in role that has an action; Contributor where none is narrower."""
    return next((role for pattern, role in _ROLES if re.fullmatch(pattern, action, re.IGNORECASE)), "Contributor")


def matches(pattern: str, action: str) -> bool:
    """Whether an action is one of a pattern's.

    A `*` stands for any text, and `a/*/b` also for `a/b`: AzureML Data Scientist has no other right to read a workspace
    than `workspaces/*/read`, and to make no cluster is written `computes/*/write` in it.
    """
    parts = [re.escape(part) for part in pattern.lower().split("*")]
    text = ".*".join(parts).replace("/.*/", "/(?:.*/)?")
    return re.fullmatch(text, action.lower()) is not None


def _allows(entry: Mapping[str, Any], action: str) -> bool:
    allowed = any(matches(pattern, action) for pattern in entry.get("actions") or ())
    return allowed and not any(matches(pattern, action) for pattern in entry.get("notActions") or ())
