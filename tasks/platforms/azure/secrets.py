"""Texts without what opens doors: keys, tokens, signatures. The service and HTTP libraries quote them in messages."""

from __future__ import annotations

import re

_LONGEST_MESSAGE = 600
_QUERIES = 2  # of the patterns, those that take what need not be a secret
_SECRETS = (
    # The query of a URL, since a signature is there; then what is quoted without its URL.
    (re.compile(r"(https?://[^\s\"'<>?]+)\?[^\s\"'<>)]*", re.IGNORECASE), r"\1"),
    (re.compile(r"(with url: [^\s?]+)\?[^\s)]*", re.IGNORECASE), r"\1"),
    (re.compile(r"\b(sig|sv|se|skoid|AccountKey|SharedAccessSignature)=[^\s&;\"']+", re.IGNORECASE), r"\1=..."),
    (re.compile(r"\bBearer\s+[\w.~+/=-]+", re.IGNORECASE), "Bearer ..."),
    (re.compile(r"\beyJ[\w-]{10,}\.[\w.-]+"), "..."),
    (re.compile(r"\bhf_[A-Za-z0-9]{16,}"), "..."),
)


def clean(text: str) -> str:
    """A text without keys, tokens, and the queries of URLs; on one line, and not endless."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST_MESSAGE else f"{text[: _LONGEST_MESSAGE - 3]}..."


def clean_lines(text: str) -> list[str]:
    """The lines of a log or a message, each cleaned."""
    return [clean(line) for line in text.splitlines()]


def holds_secret(text: str) -> bool:
    """Whether a text quotes a key, a token or a signature."""
    return any(pattern.sub(replacement, text) != text for pattern, replacement in _SECRETS[_QUERIES:])
