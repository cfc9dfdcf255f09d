"""Control tokens that stand in a text: they stay text, in training as in serving.

The server's `ModelFolder.neutralise` is the same rule and cannot import this module; a test holds them equal.
"""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What people and models write on purpose: <think>, </tool_call>. Such tokens steer no turn.
_MARKUP = re.compile(r"</?\w+>")


class ControlTokens:
    """The tokens that steer a model: special ones, and added ones that its chat template writes."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        template = tokenizer.chat_template or ""
        self.texts = {
            token.content
            for token in tokenizer.added_tokens_decoder.values()
            if len(token.content.strip()) > 1 and (token.special or _is_written(token.content, template))
        } | {token for token in tokenizer.all_special_tokens if len(token.strip()) > 1}

    @cached_property
    def pattern(self) -> re.Pattern[str]:
        """Matches any of them, the longest first."""
        return re.compile("|".join(map(re.escape, sorted(self.texts, key=len, reverse=True))) or r"(?!)")

    @cached_property
    def _first_characters(self) -> set[str]:
        return {text[0] for text in self.texts}

    def neutralise(self, value: Any) -> Any:
        """The text, or JSON value, with a space inside every control token: <|end|> becomes < |end|>."""
        if isinstance(value, str):
            if not any(character in value for character in self._first_characters):
                return value  # far faster than the expression
            while self.pattern.search(value):
                value = self.pattern.sub(lambda match: f"{match[0][0]} {match[0][1:]}", value)
            return value
        if isinstance(value, dict):
            return {self.neutralise(key): self.neutralise(item) for key, item in value.items()}
        return [self.neutralise(item) for item in value] if isinstance(value, list | tuple) else value


def _is_written(token: str, template: str) -> bool:
    return token in template and not _MARKUP.fullmatch(token)
