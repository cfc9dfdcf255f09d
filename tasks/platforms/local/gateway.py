"""The endpoints' gateway: authenticates, routes by percentage and counts, for a whole state folder.

    python -m tasks.platforms.local.gateway --home H --port P

Routes, each with the endpoint's bearer key except the two health ones:

    /{endpoint}/v1/chat/completions, /{endpoint}/v1/models, /{endpoint}/score     to a deployment
    GET /{endpoint}/metrics[?seconds=60]                                          counts and latencies
    GET /{endpoint}/health, GET /healthz

The header `azureml-model-deployment` addresses one deployment; else the traffic percentages choose. The
answer names the deployment in the same header and its model version in `x-phiflow-model-version`. An endpoint
that does not exist answers 404 with and without a key: names are no secret on this machine.

A request goes to one deployment only. While that one does not accept connections, or says 503 with
Retry-After, as it does while it starts, the same request is offered to it again for some seconds: nothing has
been computed yet, and a restarted model server then costs its callers a wait and not an error.
"""

from __future__ import annotations

import argparse
import asyncio
import hmac
import logging
import math
import random
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tasks.platforms.local.gateway_http import (
    DEPLOYMENT_HEADER,
    VERSION_HEADER,
    Refused,
    is_stream,
    read_body,
    read_raw,
    returned_headers,
    sent_headers,
    while_connected,
)
from tasks.platforms.local.gateway_state import (
    NAME,
    Counters,
    Deployment,
    Endpoint,
    EndpointBook,
    UnreadableEndpointError,
)

_CONNECT_SECONDS = 5.0
_HEALTH_SECONDS = 3.0
_RETRY_PAUSE_SECONDS = 0.25
_log = logging.getLogger("phiflow.gateway")


@dataclass(slots=True)
class _Exchange:
    """One request on its way, for the count and the access log."""

    endpoint: str
    deployment: str
    started: float

    def end(self, counters: Counters, path: str, status: int, failed: bool, note: str = "") -> None:
        milliseconds = (time.monotonic() - self.started) * 1000
        counters.add(self.endpoint, self.deployment, milliseconds, failed)
        _log.info("%s %s %s %.0f ms%s", path, status, self.deployment, milliseconds, note and f" {note}")


def _error(status: int, code: str, message: str) -> JSONResponse:
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else None
    kind = "server_error" if status >= 500 else "invalid_request_error"
    error = {"message": message, "type": kind, "code": code}
    return JSONResponse({"error": error}, status, headers)


class Gateway:
    """The ASGI application over one state folder.

    Args:
        timeout_seconds: the most a request may take, its stream included.
        retry_seconds: how long a request is offered to a deployment that does not take it yet.
    """

    def __init__(self, home: Path, *, timeout_seconds: float = 180.0, retry_seconds: float = 15.0) -> None:
        self._endpoints = EndpointBook(home / "endpoints")
        self._counters = Counters()
        self._timeout_seconds = timeout_seconds
        self._retry_seconds = retry_seconds
        self._client: httpx.AsyncClient

    def app(self) -> Starlette:
        """Return the application."""
        routes = [
            Route("/healthz", self._healthz),
            Route("/{endpoint}/health", self._health),
            Route("/{endpoint}/metrics", self._metrics),
            Route("/{endpoint}/v1/models", self._forward),
            Route("/{endpoint}/v1/chat/completions", self._forward, methods=["POST"]),
            Route("/{endpoint}/score", self._forward, methods=["POST"]),
        ]
        handlers: dict[Any, Any] = {Refused: self._refused, HTTPException: self._no_route}
        return Starlette(routes=routes, lifespan=self._lifespan, exception_handlers=handlers)

    @asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        # No connection is kept: a server that closes an idle one in the moment it is used again would cost a
        # request. Proxies from the environment are not for loopback.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        timeout = httpx.Timeout(self._timeout_seconds, connect=_CONNECT_SECONDS)
        async with httpx.AsyncClient(limits=limits, timeout=timeout, trust_env=False) as self._client:
            yield

    async def _refused(self, request: Request, error: Refused) -> Response:
        _log.info("%s %s refused: %s", request.scope["path"], error.status, error.message)
        return _error(error.status, error.code, error.message)

    async def _no_route(self, request: Request, error: HTTPException) -> Response:
        return _error(error.status_code, "no_route", f"{request.method} {request.scope['path']}: {error.detail}")

    # Finding out what is asked for

    def _endpoint(self, request: Request) -> Endpoint:
        name = request.path_params["endpoint"]
        try:
            endpoint = self._endpoints.find(name) if NAME.fullmatch(name) else None
        except UnreadableEndpointError as error:
            message = f"The state of endpoint '{name}' is not valid; the gateway's log says why."
            raise Refused(503, "endpoint_unreadable", message) from error
        if endpoint is None:
            raise Refused(404, "endpoint_not_found", f"No endpoint is named '{name[:128]}'.")
        return endpoint

    def _authenticated(self, request: Request) -> Endpoint:
        endpoint = self._endpoint(request)
        scheme, _, key = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(key.strip().encode(), endpoint.key.encode()):
            message = f"Endpoint '{endpoint.name}' needs its key in the header 'Authorization: Bearer KEY'."
            raise Refused(401, "wrong_key", message)
        return endpoint

    @staticmethod
    def _choose(request: Request, endpoint: Endpoint) -> tuple[str, Deployment]:
        name = request.headers.get(DEPLOYMENT_HEADER)
        if name is None:
            weights = {name: percent for name, percent in endpoint.traffic.items() if percent}
            if not weights:
                raise Refused(503, "no_traffic", f"No deployment of endpoint '{endpoint.name}' takes traffic.")
            (name,) = random.choices(list(weights), list(weights.values()))
        if name not in endpoint.deployments:
            known = ", ".join(endpoint.deployments) or "none"
            message = f"Endpoint '{endpoint.name}' has no deployment '{name[:128]}'; it has: {known}."
            raise Refused(404, "deployment_not_found", message)
        return name, endpoint.deployments[name]

    # Routes

    async def _healthz(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "endpoints": self._endpoints.names()})

    async def _health(self, request: Request) -> Response:
        """Ask every deployment; the endpoint is well when all that take traffic are."""
        endpoint = self._endpoint(request)
        answers = await asyncio.gather(*(self._is_healthy(d.url) for d in endpoint.deployments.values()))
        healthy = dict(zip(endpoint.deployments, answers, strict=True))
        taking = [name for name, percent in endpoint.traffic.items() if percent]
        well = bool(taking) and all(healthy[name] for name in taking)
        status = "ok" if well else "failing" if taking else "no traffic"
        body = {"status": status, "traffic": endpoint.traffic, "healthy": healthy}
        return JSONResponse(body, 200 if well else 503)

    async def _is_healthy(self, url: str) -> bool:
        try:
            return (await self._client.get(f"{url}/health", timeout=_HEALTH_SECONDS)).is_success
        except httpx.HTTPError:
            return False

    async def _metrics(self, request: Request) -> Response:
        endpoint = self._authenticated(request)
        window = request.query_params.get("seconds")
        try:
            seconds = None if window is None else float(window)
        except ValueError:
            seconds = math.nan
        if seconds is not None and not 0 < seconds < math.inf:
            raise Refused(400, "bad_window", f"seconds={window!r:.50} is not a positive number.")
        counted = {name: self._counters.read(endpoint.name, name, seconds) for name in endpoint.deployments}
        return JSONResponse({"deployments": counted})

    async def _forward(self, request: Request) -> Response:
        """Pass a request to one deployment and its answer back."""
        endpoint = self._authenticated(request)
        name, deployment = self._choose(request, endpoint)
        body = await read_body(request)
        path = request.scope["path"]
        exchange = _Exchange(endpoint.name, name, time.monotonic())
        headers = {DEPLOYMENT_HEADER: name, VERSION_HEADER: deployment.model_version}
        upstream: httpx.Response | None = None
        try:
            async with asyncio.timeout(self._timeout_seconds):
                upstream = await while_connected(request, self._send(request, deployment.url, body))
                if is_stream(upstream):
                    stream = self._stream(upstream, exchange, path)
                    return StreamingResponse(stream, upstream.status_code, returned_headers(upstream, headers))
                content = await while_connected(request, read_raw(upstream))
        except (httpx.HTTPError, TimeoutError) as error:
            status, code, message = self._failure(name, error)
            exchange.end(self._counters, path, status, True, type(error).__name__)
            answer = _error(status, code, message)
            answer.headers.update(headers)
            return answer
        except ClientDisconnect:
            exchange.end(self._counters, path, 499, False, "the client went away")
            return Response(status_code=499)
        finally:
            if upstream and not is_stream(upstream):
                await upstream.aclose()
        exchange.end(self._counters, path, upstream.status_code, upstream.status_code >= 500)
        return Response(content, upstream.status_code, returned_headers(upstream, headers))

    async def _send(self, request: Request, url: str, body: bytes) -> httpx.Response:
        """Send a request until the deployment takes it, or the time for that is over."""
        target = url + "/" + request.scope["path"].split("/", 2)[2]
        query = request.scope["query_string"].decode("latin-1")
        headers = sent_headers(request)
        deadline = time.monotonic() + self._retry_seconds
        while True:
            outgoing = self._client.build_request(
                request.method, f"{target}?{query}" if query else target, content=body, headers=headers
            )
            try:
                answer = await self._client.send(outgoing, stream=True)
            except (httpx.ConnectError, httpx.ConnectTimeout):
                if time.monotonic() > deadline:
                    raise
            else:
                starting = answer.status_code == 503 and "retry-after" in answer.headers
                if not starting or time.monotonic() > deadline:
                    return answer
                await answer.aclose()
            await asyncio.sleep(_RETRY_PAUSE_SECONDS)

    async def _stream(self, upstream: httpx.Response, exchange: _Exchange, path: str) -> AsyncIterator[bytes]:
        """Pass an event stream on piece by piece; a broken one ends in an error event and not in [DONE]."""
        note, failed = "", upstream.status_code >= 500
        remaining = self._timeout_seconds - (time.monotonic() - exchange.started)
        try:
            async with asyncio.timeout(remaining):
                async for piece in upstream.aiter_raw():
                    yield piece
        except (httpx.HTTPError, TimeoutError) as error:
            failed, note = True, type(error).__name__
            status, code, message = self._failure(exchange.deployment, error)
            yield b"\n\ndata: " + _error(status, code, message).body + b"\n\n"
        except (GeneratorExit, asyncio.CancelledError):
            note = "the client went away"
            raise
        finally:
            exchange.end(self._counters, path, upstream.status_code, failed, note)
            await upstream.aclose()

    def _failure(self, deployment: str, error: Exception) -> tuple[int, str, str]:
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return 502, "deployment_down", f"Deployment '{deployment}' does not accept connections."
        if isinstance(error, (TimeoutError, httpx.TimeoutException)):
            message = f"Deployment '{deployment}' did not finish within {self._timeout_seconds:g} s."
            return 504, "deployment_timeout", message
        return 502, "deployment_broke_off", f"Deployment '{deployment}' broke the answer off."


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until asked to stop."""
    parser = argparse.ArgumentParser(prog="gateway", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--home", type=Path, required=True, help="state folder")
    parser.add_argument("--port", type=int, required=True, help="loopback port to listen on")
    parser.add_argument("--timeout-seconds", type=float, default=180.0, help="the most a request may take")
    parser.add_argument("--retry-seconds", type=float, default=15.0, help="patience with a starting deployment")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s", stream=sys.stdout)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    # asyncio sends small answers at once only on sockets that name their protocol; else each waits 40 ms.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", options.port))
    except OSError as error:
        print(f"error: The gateway cannot listen on port {options.port}: {error.strerror}.", file=sys.stderr)
        return 2
    gateway = Gateway(options.home, timeout_seconds=options.timeout_seconds, retry_seconds=options.retry_seconds)
    # Clients keep connections; closing an idle one too early would meet their next request.
    config = uvicorn.Config(
        gateway.app(),
        access_log=False,
        log_config=None,
        lifespan="on",
        timeout_keep_alive=300,
        timeout_graceful_shutdown=5,
    )
    uvicorn.Server(config).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())
