"""Prompt flow node: find the conversation and what was said before."""

from __future__ import annotations

from history import find_conversation, open_store
from promptflow.core import tool


@tool
def load_history(chat_history: list, conversation_id: str) -> dict:
    """Return the conversation's `id`, its `turns`, and how many of them are `stored`."""
    return find_conversation(open_store(), chat_history, conversation_id)
