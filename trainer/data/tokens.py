"""How long conversations are in tokens, as the model will see them."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError

Messages = list[dict[str, str]]
_GENERATION = re.compile(r"\{%-?\s*(end)?generation\s*-?%\}")


class TokenStatistics:
    """An exact histogram of conversation lengths, bounded by the number of different lengths.

    Args:
        tokenizer: a model or tokenizer folder, or a hub id.
        max_length: where training cuts, tokens; None when unknown.
    """

    def __init__(self, tokenizer: str, max_length: int | None) -> None:
        self._name = tokenizer
        self._max_length = max_length
        self._count = _token_counter(tokenizer)
        self._lengths: Counter[int] = Counter()

    def add(self, messages: Messages) -> None:
        """Count one conversation."""
        self._lengths[self._count(messages)] += 1

    def summary(self) -> dict[str, Any]:
        """Total, mean, percentiles and the share that training cuts, for the manifest."""
        num = self._lengths.total()
        total = sum(length * count for length, count in self._lengths.items())
        limit = self._max_length
        cut = sum(count for length, count in self._lengths.items() if limit and length > limit)
        return {
            "tokenizer": self._name,
            "max_length": limit,
            "total": total,
            "mean": round(total / num, 2) if num else 0.0,
            "p50": self._percentile(50),
            "p95": self._percentile(95),
            "max": max(self._lengths, default=0),
            "truncated_share": round(cut / num, 6) if num and limit else 0.0,
        }

    def _percentile(self, percent: int) -> int:
        wanted, seen = self._lengths.total() * percent / 100, 0
        for length in sorted(self._lengths):
            seen += self._lengths[length]
            if seen >= wanted:
                return length
        return 0


def _token_counter(name: str) -> Callable[[Messages], int]:
    folder = Path(name)
    try:
        if (folder / "tokenizer.json").is_file():
            return _fast_counter(folder)
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # a broken file raises whatever the tokenizer library has
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise TrainerError(
            f"The tokenizer {name} could not be loaded: {reason}.",
            "Give a folder with tokenizer.json or a hub id.",
            kind="configuration",
        ) from None

    def count(messages: Messages) -> int:
        has_template = bool(tokenizer.chat_template)
        text = tokenizer.apply_chat_template(messages, tokenize=False) if has_template else _plain(messages)
        return len(tokenizer(text, add_special_tokens=False)["input_ids"])

    return count


def _fast_counter(folder: Path) -> Callable[[Messages], int]:
    """Count without importing transformers, which takes seconds."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    render = _template(folder) or _plain
    return lambda messages: len(tokenizer.encode(render(messages), add_special_tokens=False).ids)


def _template(folder: Path) -> Callable[[Messages], str] | None:
    """The folder's chat template as a function, rendered as transformers renders it."""
    config_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    source = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    if not isinstance(source, str):
        return None
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.globals["raise_exception"] = _refuse
    template = environment.from_string(_GENERATION.sub("", source))
    tokens = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}

    def render(messages: Messages) -> str:
        return template.render(messages=messages, add_generation_prompt=False, **tokens)

    return render


def _token_text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _refuse(message: str) -> str:
    raise TrainerError(f"The chat template refused a conversation: {message}.", "Change the data or the base model.")


def _plain(messages: Messages) -> str:
    """A stand-in for models without a chat template."""
    return "".join(f"{message['role']}\n{message['content']}\n" for message in messages)
