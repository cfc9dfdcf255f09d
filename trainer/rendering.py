"""Renders conversations with a chat template exactly as transformers, and so the engines that serve, do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from trainer.chats import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    *,
    tools: Sequence[dict[str, Any]] = (),
    prompt: bool = False,
    template: str | None = None,
) -> str:
    """The conversation as text; prompt adds what generation begins behind.

    Raises:
        Exception: whatever the template raises.
    """
    options: dict[str, Any] = {"chat_template": template} if template else {}
    text: str = tokenizer.apply_chat_template(
        list(messages), tools=list(tools) or None, tokenize=False, add_generation_prompt=prompt, **options
    )
    return text


def try_render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], **options: Any) -> str:
    """As render, but empty where the template refuses the conversation."""
    try:
        return render(tokenizer, messages, **options)
    except Exception:  # a template raises what its author chose
        return ""
