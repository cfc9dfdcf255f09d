"""Which side of the train/test split a conversation is on, decided by nothing but itself.

The side is a seeded hash of the conversation (or of its group key), compared with the test share. It does
not depend on other records, so a growing data set never moves a conversation to the other side.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

_PASS_ROWS = 500_000
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


def nearest_working_seed(keys: Iterable[bytes], test_share: float) -> int | None:
    """The first seed below 100 that leaves neither side empty, if any."""
    keys = list(keys)
    for seed in range(100):
        if len({is_test(key, test_share, seed) for key in keys}) == 2:
            return seed
    return None


def count_duplicates(keys_file: Path) -> int:
    """Count the keys that are repeats of another, in a file of 16-byte keys.

    Keys lie on disk and are counted one range of first bytes at a time, so that memory stays bounded.
    """
    num_keys = keys_file.stat().st_size // KEY_BYTES
    num_passes = min(256, num_keys // _PASS_ROWS + 1)
    num_distinct = 0
    for turn in range(num_passes):
        seen = set()
        with open(keys_file, "rb") as file:
            while block := file.read(KEY_BYTES * 4096):
                for at in range(0, len(block), KEY_BYTES):
                    if block[at] % num_passes == turn:
                        seen.add(block[at : at + KEY_BYTES])
        num_distinct += len(seen)
    return num_keys - num_distinct
