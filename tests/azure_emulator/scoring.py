"""The scoring host of endpoints: checks the key, routes by traffic, limits, passes answers on and counts them.

Statuses are those that Microsoft documents for managed online endpoints: 401 for a wrong key, 404 when no
deployment takes traffic, 408 after the request time-out, 424 for whatever the model answered that is not a
success, 429 over the limits, 503 while a deployment is not well.
"""

from __future__ import annotations

import hmac
import json
import random
import threading
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import requests

from tests.azure_emulator.job_spec import seconds_of
from tests.azure_emulator.monitor import Monitor, Request
from tests.azure_emulator.serving import Serving

DEPLOYMENT_HEADER = "azureml-model-deployment"
ROUTES = ("score", "v1/chat/completions", "v1/completions", "v1/models", "swagger.json")
_PASSED_ON = ("content-type", "accept", "x-request-id", "x-ms-client-request-id", "user-agent")
_PASSED_BACK = ("content-type", "retry-after", "content-encoding")
_GATEWAY_FAULTS = ("deployment_down", "deployment_broke_off")


@dataclass(slots=True)
class Scored:
    """An answer: its body is bytes, or pieces as they come."""

    status: int
    headers: dict[str, str]
    body: bytes | Iterator[bytes]


class _Limit:
    """How many requests one deployment works on, and how many may wait."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.working = 0
        self.present = 0

    def enter(self, at_once: int, patience: float) -> bool:
        """Get a place among those that are worked on; False when there is none in time."""
        with self.changed:
            if self.present >= 2 * at_once:
                return False
            self.present += 1
            free = self.changed.wait_for(lambda: self.working < at_once, patience)
            self.working += free
            self.present -= not free
            return free

    def leave(self) -> None:
        with self.changed:
            self.working -= 1
            self.present -= 1
            self.changed.notify()


class Scoring:
    """Answers requests to the endpoints of one emulator.

    Args:
        find: gives an endpoint's resource, its deployments' resources by name, and its keys; None when there is none.
        serving: the model servers.
        monitor: counts.
    """

    def __init__(
        self,
        find: Callable[[str], tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, str]] | None],
        serving: Serving,
        monitor: Monitor,
    ) -> None:
        self._find = find
        self._serving = serving
        self._monitor = monitor
        self._limits: dict[tuple[str, str], _Limit] = defaultdict(_Limit)
        self._session = requests.Session()
        self._session.trust_env = False

    def answer(self, method: str, endpoint: str, route: str, headers: Mapping[str, str], body: bytes) -> Scored:
        """Answer one request; header names are in lower case."""
        started = time.monotonic()
        found = self._find(endpoint)
        if found is None:
            return _error(404, "EndpointNotFound", f"There is no endpoint {endpoint}.")
        resource, deployments, keys = found
        if not _is_authorized(resource, keys, headers.get("authorization", "")):
            message = "Access denied due to invalid subscription key or wrong API endpoint."
            return _error(401, "key_auth_access_denied", message)
        name = _choose(resource, deployments, headers.get(DEPLOYMENT_HEADER))
        if name is None:
            return _error(404, "NotFound", "The endpoint does not have any valid deployment with positive weight.")
        if route not in ROUTES:
            return _error(404, "NotFound", f"There is no route /{route}.")
        scored, model_status = self._pass_on(method, endpoint, name, deployments[name], route, headers, body)
        scored.headers |= {DEPLOYMENT_HEADER: name, "x-request-id": str(uuid.uuid4())}

        def count() -> None:
            spent = (time.monotonic() - started) * 1000
            self._monitor.count(Request(endpoint, name, scored.status, model_status, spent, time.time()))

        if isinstance(scored.body, bytes):
            count()
        else:
            scored.body = _then(scored.body, count)
        return scored

    def _pass_on(
        self,
        method: str,
        endpoint: str,
        name: str,
        deployment: Mapping[str, Any],
        route: str,
        headers: Mapping[str, str],
        body: bytes,
    ) -> tuple[Scored, int]:
        properties = deployment["properties"]
        settings = properties["requestSettings"]
        timeout = seconds_of(settings["requestTimeout"], 5)
        at_once = settings["maxConcurrentRequestsPerInstance"] * deployment["sku"]["capacity"]
        limit = self._limits[endpoint, name]
        if not limit.enter(at_once, seconds_of(settings["maxQueueWait"], 0.5)):
            return _error(429, "TooManyRequests", "Too many pending requests for the deployment."), 0
        entered = True
        try:
            url, key = self._serving.address(endpoint)
            sent = {name: value for name, value in headers.items() if name in _PASSED_ON}
            sent |= {"Authorization": f"Bearer {key}", DEPLOYMENT_HEADER: properties["localName"]}
            deadline = time.monotonic() + timeout
            try:
                answer = self._session.request(
                    method, f"{url}/{route}", data=body, headers=sent, timeout=(5, timeout), stream=True
                )
                if _is_stream(answer) and answer.ok:
                    entered = False
                    pieces = _then(_pieces(answer, deadline), limit.leave)
                    return Scored(answer.status_code, _returned(answer), pieces), answer.status_code
                content = b"".join(_pieces(answer, deadline))
            except requests.Timeout:
                return _error(408, "RequestTimeout", f"The model did not answer within {timeout:g} s."), 0
            except requests.ConnectionError:
                self._serving.forget_addresses()
                return _error(503, "ServiceUnavailable", "upstream connect error or disconnect/reset"), 0
            return self._judge(answer, content), answer.status_code
        finally:
            if entered:
                limit.leave()

    @staticmethod
    def _judge(answer: requests.Response, content: bytes) -> Scored:
        """What a client of the service sees of the model's answer."""
        if answer.ok:
            return Scored(answer.status_code, _returned(answer), content)
        code = _error_code(content)
        if code in _GATEWAY_FAULTS:
            return _error(503, "ServiceUnavailable", "no healthy upstream")
        if code == "deployment_timeout":
            return _error(408, "RequestTimeout", "The model did not answer in time.")
        told = {
            "ms-azureml-model-error-statuscode": str(answer.status_code),
            "ms-azureml-model-error-reason": "model_error",
        }
        return Scored(424, {**_returned(answer), **told}, content)


def _is_authorized(resource: Mapping[str, Any], keys: Mapping[str, str], header: str) -> bool:
    scheme, _, given = header.partition(" ")
    if scheme.lower() != "bearer" or not given:
        return False
    if resource["properties"]["authMode"] == "AADToken":
        return given.count(".") == 2
    return any(hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys.values())


def _choose(resource: Mapping[str, Any], deployments: Mapping[str, Any], asked: str | None) -> str | None:
    if asked is not None:
        return asked if asked in deployments else None
    weights = {name: percent for name, percent in resource["properties"]["traffic"].items() if percent}
    weights = {name: percent for name, percent in weights.items() if name in deployments}
    return random.choices(list(weights), list(weights.values()))[0] if weights else None


def _is_stream(answer: requests.Response) -> bool:
    return answer.headers.get("content-type", "").startswith("text/event-stream")


def _pieces(answer: requests.Response, deadline: float) -> Iterator[bytes]:
    """The body as it comes; the request's time covers all of it."""
    with answer:
        for piece in answer.raw.stream(65536, decode_content=False):
            yield piece
            if time.monotonic() > deadline:
                raise requests.Timeout("the request's time is over")


def _then(pieces: Iterator[bytes], done: Callable[[], None]) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        done()


def _returned(answer: requests.Response) -> dict[str, str]:
    return {name.lower(): value for name, value in answer.headers.items() if name.lower() in _PASSED_BACK}


def _error(status: int, code: str, message: str) -> Scored:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    return Scored(status, {"content-type": "application/json"}, body)


def _error_code(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return ""
