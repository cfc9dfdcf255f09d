"""On which side of the split a conversation is, how often and whether at all: decided by nothing but itself.

Each is a seeded hash of the conversation (the side also of its group key), compared with a share. None depends on
other records, so a growing data set never moves a conversation to the other side, and never exchanges a sample.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any

KEY_BYTES = 16


def content_key(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> bytes:
    """16 bytes that name what the model sees of a conversation; the ids of calls and what is learned do not count."""
    turns = [[m["role"], m["content"]] if len(m) == 2 else _extended(m) for m in messages]
    content = json.dumps([*turns, {"tools": tools}] if tools else turns, ensure_ascii=False)
    return hashlib.blake2b(content.encode("utf-8"), digest_size=KEY_BYTES).digest()


def _extended(message: dict[str, Any]) -> list[Any]:
    more = {"name": message["name"]} if "name" in message else {}
    if "tool_calls" in message:
        more["tool_calls"] = [call["function"] for call in message["tool_calls"]]
    return [message["role"], message["content"], *([more] if more else [])]


def group_key(value: Any) -> bytes:
    """16 bytes that name a group; the number 7 and the text "7" are one group, as CSV has only text."""
    text = str(value).encode("utf-8", errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=KEY_BYTES, person=b"group").digest()


def is_test(key: bytes, test_share: float, seed: int) -> bool:
    """Whether the conversation or group with this key is for testing."""
    digest = hashlib.sha256(f"{seed}:".encode() + key).digest()
    return int.from_bytes(digest[:8]) < test_share * 2**64


def num_copies(key: bytes, weight: float, seed: int) -> int:
    """How often a conversation is taken: `weight` times on average, so 0.3 takes three in ten, and 2 each twice.

    A greater weight takes all that a smaller one does.
    """
    whole = int(weight)
    return whole + (_share(b"weight", key, seed) < (weight - whole) * 2**64)


def rank(key: bytes, copy: int, seed: int) -> int:
    """Where a conversation stands among those of which a cap takes the first, below 2**64."""
    return _share(b"rank%d" % copy, key, seed)


def exact_key(messages: list[dict[str, Any]], key: bytes) -> bytes:
    """The content key, told apart by which answers are learned."""
    flags = bytes("train" not in message for message in messages)
    return key if all(flags) else hashlib.blake2b(key + flags, digest_size=KEY_BYTES).digest()


def _share(purpose: bytes, key: bytes, seed: int) -> int:
    return int.from_bytes(hashlib.sha256(b"%d:%s:%s" % (seed, purpose, key)).digest()[:8])


def nearest_working_seed(keys: Iterable[bytes], test_share: float) -> int | None:
    """The first seed below 100 that leaves neither side empty, if any."""
    keys = list(keys)
    for seed in range(100):
        if len({is_test(key, test_share, seed) for key in keys}) == 2:
            return seed
    return None
