"""Asking an endpoint over our own HTTP, with its key read when it is needed and kept in memory alone.

The SDK's `invoke` is not used: after it has addressed one deployment, its later calls go there too.
"""

from __future__ import annotations

import json
import random
import time
from typing import TYPE_CHECKING, Any

import requests

from tasks.platforms import contracts
from tasks.platforms.azure.deployments import SERVER, VERSION, Deployments, tags_of
from tasks.platforms.azure.resources import Resource
from tasks.platforms.azure.secrets import clean
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import Failure, NotFoundError, PermissionDeniedError, PhiflowError, TransientPlatformError
from tasks.platforms.refs import Answer

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

DEPLOYMENT_HEADER = "azureml-model-deployment"
_MODEL_ERROR = 424  # whatever the model server answered that is no success


class Scoring:
    """Asks the endpoints of one workspace; what it has read of an endpoint it keeps until that is no longer so."""

    def __init__(self, workspace: Workspace, deployments: Deployments) -> None:
        self._workspace = workspace
        self._deployments = deployments
        self._keys: dict[str, str] = {}
        self._endpoints: dict[str, dict[str, Any]] = {}
        self._tags: dict[tuple[str, str], dict[str, str]] = {}

    def ask(self, endpoint: str, question: contracts.Question, deployment: str, timeout_seconds: float) -> Answer:
        """One greedy answer of the endpoint, or of one deployment of it.

        Raises:
            NotFoundError: there is no such endpoint or deployment, or none that takes traffic.
            TransientPlatformError: it failed, with its class of failure.
        """
        resource = self._endpoint(endpoint)
        if not deployment:
            server, deployment = self._server_of_traffic(endpoint, resource)
        else:
            server = self._tags_of(endpoint, deployment).get(SERVER, "openai")
        contract = contracts.of(server)
        url = base_url(resource) + contract.path
        headers = {DEPLOYMENT_HEADER: deployment} if deployment else {}
        started = time.monotonic()
        response = self._post(endpoint, url, contract.request(question), headers, timeout_seconds)
        seconds = time.monotonic() - started
        answered = response.headers.get(DEPLOYMENT_HEADER, deployment)
        try:
            text = contract.text(response.json())
        except (ValueError, LookupError, TypeError) as error:
            raise TransientPlatformError(
                f"Deployment {answered} on endpoint {endpoint} gave an answer that is none: {clean(response.text)}",
                failure=Failure.SCORING,
            ) from error
        version = self._tags_of(endpoint, answered).get(VERSION, "") if answered else ""
        return Answer(text=text, deployment=answered, model_version=version, seconds=seconds)

    def _post(
        self, endpoint: str, url: str, body: dict[str, Any], headers: dict[str, str], timeout_seconds: float
    ) -> requests.Response:
        """Post with the key; once more with the key of now when the one known is refused."""
        known = endpoint in self._keys

        def post() -> requests.Response:
            sent = {**headers, "Authorization": f"Bearer {self._key(endpoint)}"}
            return self._workspace.send(
                "POST", url, json=body, scope="none", headers=sent, timeout=timeout_seconds, what=f"Endpoint {endpoint}"
            )

        try:
            try:
                return post()
            except PermissionDeniedError:
                self._keys.pop(endpoint, None)
                if not known:
                    raise
                return post()
        except NotFoundError as error:
            self._endpoints.pop(endpoint, None)
            addressed = headers.get(DEPLOYMENT_HEADER)
            what = f"no deployment {addressed} that answers" if addressed else "no deployment with traffic"
            raise NotFoundError(f"Endpoint {endpoint} has {what}.", fix="phiflow status shows what it has.") from error
        except TransientPlatformError as error:
            error.failure = error.failure or Failure.SERVICE
            raise
        except PhiflowError as error:
            raise self._of_the_model(endpoint, error) from error

    def _of_the_model(self, endpoint: str, error: PhiflowError) -> PhiflowError:
        """What the model server answered, which the service wraps."""
        response = getattr(error.__cause__, "response", None)
        if not isinstance(response, requests.Response) or response.status_code != _MODEL_ERROR:
            return error
        status = response.headers.get("ms-azureml-model-error-statuscode", "an error")
        name = response.headers.get(DEPLOYMENT_HEADER, "the model")
        return TransientPlatformError(
            f"Endpoint {endpoint}: {name} answered {status}: {_error_text(response.text)}",
            fix="Look at the deployment's log.",
            failure=Failure.SCORING,
        )

    def server(self, endpoint: str) -> str:
        """The kind of server that gets the endpoint's traffic: `openai` or `mlflow`."""
        return self._server_of_traffic(endpoint, self._endpoint(endpoint))[0]

    def _server_of_traffic(self, endpoint: str, resource: dict[str, Any]) -> tuple[str, str]:
        """The kind of server that gets the traffic; where there are both, the deployment to ask, drawn by traffic."""
        traffic = {name: percent for name, percent in (resource["properties"].get("traffic") or {}).items() if percent}
        servers = {name: self._tags_of(endpoint, name).get(SERVER, "openai") for name in traffic}
        kinds = set(servers.values())
        if len(kinds) > 1:
            drawn = random.choices(list(traffic), list(traffic.values()))[0]
            return servers[drawn], drawn
        return (kinds.pop() if kinds else "openai"), ""

    def _endpoint(self, name: str) -> dict[str, Any]:
        """The endpoint's resource, for its address and its traffic."""
        if name not in self._endpoints:
            found = Resource(self._workspace, f"onlineEndpoints/{name}", f"Endpoint {name}").read()
            if found is None:
                raise NotFoundError(f"There is no endpoint {name}.", fix="phiflow run makes it.")
            if not found["properties"].get("scoringUri"):
                raise TransientPlatformError(f"Endpoint {name} is still being created.", failure=Failure.SERVICE)
            self._endpoints[name] = found
        return self._endpoints[name]

    def forget(self, endpoint: str) -> None:
        """Read the endpoint again the next time: its traffic has changed."""
        self._endpoints.pop(endpoint, None)

    def _tags_of(self, endpoint: str, deployment: str) -> dict[str, str]:
        # A deployment's name is its content's, so its tags never change.
        if (endpoint, deployment) not in self._tags:
            self._tags[endpoint, deployment] = tags_of(self._deployments.read(endpoint, deployment))
        return self._tags[endpoint, deployment]

    def _key(self, endpoint: str) -> str:
        if endpoint not in self._keys:
            with translated(f"The key of endpoint {endpoint}"):
                keys = self._workspace.ml.online_endpoints.get_keys(endpoint)
            key = getattr(keys, "primary_key", "")
            if not key:
                raise PermissionDeniedError(
                    f"Endpoint {endpoint} has no key.", fix="Its authentication must be by key; phiflow makes it so."
                )
            self._keys[endpoint] = str(key)
        return self._keys[endpoint]


def base_url(endpoint: dict[str, Any]) -> str:
    """The address that routes are below; the service shows it with the route of the first deployment."""
    url = str(endpoint["properties"].get("scoringUri") or "").rstrip("/")
    return url.removesuffix("/score").removesuffix("/v1/chat/completions")


def _error_text(body: str) -> str:
    try:
        error = json.loads(body)["error"]
        return clean(str(error["message"] if isinstance(error, dict) else error))
    except (ValueError, LookupError, TypeError):
        return clean(body[:200])
