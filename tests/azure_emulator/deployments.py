"""Deployments of online endpoints: made, changed and deleted for real, with the states that the service shows."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from tests.azure_emulator import endpoint_spec, scripts
from tests.azure_emulator.endpoint_spec import InvalidEndpointError, asset_id
from tests.azure_emulator.job_spec import JobSpecs, seconds_of
from tests.azure_emulator.node_records import now
from tests.azure_emulator.scenarios import Scenarios
from tests.azure_emulator.serving import Serving, ServingError
from tests.azure_emulator.uris import NoSuchPlaceError, Uris

if TYPE_CHECKING:
    from tests.azure_emulator.store import Store

_log = logging.getLogger(__name__)
BUSY = ("Creating", "Updating", "Deleting")
_READY_SECONDS = 900.0
_POLL_SECONDS = 0.1
# Told to nobody: the server that answers, the one that is being started, and what a scenario wants.
_SERVERS = ("localName", "startingName")
HIDDEN = (*_SERVERS, "script", "wantedTraffic")


class BusyError(Exception):
    """The thing is being changed, or used, in a way that excludes the request."""


class RefusedError(Exception):
    """A request that the service refuses with a body of its own."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["message"])
        self.error = error


class Deployments:
    """The deployments of one workspace's endpoints.

    Args:
        store: the emulator's resources.
        scenarios: what is to befall deployments that are being made.
        phase_seconds: how long the service takes for what is over at once here.
    """

    def __init__(
        self,
        workspace: str,
        store: Store,
        specs: JobSpecs,
        serving: Serving,
        scenarios: Scenarios,
        *,
        url: str,
        phase_seconds: float,
    ) -> None:
        self._workspace = workspace
        self._store = store
        self._specs = specs
        self._serving = serving
        self._scenarios = scenarios
        self._url = url
        self._phase_seconds = phase_seconds
        self._uris = Uris(workspace, store.get)

    def put(self, endpoint: str, name: str, body: Mapping[str, Any], operation: str) -> tuple[bool, dict[str, Any]]:
        """Make or change a deployment; says whether it is new.

        Raises:
            InvalidEndpointError, BusyError, RefusedError: the service refuses it.
        """
        with self._store.lock:
            before = self._store.get(self.id(endpoint, name))
            endpoint_spec.require_deployment(name, body, self._store.get, self._workspace, before)
            if before and before["properties"]["provisioningState"] in BUSY:
                raise BusyError(f"Deployment {name} is {before['properties']['provisioningState'].lower()} already.")
            size = str(body["properties"]["instanceType"])
            script = scripts.take_deployment(self._scenarios, endpoint, name, size)
            if script.get("refused"):
                raise RefusedError(scripts.quota_refused(size, self._workspace.split("/")[2]))
            resource = endpoint_spec.deployment_resource(self.id(endpoint, name), body, operation, before, now())
            known = before["properties"] if before else {}
            resource["properties"] |= {key: known[key] for key in _SERVERS if key in known} | {"script": script}
            self._store.put(resource["id"], resource)
        return before is None, shown(resource)

    def provision(self, endpoint: str, name: str, closed: threading.Event, fault: Any = None) -> None:
        """Take a deployment to Succeeded, or raise what keeps it from there.

        Args:
            closed: set when the emulator ends, which then leaves the deployment as it is.
            fault: the error that a scenario wants.
        Raises:
            ServingError: with the service's code and words; the deployment is then Failed.
        """
        resource = self._store.get(self.id(endpoint, name))
        if resource is None:
            return
        script = resource["properties"].get("script", {})

        def wanted() -> bool:
            return not closed.is_set() and self._is_wanted(resource["id"])

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
            self._serving.await_ready(endpoint, local_name, script.get("ready_seconds", _READY_SECONDS), wanted)
        except Exception as error:
            if closed.is_set():
                return
            self.fail(resource["id"])
            if isinstance(error, ServingError):
                raise
            _log.exception("Could not provision deployment=%s", name)
            raise ServingError("InternalServerError", f"{type(error).__name__}: {error}") from error
        if wanted():
            self._succeed(endpoint, resource["id"], local_name)

    def _start(self, endpoint: str, resource: Mapping[str, Any]) -> str:
        """Have a model server for the deployment, beside the one that answers now."""
        properties = resource["properties"]
        settings, environment_id = properties["requestSettings"], properties.get("environmentId")
        model_id = asset_id(properties["model"], "models", self._workspace)
        try:
            place = self._uris.place(model_id)
        except NoSuchPlaceError as error:
            raise ServingError("BadArgument", str(error)) from error
        model, _, version = model_id.rpartition("/models/")[2].partition("/versions/")
        if environment_id:
            image = self._specs.image(asset_id(environment_id, "environments", self._workspace))
        else:
            image = self._specs.no_code_image()
        wanted = {
            "name": properties["environmentVariables"].get("PHIFLOW_MODEL_NAME") or model,
            "version": version,
            "place": place,
            "settings": {
                "server": "openai" if environment_id else "mlflow",
                "max_concurrent_requests": settings["maxConcurrentRequestsPerInstance"],
                "request_timeout_seconds": seconds_of(settings["requestTimeout"], 5),
                "environment_variables": properties["environmentVariables"],
            },
        }
        local_name = self._serving.start(endpoint, resource["name"], image, wanted)
        if not self._change(resource["id"], startingName=local_name):
            self._serving.stop(endpoint, local_name)  # deleted meanwhile
        return local_name

    def _succeed(self, endpoint: str, resource_id: str, local_name: str) -> None:
        """From now on the new server answers, and the one before is ended."""
        before = (self._store.get(resource_id) or {"properties": {}})["properties"].get("localName")
        self._change(resource_id, provisioningState="Succeeded", localName=local_name)
        self._tell_route(endpoint, resource_id)
        if before and before != local_name:
            self._serving.stop(endpoint, before)

    def fail(self, resource_id: str) -> None:
        """What was being done has failed."""
        if self._is_wanted(resource_id):
            self._change(resource_id, provisioningState="Failed")

    def _change(self, resource_id: str, **properties: Any) -> bool:
        with self._store.lock:
            current = self._store.get(resource_id)
            if current:
                current["properties"] |= properties
                self._store.put(resource_id, current)
            return current is not None

    def _is_wanted(self, resource_id: str) -> bool:
        current = self._store.get(resource_id)
        return bool(current) and current["properties"]["provisioningState"] in ("Creating", "Updating")

    def _tell_route(self, endpoint: str, resource_id: str) -> None:
        """An environment with a scoring route of its own gives the endpoint's address its path."""
        deployment = self._store.get(resource_id) or {"properties": {}}
        environment_id = deployment["properties"].get("environmentId")
        environment = environment_id and self._store.get(asset_id(environment_id, "environments", self._workspace))
        inference = (environment or {}).get("properties", {}).get("inferenceConfig") or {}
        path = (inference.get("scoringRoute") or {}).get("path")
        if path:
            self._change(self.id(endpoint), scoringUri=f"{self._url}/endpoints/{endpoint}/{path.lstrip('/')}")

    def get(self, endpoint: str, name: str) -> dict[str, Any] | None:
        """A deployment as it is now."""
        resource = self._store.get(self.id(endpoint, name))
        return shown(resource) if resource else None

    def stored(self, endpoint: str) -> list[dict[str, Any]]:
        """The deployments of an endpoint as they are stored."""
        return self._store.list(f"{self.id(endpoint)}/deployments")

    def begin_delete(self, endpoint: str, name: str) -> bool:
        """Begin to delete a deployment; False when there is none.

        Raises:
            InvalidEndpointError: it takes traffic.
        """
        with self._store.lock:
            resource, parent = self._store.get(self.id(endpoint, name)), self._store.get(self.id(endpoint))
            if resource is None or parent is None:
                return False
            percent = parent["properties"]["traffic"].get(name, 0)
            if percent:
                raise InvalidEndpointError(
                    f"Deployment {name} has traffic {percent}%. Set its traffic to 0 before deleting it."
                )
            return self._change(resource["id"], provisioningState="Deleting")

    def finish_delete(self, endpoint: str, name: str) -> None:
        """Forget the deployment, and end its servers."""
        resource = self._store.get(self.id(endpoint, name))
        self._store.delete(self.id(endpoint, name))
        properties = resource["properties"] if resource else {}
        for local_name in {properties[key] for key in _SERVERS if key in properties}:
            self._serving.stop(endpoint, local_name)

    def log(self, endpoint: str, name: str, kind: str, lines: int) -> str:
        """The log of one of a deployment's containers."""
        properties = (self._store.get(self.id(endpoint, name)) or {"properties": {}})["properties"]
        local_name = properties.get("startingName") or properties.get("localName")
        started = "Succeeded" if local_name else "Pending"
        head = ["Instance status:", "SystemSetup: Succeeded", f"UserContainerImagePull: {started}"]
        head += [f"ModelDownload: {started}", f"UserContainerStart: {started}", "", "Container logs:"]
        if kind.lower() == "storageinitializer":
            return "\n".join([*head, "Model downloaded."])
        return "\n".join([*head, self._serving.log(endpoint, local_name, lines) if local_name else ""])

    def restart_servers(self) -> None:
        """Have the servers run of all deployments that were ready, after the emulator was away."""
        for resource in self._store.walk(f"{self._workspace}/onlineEndpoints"):
            if "/deployments/" not in resource["id"] or not resource["properties"].get("localName"):
                continue
            endpoint = resource["id"].partition("/onlineEndpoints/")[2].partition("/")[0]
            try:
                local_name = self._start(endpoint, resource)
                self._change(resource["id"], localName=local_name)
            except Exception:  # the others are served all the same
                _log.exception("Could not serve again id=%s", resource["id"])

    def id(self, endpoint: str, deployment: str = "") -> str:
        """The resource id of an endpoint, or of one of its deployments."""
        base = f"{self._workspace}/onlineEndpoints/{endpoint}"
        return f"{base}/deployments/{deployment}" if deployment else base


def shown(resource: Mapping[str, Any]) -> dict[str, Any]:
    """A resource as the service shows it."""
    properties = {key: value for key, value in resource["properties"].items() if key not in HIDDEN}
    return {**resource, "properties": properties}
