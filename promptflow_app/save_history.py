"""Prompt flow node and the flow's output: pass the answer on piece by piece, then store the turn."""

from __future__ import annotations

from collections.abc import Iterator

from chat import Reply
from history import open_store, save_answer
from promptflow.core import tool


@tool
def save_history(question: str, conversation: dict, reply: Reply) -> Iterator[str]:
    """Yield the answer's pieces; a reader that goes away early still leaves the turn behind."""
    yield from save_answer(open_store(), conversation, question, reply)
