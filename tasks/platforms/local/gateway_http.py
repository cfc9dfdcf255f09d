"""How a request and its answer cross the gateway: headers, bodies, and a client that goes away."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import httpx
from starlette.requests import ClientDisconnect, Request

DEPLOYMENT_HEADER = "azureml-model-deployment"
VERSION_HEADER = "x-phiflow-model-version"
_MAX_BODY_BYTES = 16 * 2**20
# What belongs to one connection, and what the gateway sets itself; the key is for the gateway alone.
_OF_A_CONNECTION = {
    *("connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection"),
    *("te", "trailer", "transfer-encoding", "upgrade", "content-length"),
}
_NOT_SENT = {*_OF_A_CONNECTION, "host", "authorization", "expect", DEPLOYMENT_HEADER}
_NOT_RETURNED = {*_OF_A_CONNECTION, "date", "server", DEPLOYMENT_HEADER, VERSION_HEADER}
T = TypeVar("T")


class Refused(Exception):
    """A request that ends in the gateway."""

    def __init__(self, status: int, code: str, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message


def is_stream(answer: httpx.Response) -> bool:
    """Whether the answer comes piece by piece."""
    return answer.headers.get("content-type", "").startswith("text/event-stream")


def sent_headers(request: Request) -> list[tuple[str, str]]:
    """What goes on to a deployment."""
    return [(name, value) for name, value in request.headers.items() if name not in _NOT_SENT]


def returned_headers(answer: httpx.Response, headers: dict[str, str]) -> dict[str, str]:
    """What goes back to the client, with the gateway's own headers."""
    kept = {name: value for name, value in answer.headers.items() if name not in _NOT_RETURNED}
    return {**kept, **headers}


async def read_raw(answer: httpx.Response) -> bytes:
    """Read a body as it was sent: its content encoding is passed on."""
    return b"".join([piece async for piece in answer.aiter_raw()])


async def read_body(request: Request) -> bytes:
    """Read a request's body, up to the limit."""
    pieces, size = [], 0
    try:
        async for piece in request.stream():
            size += len(piece)
            if size > _MAX_BODY_BYTES:
                raise Refused(413, "body_too_large", f"The body is larger than {_MAX_BODY_BYTES} bytes.")
            pieces.append(piece)
    except ClientDisconnect as error:
        raise Refused(400, "body_incomplete", "The client went away while it sent the body.") from error
    return b"".join(pieces)


async def while_connected(request: Request, work: Awaitable[T]) -> T:
    """Await the work and give it up when the client goes away, which frees the model server too."""
    task = asyncio.ensure_future(work)
    watcher = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
