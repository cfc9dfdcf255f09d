"""The HTTP of the front: health, models and chat completions, in the form clients of the OpenAI API expect."""

from __future__ import annotations

import asyncio
import json
import logging
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from .chat_request import ChatRequest, parse_request
from .engine_client import EngineClient, Piece
from .errors import EngineError, EngineTimeoutError, RequestRefusedError, error_body
from .model_folder import ModelFolder

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 4 * 1024 * 1024
PROBE_SECONDS = 5.0
# An answer this recent is as good as a probe.
FRESH_SECONDS = 5.0


class Front:
    """The state of one served model: whether it is ready, and how many requests it works on."""

    def __init__(self, *, folder: ModelFolder, client: EngineClient, model_name: str, max_requests: int) -> None:
        self.folder = folder
        self.client = client
        self.model_name = model_name
        self.max_requests = max_requests
        self.num_requests = 0
        self.ready = False
        self.reason = "the model is loading"
        self._answered_at = 0.0
        self._created = int(time.time())

    def build_app(self) -> Starlette:
        """Return the ASGI application."""
        routes = [
            Route("/live", self.live),
            Route("/health", self.health),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.model),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
        ]
        handlers = {RequestRefusedError: _refused, HTTPException: _http_error, EngineError: _engine_error}
        return Starlette(routes=routes, exception_handlers=handlers)

    async def probe(self) -> None:
        """Make the model answer one token.

        Raises:
            EngineError: it did not, or it saw other tokens than those it was given.
        """
        prompt = self.folder.render([{"role": "user", "content": "hi"}])
        request = ChatRequest(
            prompt=prompt,
            prompt_ids=self.folder.encode(prompt),
            max_tokens=1,
            temperature=0,
            top_p=1,
            seed=None,
            stop=(),
            stream=False,
        )
        async for piece in self.client.answer(request):
            self._answered_at = time.monotonic()
            num_read = (piece.usage or {}).get("prompt_tokens", request.num_prompt_tokens)
            if num_read != request.num_prompt_tokens:
                raise EngineError(f"the engine read {num_read} tokens of a prompt of {request.num_prompt_tokens}")

    async def live(self, request: Request) -> Response:
        """Say that the process answers; it ends by itself when the engine dies."""
        return JSONResponse({"status": "ok"})

    async def health(self, request: Request) -> Response:
        """Say whether the model answers; a busy model is not asked again on top of its work."""
        if not self.ready:
            return JSONResponse({"status": "loading", "reason": self.reason}, 503)
        fresh = time.monotonic() - self._answered_at < FRESH_SECONDS
        if not fresh and not self.num_requests:
            try:
                await asyncio.wait_for(self.probe(), PROBE_SECONDS)
            except (EngineError, TimeoutError) as error:
                reason = str(error) or f"the model did not answer a probe in {PROBE_SECONDS:g} seconds"
                return JSONResponse({"status": "failing", "reason": reason}, 503)
        return JSONResponse({"status": "ok", "model": self.model_name, "requests": self.num_requests})

    async def models(self, request: Request) -> Response:
        """List the one model."""
        return JSONResponse({"object": "list", "data": [self._describe()]})

    async def model(self, request: Request) -> Response:
        """Describe the one model."""
        if (name := request.path_params["name"]) != self.model_name:
            raise RequestRefusedError(404, f"the model {name[:200]!r} does not exist here", code="model_not_found")
        return JSONResponse(self._describe())

    def _describe(self) -> dict:
        return {
            "id": self.model_name, "object": "model", "created": self._created, "owned_by": "phiflow",
            "max_model_len": self.folder.context_tokens,
        }  # fmt: skip

    async def chat(self, request: Request) -> Response:
        """Answer a conversation, at once or piece by piece."""
        started = time.monotonic()
        raw = await _read_body(request)
        if not self.ready:
            return _error(503, f"the model is not ready: {self.reason}", retry_after=2)
        if self.num_requests >= self.max_requests:
            return _error(429, f"{self.num_requests} requests are being answered; try again soon", retry_after=1)
        self.num_requests += 1
        handed_over = False
        try:
            chat = await asyncio.to_thread(parse_request, raw, model_name=self.model_name, folder=self.folder)
            pieces = self._answer(chat, started)
            # The first piece decides the status: after it, an error can only be told inside the stream.
            try:
                first = await _while_connected(request, anext(pieces))
            except BaseException:  # a cancelled request too must free the engine
                await pieces.aclose()
                raise
            if chat.stream:
                handed_over = True
                stream = self._stream(first, pieces)
                return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
            return await _while_connected(request, self._complete(first, pieces))
        except ClientDisconnect:
            return Response(status_code=499)
        finally:
            if not handed_over:
                self.num_requests -= 1

    async def _answer(self, chat: ChatRequest, started: float) -> AsyncIterator[Piece]:
        status, num_tokens = "cut off", 0
        try:
            async with aclosing(self.client.answer(chat)) as pieces:
                async for piece in pieces:
                    self._answered_at = time.monotonic()
                    num_tokens = (piece.usage or {}).get("completion_tokens", num_tokens)
                    status = piece.finish_reason or status
                    yield piece
        except EngineError as error:
            status = f"failed ({error})"
            raise
        finally:
            seconds = time.monotonic() - started
            logger.info(
                "Chat completion %s seconds=%.3f prompt_tokens=%d answer_tokens=%d stream=%s",
                status, seconds, chat.num_prompt_tokens, num_tokens, chat.stream,
            )  # fmt: skip

    async def _complete(self, first: Piece, rest: AsyncIterator[Piece]) -> Response:
        texts, last = [first.text], first
        async with aclosing(rest):  # type: ignore[type-var]
            async for piece in rest:
                texts.append(piece.text)
                last = _join_ends(last, piece)
        message = {"role": "assistant", "content": "".join(texts)}
        body = self._body("chat.completion", {"message": message, "finish_reason": last.finish_reason})
        return JSONResponse(body | ({"usage": last.usage} if last.usage else {}))

    async def _stream(self, first: Piece, rest: AsyncIterator[Piece]) -> AsyncIterator[bytes]:
        identity = f"chatcmpl-{uuid.uuid4().hex}"
        try:
            async with aclosing(rest):  # type: ignore[type-var]
                yield _event(self._chunk(identity, {"role": "assistant", "content": first.text}, first))
                async for piece in rest:
                    yield _event(self._chunk(identity, {"content": piece.text} if piece.text else {}, piece))
        except EngineError as error:
            yield _event(error_body(_status_of(error), str(error)))
        finally:
            self.num_requests -= 1
        yield b"data: [DONE]\n\n"

    def _chunk(self, identity: str, delta: dict, piece: Piece) -> dict:
        choice = {"delta": delta, "finish_reason": piece.finish_reason}
        body = self._body("chat.completion.chunk", choice, identity)
        return body | ({"usage": piece.usage} if piece.usage else {})

    def _body(self, kind: str, choice: dict, identity: str | None = None) -> dict:
        return {
            "id": identity or f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()),
            "model": self.model_name, "choices": [{"index": 0, **choice}],
        }  # fmt: skip


def _join_ends(last: Piece, piece: Piece) -> Piece:
    return Piece(finish_reason=piece.finish_reason or last.finish_reason, usage=piece.usage or last.usage)


async def _read_body(request: Request) -> bytes:
    raw = bytearray()
    async for part in request.stream():
        raw += part
        if len(raw) > MAX_BODY_BYTES:
            raise RequestRefusedError(413, f"the body is larger than {MAX_BODY_BYTES} bytes; shorten the messages")
    return bytes(raw)


async def _while_connected(request: Request, work):
    """Await the work; give it up when the client goes away, which also frees the engine."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, watcher = asyncio.ensure_future(work), asyncio.ensure_future(watch())
    try:
        await asyncio.wait({task, watcher}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientDisconnect
        return await task
    finally:
        watcher.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


def _event(body: dict) -> bytes:
    return b"data: " + json.dumps(body, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


def _error(status: int, message: str, *, retry_after: int | None = None) -> JSONResponse:
    headers = {"Retry-After": str(retry_after)} if retry_after else None
    return JSONResponse(error_body(status, message), status, headers=headers)


def _status_of(error: EngineError) -> int:
    return 504 if isinstance(error, EngineTimeoutError) else 502


async def _refused(request: Request, error: RequestRefusedError) -> Response:
    return JSONResponse(error.to_body(), error.status)


async def _engine_error(request: Request, error: EngineError) -> Response:
    return _error(_status_of(error), str(error))


async def _http_error(request: Request, error: HTTPException) -> Response:
    return _error(error.status_code, f"{request.method} {request.url.path[:200]}: {error.detail}")
