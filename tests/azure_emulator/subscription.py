"""The subscription as Resource Manager tells it, its tenant and its regions, and what its state refuses.

    PUT /_emulator/subscription {"state": "Disabled", "quotaId": "FreeTrial_2014-09-01"}

Offers by quotaId: https://learn.microsoft.com/azure/cost-management-billing/costs/understand-cost-mgmt-data
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tests.azure_emulator import authorization, providers, quota, quota_requests, retail_prices, skus
from tests.azure_emulator.names import TENANT
from tests.azure_emulator.regions import REGIONS
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

VERSIONS = (
    "2014-04-01",
    "2016-06-01",
    "2018-06-01",
    "2019-06-01",
    "2019-11-01",
    "2020-01-01",
    "2021-01-01",
    "2022-12-01",
)
STATES = ("Enabled", "Disabled", "Warned", "PastDue", "Deleted")
_DEFAULT = {"state": "Enabled", "quotaId": "PayAsYouGo_2014-09-01", "spendingLimit": "Off"}
_WRITES = ("PUT", "PATCH", "POST")


def install(emulator: Emulator) -> None:
    """Register the routes and guards of the subscription, and of what is asked of it as a whole."""
    subscription = Subscription(emulator)
    emulator.allow_versions(*VERSIONS)
    emulator.guard(subscription.check_tenant)
    emulator.rights = authorization.install(emulator)
    emulator.guard(subscription.check_state)
    register = emulator.register
    register("GET", "/subscriptions", subscription.list)
    register("GET", "/subscriptions/{id}", subscription.read)
    register("GET", "S/locations", subscription.list_locations)
    register("GET", "/tenants", subscription.list_tenants)
    for module in (providers, quota, quota_requests, skus, retail_prices):
        module.install(emulator)


class Subscription:
    """Answers for the one subscription there is."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def check_tenant(self, request: Request) -> None:
        """Refuse a token of another tenant than the subscription's.

        Raises:
            ServiceError: 401 InvalidAuthenticationTokenTenant.
        """
        tenant = request.claims.get("tid", TENANT)
        if tenant != TENANT and request.path.lower() != "/subscriptions":
            raise ServiceError(
                401,
                "InvalidAuthenticationTokenTenant",
                f"The access token is from the wrong issuer 'https://sts.windows.net/{tenant}/'. It must match the "
                f"tenant 'https://sts.windows.net/{TENANT}/' associated with this subscription. Please use the "
                f"authority (URL) 'https://login.windows.net/{TENANT}' to get the token. Note, if the subscription is "
                "transferred to another tenant there is no impact to the services, but information about new tenant "
                "could take time to propagate (up to an hour). If you just transferred your subscription and see this "
                "error message, please try back later.",
                headers=self._emulator.identity.challenge(),
                plain=True,
            )

    def check_state(self, request: Request) -> None:
        """Refuse what a disabled subscription does not take: everything but reading and deleting.

        Raises:
            ServiceError: 409.
        """
        if self._settings()["state"] in ("Disabled", "Deleted") and request.method in _WRITES:
            raise arm_error(
                409,
                "ReadOnlyDisabledSubscription",
                f"The subscription '{self._emulator.scope.subscription}' is disabled and therefore marked as read "
                "only. You cannot perform any write actions on this subscription until it is re-enabled.",
            )

    def list(self, request: Request) -> Answer:
        """Those that the token's tenant has, and the caller has a role in."""
        seen = request.claims.get("tid", TENANT) == TENANT and self._emulator.rights.has_any()
        found = [self._resource()] if seen else []
        return Answer(200, {"value": found, "count": {"type": "Total", "value": len(found)}})

    def read(self, request: Request) -> Answer:
        if not self._emulator.rights.has_any():
            scope = self._emulator.scope.subscription_id
            self._emulator.rights.require("Microsoft.Resources/subscriptions/read", scope)
        return Answer(200, self._resource())

    def list_locations(self, request: Request) -> Answer:
        base = self._emulator.scope.subscription_id
        return Answer(200, {"value": [region.to_json(base) for region in REGIONS.values()]})

    def list_tenants(self, request: Request) -> Answer:
        self._emulator.identity.require(request)
        tenant = request.claims.get("tid", TENANT)
        told = {
            "id": f"/tenants/{tenant}",
            "tenantId": tenant,
            "countryCode": "DE",
            "displayName": "Emulated" if tenant == TENANT else "Another",
            "domains": [f"{'emulated' if tenant == TENANT else 'another'}.onmicrosoft.com"],
            "tenantCategory": "Home",
            "defaultDomain": f"{'emulated' if tenant == TENANT else 'another'}.onmicrosoft.com",
            "tenantType": "AAD",
        }
        return Answer(200, {"value": [told]})

    def _settings(self) -> dict[str, Any]:
        return _DEFAULT | self._emulator.settings.get("subscription")

    def _resource(self) -> dict[str, Any]:
        settings, scope = self._settings(), self._emulator.scope
        return {
            "id": scope.subscription_id,
            "authorizationSource": "RoleBased",
            "managedByTenants": [],
            "subscriptionId": scope.subscription,
            "tenantId": TENANT,
            "displayName": "Emulated subscription",
            "state": settings["state"],
            "subscriptionPolicies": {
                "locationPlacementId": "Public_2014-09-01",
                "quotaId": settings["quotaId"],
                "spendingLimit": settings["spendingLimit"],
            },
        }


def checked_subscription(document: dict[str, Any]) -> dict[str, Any]:
    """The document of `PUT /_emulator/subscription`, when it makes sense.

    Raises:
        ServiceError: 400, with what is wrong.
    """
    if document.get("state", "Enabled") not in STATES or document.keys() - _DEFAULT.keys():
        raise arm_error(400, "InvalidSubscription", f"{document} is not {{state, quotaId, spendingLimit}}: {STATES}.")
    return document
