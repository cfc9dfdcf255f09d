"""The routes of endpoints and deployments, of what they are asked, and of what was counted."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from tests.azure_emulator.deployments import BusyError, RefusedError, shown
from tests.azure_emulator.endpoint_spec import InvalidEndpointError
from tests.azure_emulator.execution import Execution
from tests.azure_emulator.monitor import BadQueryError
from tests.azure_emulator.web import Answer, Request, ServiceError, not_found, user_error

Register = Callable[[str, str, Callable[[Request], Answer]], None]
_TOKEN_SECONDS = 3600


class EndpointRoutes:
    """Answers requests about endpoints."""

    def __init__(self, execution: Execution) -> None:
        self._it = execution
        self._emulator = execution.emulator
        self._endpoints = execution.endpoints
        self._deployments = execution.deployments

    def register(self, register: Register) -> None:
        """Make the routes known."""
        endpoint, deployment = "W/onlineEndpoints/{name}", "W/onlineEndpoints/{name}/deployments/{deployment}"
        for method, pattern, handler in (
            ("PUT", endpoint, self._put),
            ("PATCH", endpoint, self._patch),
            ("GET", endpoint, self._get),
            ("DELETE", endpoint, self._delete),
            ("GET", "W/onlineEndpoints", self._list),
            ("POST", f"{endpoint}/listKeys", self._keys),
            ("POST", f"{endpoint}/regenerateKeys", self._regenerate),
            ("POST", f"{endpoint}/token", self._token),
            ("PUT", deployment, self._put_deployment),
            ("PATCH", deployment, self._patch_deployment),
            ("GET", deployment, self._get_deployment),
            ("DELETE", deployment, self._delete_deployment),
            ("GET", f"{endpoint}/deployments", self._list_deployments),
            ("POST", f"{deployment}/getLogs", self._logs),
            ("GET", f"{deployment}/skus", self._skus),
            ("GET", f"{endpoint}/providers/Microsoft.Insights/metrics", self._metrics),
            ("*", "/endpoints/{name}/{route:path}", self._score),
        ):
            register(method, pattern, _translated(handler))

    # Endpoints

    def _put(self, request: Request) -> Answer:
        name = request.parameters["name"]
        self._require_free(name)
        operation = self._begin(request, self._endpoints.id(name), "oe")
        where = self._emulator.operations.status_url(operation, request.api_version)
        try:
            new, resource = self._endpoints.put(name, request.json, where)
        except Exception as error:
            self._refuse(operation, error)
            raise
        self._it.begin(operation, name)
        return Answer(201 if new else 200, resource, self._headers(operation, request))

    def _patch(self, request: Request) -> Answer:
        """Change what is descriptive."""
        stored = self._required(request)
        merged = {key: request.json.get(key, stored.get(key)) for key in ("tags", "identity", "location")}
        return self._put(_with_body(request, {**merged, "properties": stored["properties"]}))

    def _get(self, request: Request) -> Answer:
        return Answer(200, self._required(request))

    def _list(self, request: Request) -> Answer:
        return self._emulator.page(request, self._endpoints.list())

    def _delete(self, request: Request) -> Answer:
        name = request.parameters["name"]
        if not self._endpoints.begin_delete(name):
            return Answer(204)
        operation = self._begin(request, self._endpoints.id(name), "oe")
        self._it.begin(operation, name, delete=True)
        return self._deleting(operation, request)

    def _keys(self, request: Request) -> Answer:
        self._required(request)
        return Answer(200, self._endpoints.keys(request.parameters["name"]))

    def _regenerate(self, request: Request) -> Answer:
        self._required(request)
        self._endpoints.regenerate(request.parameters["name"], str(request.json.get("keyType", "Primary")))
        return Answer(200)

    def _token(self, request: Request) -> Answer:
        endpoint = self._required(request)
        if endpoint["properties"]["authMode"] != "AMLToken":
            raise user_error(f"Endpoint {endpoint['name']} does not use tokens.")
        moment = int(time.time())
        body = {
            "accessToken": self._endpoints.keys(endpoint["name"])["primaryKey"],
            "expiryTimeUtc": moment + _TOKEN_SECONDS,
            "refreshAfterTimeUtc": moment + _TOKEN_SECONDS // 2,
            "tokenType": "Bearer",
        }
        return Answer(200, body)

    # Deployments

    def _put_deployment(self, request: Request) -> Answer:
        self._required(request)
        name, deployment = request.parameters["name"], request.parameters["deployment"]
        self._emulator.quota.require_deployment(self._endpoints.id(name, deployment), request.json)
        operation = self._begin(request, self._endpoints.id(name, deployment), "od")
        where = self._emulator.operations.status_url(operation, request.api_version)
        try:
            new, resource = self._deployments.put(name, deployment, request.json, where)
        except Exception as error:
            self._refuse(operation, error)
            raise
        self._it.begin(operation, name, deployment)
        return Answer(201 if new else 200, resource, self._headers(operation, request))

    def _patch_deployment(self, request: Request) -> Answer:
        """Change the number of instances, or what is descriptive."""
        stored = self._required_deployment(request)
        merged = {key: request.json.get(key, stored.get(key)) for key in ("tags", "sku", "location")}
        return self._put_deployment(_with_body(request, {**merged, "properties": stored["properties"]}))

    def _get_deployment(self, request: Request) -> Answer:
        return Answer(200, self._required_deployment(request))

    def _list_deployments(self, request: Request) -> Answer:
        self._required(request)
        found = self._deployments.stored(request.parameters["name"])
        return self._emulator.page(request, [shown(one) for one in found])

    def _delete_deployment(self, request: Request) -> Answer:
        name, deployment = request.parameters["name"], request.parameters["deployment"]
        if not self._deployments.begin_delete(name, deployment):
            return Answer(204)
        operation = self._begin(request, self._endpoints.id(name, deployment), "od")
        self._it.begin(operation, name, deployment, delete=True)
        return self._deleting(operation, request)

    def _logs(self, request: Request) -> Answer:
        self._required_deployment(request)
        kind = str(request.json.get("containerType") or "InferenceServer")
        lines = int(request.json.get("tail") or 50)
        name, deployment = request.parameters["name"], request.parameters["deployment"]
        return Answer(200, {"content": self._deployments.log(name, deployment, kind, lines)})

    def _skus(self, request: Request) -> Answer:
        self._required_deployment(request)
        sku = {"name": "Default", "tier": "Standard"}
        capacity = {"minimum": 1, "maximum": 20, "default": 1, "scaleType": "Manual"}
        kind = "Microsoft.MachineLearning.Services/endpoints/deployments"
        return Answer(200, {"value": [{"resourceType": kind, "sku": sku, "capacity": capacity}]})

    # What is asked, and what was counted

    def _metrics(self, request: Request) -> Answer:
        endpoint = self._required(request)
        location = self._emulator.scope.location
        try:
            return Answer(200, self._it.monitor.read(endpoint["name"], endpoint["id"], location, request.query))
        except BadQueryError as error:
            return Answer(400, {"code": "BadRequest", "message": str(error)})

    def _score(self, request: Request) -> Answer:
        name, route = request.parameters["name"], request.parameters["route"]
        scored = self._it.scoring.answer(request.method, name, route, request.headers, request.body)
        return Answer(scored.status, scored.body, scored.headers)

    # Shared

    def _required(self, request: Request) -> dict[str, Any]:
        endpoint = self._endpoints.get(request.parameters["name"])
        if endpoint is None:
            raise not_found(f"Could not find online endpoint: {request.parameters['name']}.")
        return endpoint

    def _required_deployment(self, request: Request) -> dict[str, Any]:
        name, deployment = request.parameters["name"], request.parameters["deployment"]
        found = self._deployments.get(name, deployment)
        if found is None:
            raise not_found(f"Could not find deployment {deployment} of online endpoint {name}.")
        return found

    def _require_free(self, name: str) -> None:
        """Refuse a new endpoint of which somebody else in the region has the name."""
        taken = name.lower() in self._emulator.settings.all("endpoint-names")
        if taken and self._endpoints.get(name) is None:
            raise user_error(
                f"The specified endpoint name '{name}' is not available. Endpoint names must be unique within the "
                "region. Please choose a different name and try again."
            )

    def _begin(self, request: Request, resource: str, kind: str) -> str:
        return self._emulator.operations.start(request, None, family="mfe", resource=resource, kind=kind)

    def _refuse(self, operation: str, error: Exception) -> None:
        """Nobody is told of an operation whose request was refused."""
        self._emulator.operations.finish(operation, {"code": "UserError", "message": str(error)})

    def _headers(self, operation: str, request: Request) -> dict[str, str]:
        location = f"{self._emulator.url}{request.path}?api-version={request.api_version}"
        return self._emulator.operations.headers(operation, request, location=location)

    def _deleting(self, operation: str, request: Request) -> Answer:
        location = self._emulator.operations.result_url(operation, request.api_version)
        return Answer(202, b"null", self._emulator.operations.headers(operation, request, location=location))


def _translated(handler: Callable[[Request], Answer]) -> Callable[[Request], Answer]:
    """The handler, with refusals in the service's own words."""

    def answer(request: Request) -> Answer:
        try:
            return handler(request)
        except RefusedError as error:
            return Answer(400, {"error": error.error})
        except InvalidEndpointError as error:
            raise user_error(str(error)) from error
        except BusyError as error:
            raise ServiceError(409, "Conflict", str(error)) from error

    return answer


def _with_body(request: Request, body: dict[str, Any]) -> Request:
    return replace(request, body=json.dumps(body).encode())
