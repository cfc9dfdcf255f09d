"""What a subscription's offer and state mean for a run; the offer is told by its `quotaId`."""

from __future__ import annotations

from typing import Any

UPGRADE = "https://learn.microsoft.com/azure/cost-management-billing/manage/upgrade-azure-subscription"
# Offers that live on free credit: their limits cannot be raised, and GPU families start at zero.
# https://learn.microsoft.com/azure/azure-resource-manager/management/azure-subscription-service-limits
# https://learn.microsoft.com/azure/machine-learning/how-to-manage-quotas ("GPUs also default to zero cores")
_ON_FREE_CREDIT = {
    "FreeTrial": "free trial",
    "LightweightTrial": "free trial",
    "AzureForStudents": "Azure for Students",
    "DreamSpark": "Azure for Students Starter",
    "AzurePass": "Azure Pass",
    "AzureInOpen": "Azure in Open Licensing",
}
# States in which nothing may be made:
# https://learn.microsoft.com/azure/cost-management-billing/manage/subscription-states
READ_ONLY = ("Disabled", "Warned", "Expired", "Deleted")


def offer_of(subscription: dict[str, Any]) -> str:
    """The `quotaId` of a subscription, as in PayAsYouGo_2014-09-01."""
    return str((subscription.get("subscriptionPolicies") or {}).get("quotaId") or "")


def free_credit(quota_id: str) -> str:
    """What people call an offer that gets no GPU quota; empty for any other."""
    return _ON_FREE_CREDIT.get(quota_id.partition("_")[0], "")


def has_spending_limit(subscription: dict[str, Any]) -> bool:
    """Whether a credit bounds what may be spent; quota is not raised while it does."""
    return str((subscription.get("subscriptionPolicies") or {}).get("spendingLimit") or "Off") == "On"
