"""What the two kinds of model server are asked, and how their answers are read. Knows no Prompt flow.

`openai`: chat completions, streamed. `mlflow`: an MLflow model that is deployed without code, whose /score takes a
table of chats and answers when it is done.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

import requests


@dataclass(frozen=True, kw_only=True)
class Generation:
    """How to answer; None leaves it to the server."""

    model: str = ""
    max_tokens: int | None = None
    temperature: float | None = None


class Broken(Exception):
    """The answer is not what the contract says; the message says why, if the server did."""


class OpenAi:
    """Chat completions of the OpenAI API, piece by piece."""

    accept = "text/event-stream"

    @staticmethod
    def address(url: str) -> str:
        """Where to ask, below the address that ends in /v1."""
        return f"{url}/chat/completions"

    @staticmethod
    def request(messages: list[dict], generation: Generation) -> dict:
        """The body to send."""
        body: dict = {"messages": messages, "stream": True}
        for name in ("model", "max_tokens", "temperature"):
            if getattr(generation, name) not in (None, ""):
                body[name] = getattr(generation, name)
        return body

    @staticmethod
    def read(response: requests.Response) -> Iterator[str]:
        """Yield the answer's pieces."""
        ended = False
        # Lines are decoded here: without a charset in the header, requests would take them for Latin-1.
        for line in response.iter_lines(chunk_size=None):
            if line == b"data: [DONE]":
                ended = True
            elif line.startswith(b"data: "):
                text, finished = _read_chunk(json.loads(line[6:]))
                ended = ended or finished
                if text:
                    yield text
        if not ended:
            raise Broken


class MlflowModel:
    """The /score of an MLflow chat model; nothing arrives before the whole answer does."""

    accept = "application/json"

    @staticmethod
    def address(url: str) -> str:
        """Where to ask, beside the address that ends in /v1."""
        return f"{url.removesuffix('/v1')}/score"

    @staticmethod
    def request(messages: list[dict], generation: Generation) -> dict:
        """The body to send; one server has one model, so its name is not asked for."""
        params: dict = {"do_sample": bool(generation.temperature)}
        if generation.temperature:
            params["temperature"] = generation.temperature
        if generation.max_tokens:
            params["max_new_tokens"] = generation.max_tokens
        return {"input_data": {"columns": ["messages"], "index": [0], "data": [[messages]]}, "params": params}

    @staticmethod
    def read(response: requests.Response) -> Iterator[str]:
        """Yield the answer."""
        try:
            yield str(json.loads(response.content)[0]["choices"][0]["message"]["content"] or "")
        except (LookupError, TypeError) as error:
            raise Broken from error


CONTRACTS = {"openai": OpenAi, "mlflow": MlflowModel}


def _read_chunk(chunk: dict) -> tuple[str, bool]:
    """Return a chunk's text, and whether it is the last one."""
    if "error" in chunk:
        error = chunk["error"]
        raise Broken(str(error.get("message") if isinstance(error, dict) else error))
    choice = (chunk.get("choices") or [{}])[0]
    return (choice.get("delta") or {}).get("content") or "", bool(choice.get("finish_reason"))
