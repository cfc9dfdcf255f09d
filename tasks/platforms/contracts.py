"""What the two kinds of model server are asked and how they answer, the same on every platform.

`openai` is our front's chat completions. `mlflow` is the contract of an MLflow model that is deployed without code: a
table of chats, and parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Contract:
    """One kind of server.

    Args:
        path: below the endpoint's address.
        request: the body that asks for a greedy answer of at most so many tokens.
        text: the answer's text in a body that came back.
    """

    path: str
    request: Callable[[Messages, int], dict[str, Any]]
    text: Callable[[Any], str]


def of(server: str) -> Contract:
    """The contract of `serving.server`."""
    return _CONTRACTS[server]


def _openai_request(messages: Messages, max_tokens: int) -> dict[str, Any]:
    return {"messages": messages, "max_tokens": max_tokens, "temperature": 0}


def _mlflow_request(messages: Messages, max_tokens: int) -> dict[str, Any]:
    table = {"columns": ["messages"], "index": [0], "data": [[messages]]}
    return {"input_data": table, "params": {"max_new_tokens": max_tokens, "do_sample": False}}


def _openai_text(body: Any) -> str:
    return str(body["choices"][0]["message"]["content"] or "")


def _mlflow_text(body: Any) -> str:
    return _openai_text(body[0])


_CONTRACTS = {
    "openai": Contract("/v1/chat/completions", _openai_request, _openai_text),
    "mlflow": Contract("/score", _mlflow_request, _mlflow_text),
}
