"""Online endpoints: stored, made, changed and deleted with the states that the service shows."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.azure_emulator import endpoint_spec
from tests.azure_emulator.deployments import BUSY, BusyError, Deployments, shown
from tests.azure_emulator.node_records import now
from tests.azure_emulator.serving import ServingError

if TYPE_CHECKING:
    from tests.azure_emulator.store import Store


class Endpoints:
    """The endpoints of one workspace.

    Args:
        store: the emulator's resources.
        phase_seconds: how long the service takes for what is over at once here.
    """

    def __init__(
        self, workspace: str, store: Store, deployments: Deployments, *, url: str, phase_seconds: float
    ) -> None:
        self._workspace = workspace
        self._store = store
        self._deployments = deployments
        self._url = url
        self._phase_seconds = phase_seconds
        self.id = deployments.id

    def put(self, name: str, body: Mapping[str, Any], operation: str) -> tuple[bool, dict[str, Any]]:
        """Make or change an endpoint; says whether it is new.

        Raises:
            InvalidEndpointError, BusyError: the service refuses it.
        """
        with self._store.lock:
            before = self._store.get(self.id(name))
            endpoint_spec.require_endpoint(name, body, {one["name"] for one in self._deployments.stored(name)})
            if before and before["properties"]["provisioningState"] in BUSY:
                raise BusyError(f"Endpoint {name} is {before['properties']['provisioningState'].lower()} already.")
            resource = endpoint_spec.endpoint_resource(self.id(name), body, operation, before, now())
            if before:
                # Where requests go does not change before the operation has succeeded.
                properties = resource["properties"]
                properties["wantedTraffic"] = properties["traffic"]
                properties["traffic"] = before["properties"]["traffic"]
            else:
                self._store.put(self._keys_id(name), {"primaryKey": _key(), "secondaryKey": _key()})
            self._store.put(self.id(name), resource)
        return before is None, shown(resource)

    def carry_out(
        self, endpoint: str, deployment: str, delete: bool, *, fault: Any, closed: threading.Event
    ) -> dict[str, Any] | None:
        """Do what an operation stands for, and return the error it ends with, if any.

        Args:
            fault: the error that a scenario wants.
            closed: set when the emulator ends, which then leaves things as they are.
        """
        if deployment and not delete:
            try:
                self._deployments.provision(endpoint, deployment, closed, fault)
            except ServingError as error:
                return {"code": error.code, "message": str(error)}
            return None
        time.sleep(self._phase_seconds)
        if fault:
            self._deployments.fail(self.id(endpoint, deployment))
        elif not delete:
            self._finish(endpoint)
        elif deployment:
            self._deployments.finish_delete(endpoint, deployment)
        else:
            self._finish_delete(endpoint)
        return None

    def _finish(self, name: str) -> None:
        """The endpoint is made, or changed."""
        with self._store.lock:
            resource = self._store.get(self.id(name))
            if resource is None or resource["properties"]["provisioningState"] not in ("Creating", "Updating"):
                return
            properties = resource["properties"]
            base = f"{self._url}/endpoints/{name}"
            properties["scoringUri"] = properties["scoringUri"] or f"{base}/score"
            properties["swaggerUri"] = properties["swaggerUri"] or f"{base}/swagger.json"
            if "wantedTraffic" in properties:
                properties["traffic"] = properties.pop("wantedTraffic")
            properties["provisioningState"] = "Succeeded"
            self._store.put(resource["id"], resource)

    def get(self, name: str) -> dict[str, Any] | None:
        """An endpoint as it is now."""
        resource = self._store.get(self.id(name))
        return shown(resource) if resource else None

    def list(self) -> list[dict[str, Any]]:
        """All endpoints."""
        return [shown(one) for one in self._store.list(f"{self._workspace}/onlineEndpoints")]

    def begin_delete(self, name: str) -> bool:
        """Begin to delete an endpoint with all it has; False when there is none."""
        with self._store.lock:
            resource = self._store.get(self.id(name))
            if resource is None:
                return False
            for one in (resource, *self._deployments.stored(name)):
                one["properties"]["provisioningState"] = "Deleting"
                self._store.put(one["id"], one)
            return True

    def _finish_delete(self, name: str) -> None:
        for deployment in self._deployments.stored(name):
            self._deployments.finish_delete(name, deployment["name"])
        for resource_id in (self.id(name), self._keys_id(name)):
            self._store.delete(resource_id)

    def keys(self, name: str) -> dict[str, str]:
        """The endpoint's keys."""
        return dict(self._store.get(self._keys_id(name)) or {})

    def regenerate(self, name: str, key_type: str) -> None:
        """Replace one of the keys."""
        field = "secondaryKey" if key_type.lower() == "secondary" else "primaryKey"
        self._store.put(self._keys_id(name), {**self.keys(name), field: _key()})

    def find(self, name: str) -> tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, str]] | None:
        """What the scoring host needs to know of an endpoint: itself, the deployments that answer, and the keys."""
        resource = self._store.get(self.id(name))
        if resource is None or resource["properties"]["provisioningState"] == "Deleting":
            return None
        answering = {one["name"]: one for one in self._deployments.stored(name) if one["properties"].get("localName")}
        return resource, answering, self.keys(name)

    def _keys_id(self, name: str) -> str:
        # Outside the workspace, so that no listing of resources shows it.
        return f"/keys{self.id(name)}"


def _key() -> str:
    return secrets.token_urlsafe(24)
