"""Talks to the engine: sends a checked request, yields the answer piece by piece.

The engine is always asked to stream, because closing the stream is the one way to make it stop working on an
answer that nobody waits for any more.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import httpx

from .chat_request import ChatRequest
from .errors import EngineError, EngineTimeoutError
from .model_folder import ModelFolder

CONNECT_SECONDS = 5.0
# Parameters that only mean something when sampling; left in a greedy configuration they draw a warning a request.
SAMPLING_ONLY = ("temperature", "top_p", "top_k", "min_p", "typical_p", "epsilon_cutoff", "eta_cutoff")


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of an answer; the last one says why it ended."""

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, int] | None = None


class EngineClient:
    """Sends requests to the engine at `base_url`."""

    def __init__(self, base_url: str, *, engine: str, folder: ModelFolder, timeout_seconds: float) -> None:
        self._engine = engine
        self._folder = folder
        self._timeout_seconds = timeout_seconds
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=16)
        # The engine is on this machine: a proxy of the environment must not come between.
        self._client = httpx.AsyncClient(base_url=base_url, limits=limits, trust_env=False)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def is_listening(self) -> bool:
        """Return whether the engine answers HTTP at all."""
        try:
            return (await self._client.get("/health", timeout=2.0)).status_code == 200
        except httpx.HTTPError:
            return False

    async def answer(self, request: ChatRequest) -> AsyncIterator[Piece]:
        """Yield the answer's pieces, cut at the request's stop texts.

        Raises:
            EngineTimeoutError: the whole answer took longer than the time allowed.
            EngineError: the engine refused, broke off or is gone.
        """
        held = StopText(request.stop)
        async with aclosing(self._within_time(self._stream(request))) as pieces:
            async for piece in pieces:
                text, stopped = held.feed(piece.text)
                if stopped:
                    yield Piece(text=text, finish_reason="stop", usage=piece.usage)
                    return
                if piece.finish_reason:
                    text += held.rest()
                if text or piece.finish_reason:
                    yield Piece(text=text, finish_reason=piece.finish_reason, usage=piece.usage)

    async def _within_time(self, pieces: AsyncIterator[Piece]) -> AsyncIterator[Piece]:
        deadline = time.monotonic() + self._timeout_seconds
        async with aclosing(pieces):  # type: ignore[type-var]
            while True:
                try:
                    piece = await asyncio.wait_for(anext(pieces), max(0.001, deadline - time.monotonic()))
                except StopAsyncIteration:
                    return
                except TimeoutError as error:
                    raise EngineTimeoutError(
                        f"the model did not finish its answer in {self._timeout_seconds:g} seconds; "
                        "ask for fewer tokens or try again later"
                    ) from error
                yield piece

    async def _stream(self, request: ChatRequest) -> AsyncIterator[Piece]:
        timeout = httpx.Timeout(self._timeout_seconds, connect=CONNECT_SECONDS)
        finished = False
        path, payload = self._payload(request)
        try:
            async with self._client.stream("POST", path, json=payload, timeout=timeout) as response:
                if response.status_code != 200:
                    detail = (await response.aread()).decode("utf-8", "replace")
                    raise EngineError(f"the model's engine answered {response.status_code}: {_one_line(detail)}")
                async for line in response.aiter_lines():
                    if line.startswith("data: ") and line != "data: [DONE]":
                        piece = _read_piece(line[6:])
                        finished = finished or piece.finish_reason is not None
                        yield piece
        except httpx.TimeoutException as error:
            raise EngineTimeoutError(f"the model's engine did not answer: {type(error).__name__}") from error
        except httpx.HTTPError as error:
            raise EngineError(f"the model's engine broke off: {type(error).__name__}") from error
        if not finished:
            raise EngineError("the model's engine ended its answer without saying why")

    def _payload(self, request: ChatRequest) -> tuple[str, dict[str, Any]]:
        """Return where to ask and what: for the continuation of the prompt, which is rendered already.

        So the engine neither renders messages its own way nor takes the answer apart.
        """
        body: dict[str, Any] = {"stream": True}
        if request.seed is not None:
            body["seed"] = request.seed
        if self._engine == "vllm":
            return "/v1/completions", body | {
                "model": "model", "prompt": request.prompt_ids, "max_tokens": request.max_tokens,
                "temperature": request.temperature, "top_p": request.top_p,
                "stream_options": {"include_usage": True},
            }  # fmt: skip
        # `transformers serve` does not turn sampling on for a temperature; a whole configuration does.
        generation = dict(self._folder.generation_defaults)
        generation |= {"max_new_tokens": request.max_tokens, "do_sample": request.temperature > 0}
        generation.pop("max_length", None)
        if request.temperature > 0:
            generation |= {"temperature": request.temperature, "top_p": request.top_p}
        else:
            for name in SAMPLING_ONLY:
                generation.pop(name, None)
        body |= {"model": ".", "generation_config": json.dumps(generation)}
        text = self._folder.unmarked(request.prompt)
        if text is not None:
            return "/v1/completions", body | {"prompt": text}
        # It adds tokens to every text but a conversation's: one whose template prints the prompt.
        message = {"role": "user", "content": request.prompt}
        printed = {"chat_template": "{{ messages[0].content }}"}
        return "/v1/chat/completions", body | {"messages": [message], "chat_template_kwargs": printed}


class StopText:
    """Holds back text that may be the beginning of a stop text."""

    def __init__(self, stops: tuple[str, ...]) -> None:
        self._stops = stops
        self._held = ""

    def feed(self, text: str) -> tuple[str, bool]:
        """Take more text; return what can be shown, and whether a stop text was reached."""
        if not self._stops:
            return text, False
        self._held += text
        found = [self._held.index(stop) for stop in self._stops if stop in self._held]
        if found:
            return self._held[: min(found)], True
        keep = max(
            (n for stop in self._stops for n in range(1, len(stop)) if self._held.endswith(stop[:n])),
            default=0,
        )
        shown, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return shown, False

    def rest(self) -> str:
        """Return what was held back, at the end of the answer."""
        held, self._held = self._held, ""
        return held


def _read_piece(data: str) -> Piece:
    try:
        chunk = json.loads(data)
    except ValueError:
        raise EngineError(f"the model's engine sent a broken piece: {_one_line(data)}") from None
    if "error" in chunk:
        raise EngineError(f"the model's engine failed: {_one_line(str(chunk['error']))}")
    choice = (chunk.get("choices") or [{}])[0]
    text = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
    return Piece(text=text, finish_reason=choice.get("finish_reason"), usage=chunk.get("usage"))


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
