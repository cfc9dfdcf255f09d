"""Online endpoints and their deployments: stored, made, changed and deleted with the states that the service shows."""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Mapping
from typing import Any

from tests.azure_emulator import endpoint_spec, scripts
from tests.azure_emulator.endpoint_spec import InvalidEndpointError, asset_id
from tests.azure_emulator.job_spec import JobSpecs, seconds_of
from tests.azure_emulator.node import now
from tests.azure_emulator.scenarios import Scenarios
from tests.azure_emulator.serving import Serving, ServingError
from tests.azure_emulator.uris import NoSuchPlaceError, Uris

_log = logging.getLogger(__name__)
_BUSY = ("Creating", "Updating", "Deleting")
_READY_SECONDS = 900.0
_POLL_SECONDS = 0.1
# Told to nobody: what the emulator itself needs to know.
_HIDDEN = ("localName", "wantedTraffic", "script")


class BusyError(Exception):
    """The thing is being changed, or used, in a way that excludes the request."""


class RefusedError(Exception):
    """A request that the service refuses with a body of its own."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


class Endpoints:
    """The endpoints of one workspace.

    Args:
        store: the emulator's resources.
        scenarios: what is to befall deployments that are being made.
        phase_seconds: how long the service takes for what is instantaneous here.
    """

    def __init__(
        self,
        workspace: str,
        store: Any,
        specs: JobSpecs,
        serving: Serving,
        url: str,
        scenarios: Scenarios,
        phase_seconds: float,
    ) -> None:
        self._workspace = workspace
        self._store = store
        self._specs = specs
        self._serving = serving
        self._url = url
        self._scenarios = scenarios
        self._phase_seconds = phase_seconds
        self._uris = Uris(workspace, store.get)
        self._lock = threading.RLock()

    # Endpoints

    def put(self, name: str, body: Mapping[str, Any], operation: str) -> tuple[bool, dict[str, Any]]:
        """Make or change an endpoint; says whether it is new.

        Raises:
            InvalidEndpointError, BusyError: the service refuses it.
        """
        with self._lock:
            before = self._store.get(self.id(name))
            endpoint_spec.require_endpoint(name, body, {one["name"] for one in self.deployments(name)})
            if before and before["properties"]["provisioningState"] in _BUSY:
                raise BusyError(f"Endpoint {name} is {before['properties']['provisioningState'].lower()} already.")
            resource = endpoint_spec.endpoint_resource(self.id(name), body, operation, before, now())
            if before:
                # Where requests go does not change before the operation has succeeded.
                resource["properties"]["traffic"], wanted = (
                    before["properties"]["traffic"],
                    resource["properties"]["traffic"],
                )
                resource["properties"]["wantedTraffic"] = wanted
            else:
                self._store.put(self._keys_id(name), {"primaryKey": _key(), "secondaryKey": _key()})
            self._store.put(self.id(name), resource)
        return before is None, self.shown(resource)

    def finish(self, name: str) -> None:
        """The endpoint is made, or changed."""
        with self._lock:
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
        return self.shown(resource) if resource else None

    def list(self) -> list[dict[str, Any]]:
        """All endpoints."""
        return [self.shown(one) for one in self._store.list(f"{self._workspace}/onlineEndpoints")]

    def begin_delete(self, name: str) -> bool:
        """Begin to delete an endpoint with all it has; False when there is none."""
        with self._lock:
            resource = self._store.get(self.id(name))
            if resource is None:
                return False
            for one in (resource, *self.deployments(name)):
                one["properties"]["provisioningState"] = "Deleting"
                self._store.put(one["id"], one)
            return True

    def finish_delete(self, name: str) -> None:
        """End the servers and forget the endpoint."""
        for deployment in self.deployments(name):
            self.finish_delete_deployment(name, deployment["name"])
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
        """What the scoring host needs to know of an endpoint."""
        resource = self._store.get(self.id(name))
        if resource is None or resource["properties"]["provisioningState"] == "Deleting":
            return None
        return resource, {one["name"]: one for one in self.deployments(name)}, self.keys(name)

    # Deployments

    def put_deployment(
        self, endpoint: str, name: str, body: Mapping[str, Any], operation: str
    ) -> tuple[bool, dict[str, Any]]:
        """Make or change a deployment; says whether it is new.

        Raises:
            InvalidEndpointError, BusyError: the service refuses it.
        """
        with self._lock:
            before = self._store.get(self.id(endpoint, name))
            endpoint_spec.require_deployment(name, body, self._store.get, self._workspace, before)
            if before and before["properties"]["provisioningState"] in _BUSY:
                raise BusyError(f"Deployment {name} is {before['properties']['provisioningState'].lower()} already.")
            size = str(body["properties"]["instanceType"])
            script = scripts.take_deployment(self._scenarios, endpoint, name, size)
            if script.get("refused"):
                raise RefusedError(scripts.quota_refused(size, self._workspace.split("/")[2]))
            resource = endpoint_spec.deployment_resource(self.id(endpoint, name), body, operation, before, now())
            if before and before["properties"].get("localName"):
                resource["properties"]["localName"] = before["properties"]["localName"]
            resource["properties"]["script"] = script
            self._store.put(resource["id"], resource)
        return before is None, self.shown(resource)

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
                self.provision(endpoint, deployment, closed, fault)
            except ServingError as error:
                return {"code": error.code, "message": str(error)}
            return None
        time.sleep(self._phase_seconds)
        if fault:
            self._fail(self.id(endpoint, deployment))
        elif not delete:
            self.finish(endpoint)
        elif deployment:
            self.finish_delete_deployment(endpoint, deployment)
        else:
            self.finish_delete(endpoint)
        return None

    def _fail(self, resource_id: str) -> None:
        with self._lock:
            resource = self._store.get(resource_id)
            if resource:
                resource["properties"]["provisioningState"] = "Failed"
                self._store.put(resource_id, resource)

    def provision(self, endpoint: str, name: str, closed: threading.Event, fault: Any = None) -> None:
        """Take a deployment to Succeeded, or raise what keeps it from there.

        Args:
            closed: set when the emulator ends, which then leaves the deployment as it is.

        Raises:
            ServingError: with the service's code and words; the deployment is then Failed.
        """
        resource = self._store.get(self.id(endpoint, name))
        if resource is None:
            return
        script = resource["properties"].get("script", {})

        def wanted() -> bool:
            return not closed.is_set() and self._is_wanted(endpoint, name)

        try:
            deadline = time.monotonic() + script.get("seconds", self._phase_seconds)
            while wanted() and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            if not wanted():
                return
            error = fault or script.get("error")
            if error:
                raise ServingError(error["code"], error["message"])
            local_name = self._start(endpoint, resource)
            patience = script.get("ready_seconds", _READY_SECONDS)
            self._serving.await_ready(endpoint, local_name, patience, wanted)
        except Exception as error:
            if closed.is_set():
                return
            self._end(endpoint, name, "Failed")
            if isinstance(error, ServingError):
                raise
            _log.exception("Could not provision deployment=%s", name)
            raise ServingError("InternalServerError", f"{type(error).__name__}: {error}") from error
        if not closed.is_set():
            self._end(endpoint, name, "Succeeded")

    def _start(self, endpoint: str, resource: dict[str, Any]) -> str:
        properties = resource["properties"]
        model_id = asset_id(properties["model"], "models", self._workspace)
        try:
            place = self._uris.place(model_id)
        except NoSuchPlaceError as error:
            raise ServingError("BadArgument", str(error)) from error
        _, _, name_and_version = model_id.rpartition("/models/")
        model, _, version = name_and_version.partition("/versions/")
        settings = properties["requestSettings"]
        environment_id = properties.get("environmentId")
        if environment_id:
            full = asset_id(environment_id, "environments", self._workspace)
            image, server = self._specs.image(full), "openai"
        else:
            image, server = self._specs.no_code_image(), "mlflow"
        local_name = self._serving.start(
            endpoint,
            resource["name"],
            image,
            {
                "name": properties["environmentVariables"].get("PHIFLOW_MODEL_NAME") or model,
                "version": version,
                "place": place,
                "settings": {
                    "server": server,
                    "max_concurrent_requests": settings["maxConcurrentRequestsPerInstance"],
                    "request_timeout_seconds": seconds_of(settings["requestTimeout"], 5),
                    "environment_variables": properties["environmentVariables"],
                },
            },
        )
        with self._lock:
            current = self._store.get(resource["id"])
            previous = current and current["properties"].get("localName")
            if current:
                current["properties"]["localName"] = local_name
                self._store.put(current["id"], current)
        if previous and previous != local_name:
            self._serving.stop(endpoint, previous)
        return local_name

    def _is_wanted(self, endpoint: str, name: str) -> bool:
        current = self._store.get(self.id(endpoint, name))
        return bool(current) and current["properties"]["provisioningState"] in ("Creating", "Updating")

    def _end(self, endpoint: str, name: str, state: str) -> None:
        with self._lock:
            current = self._store.get(self.id(endpoint, name))
            if current and current["properties"]["provisioningState"] in ("Creating", "Updating"):
                current["properties"]["provisioningState"] = state
                self._store.put(current["id"], current)
            if state == "Succeeded" and current:
                self._tell_route(endpoint, current)

    def _tell_route(self, endpoint: str, deployment: Mapping[str, Any]) -> None:
        """An environment with a scoring route of its own gives the endpoint's address its path."""
        environment_id = deployment["properties"].get("environmentId")
        environment = environment_id and self._store.get(asset_id(environment_id, "environments", self._workspace))
        inference = (environment or {}).get("properties", {}).get("inferenceConfig") or {}
        path = (inference.get("scoringRoute") or {}).get("path")
        resource = self._store.get(self.id(endpoint))
        if path and resource:
            resource["properties"]["scoringUri"] = f"{self._url}/endpoints/{endpoint}/{path.lstrip('/')}"
            self._store.put(resource["id"], resource)

    def get_deployment(self, endpoint: str, name: str) -> dict[str, Any] | None:
        """A deployment as it is now."""
        resource = self._store.get(self.id(endpoint, name))
        return self.shown(resource) if resource else None

    def deployments(self, endpoint: str) -> list[dict[str, Any]]:
        """The deployments of an endpoint as they are stored."""
        return list(self._store.list(f"{self.id(endpoint)}/deployments"))

    def begin_delete_deployment(self, endpoint: str, name: str) -> bool:
        """Begin to delete a deployment; False when there is none.

        Raises:
            InvalidEndpointError: it takes traffic.
        """
        with self._lock:
            resource = self._store.get(self.id(endpoint, name))
            parent = self._store.get(self.id(endpoint))
            if resource is None or parent is None:
                return False
            percent = parent["properties"]["traffic"].get(name, 0)
            if percent:
                raise InvalidEndpointError(
                    f"Deployment {name} has traffic {percent}%. Set its traffic to 0 before deleting it."
                )
            resource["properties"]["provisioningState"] = "Deleting"
            self._store.put(resource["id"], resource)
            return True

    def finish_delete_deployment(self, endpoint: str, name: str) -> None:
        """End the server and forget the deployment."""
        resource = self._store.get(self.id(endpoint, name))
        local_name = resource and resource["properties"].get("localName")
        if local_name:
            self._serving.stop(endpoint, local_name)
        self._store.delete(self.id(endpoint, name))

    def log(self, endpoint: str, name: str, kind: str, lines: int) -> str:
        """The log of one of a deployment's containers."""
        resource = self._store.get(self.id(endpoint, name))
        local_name = resource and resource["properties"].get("localName")
        started = "Succeeded" if local_name else "Pending"
        head = ["Instance status:", "SystemSetup: Succeeded", f"UserContainerImagePull: {started}"]
        head += [f"ModelDownload: {started}", f"UserContainerStart: {started}", "", "Container logs:"]
        if kind.lower() == "storageinitializer":
            return "\n".join([*head, "Model downloaded."])
        text = self._serving.log(endpoint, local_name, lines) if local_name else ""
        return "\n".join([*head, text])

    def restart_servers(self) -> None:
        """Have the servers of all deployments run that were ready, after the emulator was away."""
        for resource in self._store.walk(f"{self._workspace}/onlineEndpoints"):
            properties = resource["properties"]
            if "/deployments/" in resource["id"] and properties["provisioningState"] == "Succeeded":
                endpoint = resource["id"].partition("/onlineEndpoints/")[2].partition("/")[0]
                self._start(endpoint, resource)

    def shown(self, resource: Mapping[str, Any]) -> dict[str, Any]:
        """The resource as the service shows it."""
        properties = {key: value for key, value in resource["properties"].items() if key not in _HIDDEN}
        return {**resource, "properties": properties}

    def id(self, endpoint: str, deployment: str = "") -> str:
        """The resource id of an endpoint, or of one of its deployments."""
        base = f"{self._workspace}/onlineEndpoints/{endpoint}"
        return f"{base}/deployments/{deployment}" if deployment else base

    def _keys_id(self, name: str) -> str:
        # Outside the workspace, so that no listing of resources shows it.
        return f"/keys{self.id(name)}"


def _key() -> str:
    return secrets.token_urlsafe(24)
