"""What an endpoint is asked through the gateway: chat completions, and its counters."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

from tasks.platforms import contracts
from tasks.platforms.errors import PermissionDeniedError, TransientPlatformError
from tasks.platforms.local.endpoints import Endpoints
from tasks.platforms.local.services import Services
from tasks.platforms.local.state import Home
from tasks.platforms.refs import Answer, DeploymentMetrics


class Scoring:
    """The endpoints of one state folder, as their callers see them."""

    def __init__(self, home: Home, services: Services, endpoints: Endpoints) -> None:
        self._home = home
        self._services = services
        self._endpoints = endpoints

    def invoke(
        self,
        endpoint: str,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        deployment: str = "",
        max_tokens: int = 128,
        timeout_seconds: float = 60,
    ) -> Answer:
        """One greedy chat completion through the gateway."""
        import requests

        headers = {"Authorization": f"Bearer {self._home.endpoint_key(endpoint)}"}
        if deployment:
            headers["azureml-model-deployment"] = deployment
        contract = contracts.of(self._server(endpoint, deployment))
        started = time.monotonic()
        while True:
            url = f"{self._services.gateway()}/{endpoint}{contract.path}"
            body = contract.request(contracts.Question(messages, max_tokens, tuple(tools)))
            try:
                response = requests.post(url, json=body, headers=headers, timeout=timeout_seconds)
            except requests.RequestException as error:
                raise TransientPlatformError(
                    f"Endpoint {endpoint} did not answer: {type(error).__name__}.",
                    fix="phiflow status shows what runs.",
                ) from error
            if response.status_code in (401, 403):
                raise PermissionDeniedError(f"Endpoint {endpoint} refused the key.")
            chosen = response.headers.get("azureml-model-deployment", "")
            other = contracts.of(self._server(endpoint, chosen)) if chosen else contract
            if response.status_code != 404 or other == contract:
                break
            # While traffic moves from one kind of server to the other, the gateway may choose either.
            contract = other
            headers["azureml-model-deployment"] = chosen
        if not response.ok:
            raise TransientPlatformError(
                f"Endpoint {endpoint} answered {response.status_code}: {_error_text(response.text)}"
            )
        return Answer(
            text=contract.text(response.json()),
            deployment=response.headers.get("azureml-model-deployment", ""),
            model_version=response.headers.get("x-phiflow-model-version", ""),
            seconds=time.monotonic() - started,
        )

    def server(self, endpoint: str) -> str:
        """What kind of server answers most of the endpoint's traffic: `openai` or `mlflow`."""
        return self._server(endpoint, "")

    def _server(self, endpoint: str, deployment: str) -> str:
        state = self._endpoints.record(endpoint)
        name = deployment or max(state["traffic"], key=state["traffic"].__getitem__, default="")
        return str(state["deployments"].get(name, {}).get("server", "openai"))

    def metrics(self, endpoint: str, window_seconds: int) -> tuple[DeploymentMetrics, ...]:
        """The gateway's own counters."""
        import requests

        headers = {"Authorization": f"Bearer {self._home.endpoint_key(endpoint)}"}
        url = f"{self._services.gateway()}/{endpoint}/metrics"
        try:
            response = requests.get(url, headers=headers, params={"seconds": window_seconds}, timeout=10)
            response.raise_for_status()
        except requests.RequestException as error:
            raise TransientPlatformError(f"The gateway gave no metrics of {endpoint}: {error}") from error
        return tuple(
            DeploymentMetrics(
                deployment=name,
                num_requests=counted["requests"],
                num_errors=counted["errors"],
                p95_seconds=counted["latency_ms"]["p95"] and counted["latency_ms"]["p95"] / 1000,
            )
            for name, counted in response.json()["deployments"].items()
        )


def _error_text(body: str) -> str:
    import json

    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["message"])
    return body[:200]
