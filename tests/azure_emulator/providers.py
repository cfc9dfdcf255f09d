"""Resource providers: what they have, whether the subscription is registered with them, and what that refuses.

    PUT /_emulator/providers/Microsoft.Storage {"registrationState": "NotRegistered"}

All are registered until then. A template registers those of its resources by itself, when its caller may:
https://learn.microsoft.com/azure/azure-resource-manager/management/resource-providers-and-types
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.regions import REGIONS
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

VERSIONS = (
    "2019-10-01",
    "2021-04-01",
    "2022-09-01",
    "2023-07-01",
    "2024-03-01",
    "2024-07-01",
    "2024-11-01",
    "2025-04-01",
)
STATES = ("Registered", "NotRegistered", "Registering", "Unregistered", "Unregistering")
_REGISTERING_SECONDS = 0.5
_NAMESPACE = re.compile(r"(?i).*/providers/([^/]+)/([^/]+)")
# Registered for everybody, for ever.
_BUILT_IN = ("microsoft.resources", "microsoft.authorization", "microsoft.consumption", "microsoft.costmanagement")
_ML = ("2023-04-01", "2024-04-01", "2024-10-01", "2025-06-01", "2025-12-01")
# Namespace, its api-versions and its types of resources, as far as phiflow comes near them.
_KNOWN: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "Microsoft.MachineLearningServices": (
        _ML,
        (
            *("workspaces", "workspaces/computes", "workspaces/jobs", "workspaces/models", "workspaces/environments"),
            *("workspaces/onlineEndpoints", "workspaces/onlineEndpoints/deployments", "workspaces/datastores"),
            *("workspaces/data", "workspaces/codes", "locations", "locations/usages", "locations/vmSizes"),
        ),
    ),
    "Microsoft.Storage": (("2023-01-01", "2023-05-01", "2024-01-01"), ("storageAccounts", "checkNameAvailability")),
    "Microsoft.KeyVault": (("2022-07-01", "2023-07-01"), ("vaults", "deletedVaults", "checkNameAvailability")),
    "Microsoft.ContainerRegistry": (("2023-07-01", "2025-04-01"), ("registries", "checkNameAvailability")),
    "Microsoft.OperationalInsights": (("2022-10-01", "2023-09-01"), ("workspaces",)),
    "Microsoft.Insights": (("2020-02-02", "2024-02-01"), ("components", "metrics", "metricDefinitions")),
    "Microsoft.ManagedIdentity": (("2023-01-31", "2024-11-30"), ("userAssignedIdentities",)),
    "Microsoft.DocumentDB": (("2024-05-15", "2024-11-15"), ("databaseAccounts",)),
    "Microsoft.Network": (("2024-05-01",), ("virtualNetworks", "privateEndpoints")),
    "Microsoft.Compute": (("2021-07-01", "2024-07-01"), ("virtualMachines", "skus", "locations/usages")),
    "Microsoft.Quota": (("2023-02-01", "2025-09-01"), ("quotas", "usages", "quotaRequests", "operationsStatus")),
    "Microsoft.Authorization": (("2022-04-01",), ("roleAssignments", "roleDefinitions", "permissions")),
    "Microsoft.Resources": (("2022-09-01", "2025-04-01"), ("deployments", "resourceGroups", "tags")),
    "Microsoft.Consumption": (("2023-05-01", "2024-08-01"), ("budgets",)),
    "Microsoft.CostManagement": (("2023-11-01",), ("query",)),
}
_SPELLED = {name.lower(): name for name in _KNOWN}


def install(emulator: Emulator) -> None:
    """Register the routes and the guard."""
    providers = Providers(emulator)
    emulator.providers = providers
    emulator.allow_versions(*VERSIONS)
    emulator.guard(providers.check)
    register = emulator.register
    register("GET", "S/providers", providers.list)
    register("GET", "S/providers/{namespace}", providers.read)
    register("POST", "S/providers/{namespace}/register", providers.register)
    register("POST", "S/providers/{namespace}/unregister", providers.unregister)


class Providers:
    """Which providers the subscription is registered with."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def check(self, request: Request) -> None:
        """Refuse what needs a provider that the subscription is not registered with, or a template could not register.

        Raises:
            ServiceError: 409 MissingSubscriptionRegistration.
        """
        found = _NAMESPACE.match(request.path)
        if found is None or found[2].lower() in ("register", "unregister"):
            return
        # Other reads and deletions find out by themselves that there is nothing.
        needed = request.method in ("PUT", "PATCH", "POST") or found[2].lower() in ("locations", "quotas", "usages")
        if not needed or self.state(found[1]) in ("Registered", "Registering"):
            return
        namespace = _SPELLED.get(found[1].lower(), found[1])
        may = self._emulator.rights.may(f"{namespace}/register/action", self._emulator.scope.subscription_id)
        if request.route != "template" or not may:
            self.require_registered(namespace)

    def ensure_registered(self, namespace: str) -> None:
        """Have the subscription be registered, as a template has it before it makes a resource."""
        if self.state(namespace) != "Registered":
            self._set(namespace, "Registered")

    def require_registered(self, namespace: str) -> None:
        """Refuse a provider that the subscription is not registered with.

        Raises:
            ServiceError: 409 MissingSubscriptionRegistration.
        """
        if self.state(namespace) not in ("Registered", "Registering"):
            message = (
                f"The subscription is not registered to use namespace '{namespace}'. See https://aka.ms/rps-not-found "
                "for how to register subscriptions."
            )
            details = [{"code": "MissingSubscriptionRegistration", "target": namespace, "message": message}]
            raise ServiceError(409, "MissingSubscriptionRegistration", message, details=details, plain=True)

    def state(self, namespace: str) -> str:
        """How the subscription stands with a provider."""
        known = self._emulator.settings.get(f"providers/{namespace.lower()}")
        state = str(known.get("registrationState", "Registered"))
        if state in ("Registering", "Unregistering") and time.time() >= known.get("until", float("inf")):
            return "Registered" if state == "Registering" else "Unregistered"
        return state

    def list(self, request: Request) -> Answer:
        return self._emulator.page(request, [self._provider(name) for name in _KNOWN])

    def read(self, request: Request) -> Answer:
        return Answer(200, self._provider(_known(request)))

    def register(self, request: Request) -> Answer:
        """Begin to register, which takes a moment."""
        namespace = _known(request)
        if self.state(namespace) != "Registered":
            self._set(namespace, "Registering")
        return Answer(200, self._provider(namespace))

    def unregister(self, request: Request) -> Answer:
        namespace = _known(request)
        if namespace.lower() in _BUILT_IN:
            raise arm_error(409, "CannotUnregisterProvider", f"The provider '{namespace}' cannot be unregistered.")
        self._set(namespace, "Unregistering")
        return Answer(200, self._provider(namespace))

    def _set(self, namespace: str, state: str) -> None:
        document = {"registrationState": state, "until": time.time() + _REGISTERING_SECONDS}
        self._emulator.settings.put(f"providers/{namespace.lower()}", document)

    def _provider(self, namespace: str) -> dict[str, Any]:
        versions, types = _KNOWN[namespace]
        places = [region.display_name for region in REGIONS.values()]
        return {
            "id": f"{self._emulator.scope.subscription_id}/providers/{namespace}",
            "namespace": namespace,
            "resourceTypes": [
                {
                    "resourceType": kind,
                    "locations": places,
                    "apiVersions": sorted(versions, reverse=True),
                    "defaultApiVersion": versions[-1],
                    "capabilities": "None",
                }
                for kind in types
            ],
            "registrationState": self.state(namespace),
            "registrationPolicy": "RegistrationFree" if namespace.lower() in _BUILT_IN else "RegistrationRequired",
        }


def checked_provider(document: dict[str, Any]) -> dict[str, Any]:
    """The document of `PUT /_emulator/providers/{namespace}`, when it makes sense.

    Raises:
        ServiceError: 400, with what is wrong.
    """
    if document.get("registrationState") not in STATES:
        raise arm_error(400, "InvalidProvider", f"registrationState must be one of {', '.join(STATES)}.")
    return document


def _known(request: Request) -> str:
    given = request.parameters["namespace"]
    if given.lower() not in _SPELLED:
        raise arm_error(404, "InvalidResourceNamespace", f"The resource namespace '{given}' is invalid.")
    return _SPELLED[given.lower()]
