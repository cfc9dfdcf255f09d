"""What the two kinds of model server are asked and how they answer, the same on every platform.

`openai` is our front's chat completions. `mlflow` is the contract of an MLflow model that is deployed without code: a
table of chats, and parameters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked: a conversation, how long the answer may be, and what the assistant may call."""

    messages: Messages
    max_tokens: int
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Contract:
    """One kind of server.

    Args:
        path: below the endpoint's address.
        request: the body that asks for a greedy answer.
        text: the answer's text in a body that came back.
    """

    path: str
    request: Callable[[Question], dict[str, Any]]
    text: Callable[[Any], str]


def of(server: str) -> Contract:
    """The contract of `serving.server`."""
    return _CONTRACTS[server]


def _openai_request(question: Question) -> dict[str, Any]:
    body = {"messages": question.messages, "max_tokens": question.max_tokens, "temperature": 0}
    return body | ({"tools": list(question.tools)} if question.tools else {})


def _mlflow_request(question: Question) -> dict[str, Any]:
    table = {"columns": ["messages"], "index": [0], "data": [[question.messages]]}  # which has no place for tools
    return {"input_data": table, "params": {"max_new_tokens": question.max_tokens, "do_sample": False}}


def _openai_text(body: Any) -> str:
    return str(body["choices"][0]["message"]["content"] or "")


def _mlflow_text(body: Any) -> str:
    return _openai_text(body[0])


_CONTRACTS = {
    "openai": Contract("/v1/chat/completions", _openai_request, _openai_text),
    "mlflow": Contract("/score", _mlflow_request, _mlflow_text),
}
