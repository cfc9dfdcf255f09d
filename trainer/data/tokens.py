"""How long conversations are in tokens, as the model will see them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError

Messages = list[dict[str, Any]]
Render = Callable[[Messages, list[dict[str, Any]]], str]
# So many conversations are encoded together, on all cores.
_BATCH = 256


class TokenStatistics:
    """An exact histogram of conversation lengths, bounded by the number of different lengths.

    Args:
        tokenizer: a model or tokenizer folder, or a hub id.
        max_length: where training cuts, tokens; None when unknown.
    """

    def __init__(self, tokenizer: str, max_length: int | None) -> None:
        self._name = tokenizer
        self._max_length = max_length
        self._render, self._encode = _counter(tokenizer)
        self._lengths: Counter[int] = Counter()
        self._texts: list[str] = []

    def add(self, messages: Messages, tools: list[dict[str, Any]] | None = None) -> None:
        """Count one conversation."""
        self._texts.append(self._text(messages, tools or []))
        if len(self._texts) == _BATCH:
            self._flush()

    def _text(self, messages: Messages, tools: list[dict[str, Any]]) -> str:
        """The conversation as the template writes it, or nearly so where it refuses: training extends templates."""
        try:
            return self._render(messages, tools)
        except Exception:  # a template raises whatever its author had it raise
            return _plain(messages, tools)

    def _flush(self) -> None:
        self._lengths.update(self._encode(self._texts))
        self._texts = []

    def summary(self) -> dict[str, Any]:
        """Total, mean, percentiles and the share that training cuts, for the manifest."""
        self._flush()
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


def _counter(name: str) -> tuple[Render, Callable[[list[str]], list[int]]]:
    """What writes a conversation as text, and what counts the tokens of texts."""
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

    def render(messages: Messages, tools: list[dict[str, Any]]) -> str:
        return str(tokenizer.apply_chat_template(messages, tools=tools or None, tokenize=False))

    def lengths(texts: list[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]] if texts else []

    fast = _lengths(_without_limits(tokenizer.backend_tokenizer.to_str())) if tokenizer.is_fast else lengths
    return render if tokenizer.chat_template else _plain, fast


def _fast_counter(folder: Path) -> tuple[Render, Callable[[list[str]], list[int]]]:
    """Count without importing transformers, which takes seconds."""
    return _template(folder) or _plain, _lengths(
        _without_limits((folder / "tokenizer.json").read_text(encoding="utf-8"))
    )


def _without_limits(backend: str) -> str:
    return json.dumps(json.loads(backend) | {"truncation": None, "padding": None}, ensure_ascii=False)


def _lengths(backend: str) -> Callable[[list[str]], list[int]]:
    """What counts the tokens of texts by the text of a tokenizer.json."""
    import numpy as np

    from trainer.tokens.encoders import CheckedEncoder

    encode = CheckedEncoder(backend)
    return lambda texts: np.diff(encode(texts)[1]).tolist()


def _template(folder: Path) -> Render | None:
    """The folder's chat template as a function, rendered as transformers renders it."""
    config_file, template_file = folder / "tokenizer_config.json", folder / "chat_template.jinja"
    config = json.loads(config_file.read_text(encoding="utf-8")) if config_file.is_file() else {}
    source = template_file.read_text(encoding="utf-8") if template_file.is_file() else config.get("chat_template")
    if not isinstance(source, str):
        return None
    from trainer.tokens.light_tokenizer import compiled_template

    template = compiled_template(source)
    tokens = {name: _token_text(config.get(name)) for name in ("bos_token", "eos_token", "pad_token", "unk_token")}

    def render(messages: Messages, tools: list[dict[str, Any]]) -> str:
        return template(messages=messages, tools=tools or None, add_generation_prompt=False, **tokens)

    return render


def _token_text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token or "")


def _json(value: Any, indent: int | None = None, **_: Any) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _plain(messages: Messages, tools: list[dict[str, Any]]) -> str:
    """A stand-in where there is no chat template, or one that knows no tools."""
    turns = [f"{m['role']}\n{m['content']}{_json(m['tool_calls']) if 'tool_calls' in m else ''}\n" for m in messages]
    return "".join([_json(tools) if tools else "", *turns])
