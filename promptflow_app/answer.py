"""Prompt flow node: ask the endpoint; the answer is still to be read from what is returned."""

from __future__ import annotations

from chat import Endpoint, Reply, ask
from promptflow.core import tool


@tool
def answer(question: str, conversation: dict) -> Reply:
    """Return the endpoint's reply, its first bytes received."""
    return ask(Endpoint.from_environment(), question, conversation["turns"])
