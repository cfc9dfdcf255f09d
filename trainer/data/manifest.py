"""The manifest of a prepared folder: digests, counts, sources, rejected records and token statistics."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.data.output import write_durably
from trainer.data.side import SideTally
from trainer.data.sources import Input
from trainer.data.tokens import TokenStatistics
from trainer.files import sha256_file

_COUNTS = ("train", "test", "rejected", "duplicates", "overlap", "trimmed", "left_out")


@dataclass(slots=True)
class Tally:
    """What has been seen so far, in bounded memory; by the number of their source where it counts."""

    is_deduplicated: bool = False
    counts: Counter[str] = field(default_factory=Counter)
    read: Counter[int] = field(default_factory=Counter)
    unusable: Counter[int] = field(default_factory=Counter)
    with_tools: Counter[int] = field(default_factory=Counter)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)


def finish_manifest(
    folder: Path,
    tally: Tally,
    sides: Mapping[str, SideTally],
    sources: tuple[list[Input], list[Input]],
    tokens: TokenStatistics | None,
) -> dict[str, Any]:
    """Write `manifest.json` beside the two finished files and return it.

    Args:
        sources: those of the data, and those of a fixed test set.
    """
    inputs, tests = sources
    sha256 = {name: sha256_file(folder / f"{name}.jsonl") for name in ("train", "test")}
    tally.counts["trimmed"] = sum(side.num_trimmed for side in sides.values())
    shapes = list(dict.fromkeys(opened.shape for opened in inputs))
    manifest = {
        "train_file": "train.jsonl",
        "test_file": "test.jsonl",
        "sha256": sha256,
        "digest": hashlib.sha256(f"{sha256['train']}\n{sha256['test']}\n".encode()).hexdigest(),
        "counts": {name: tally.counts[name] for name in _COUNTS},
        "is_deduplicated": tally.is_deduplicated,
        "num_messages": sum(side.num_messages for side in sides.values()),
        "shape": shapes[0] if len(shapes) == 1 else "mixed",
        "source": _one(inputs),
        "sources": [_described(opened, number, tally, sides) for number, opened in enumerate([*inputs, *tests])],
        "rejected": tally.rejected,
    }
    if tests:
        manifest["test_source"] = _one(tests)
    if tokens:
        manifest["tokens"] = _count_tokens(folder, tokens)
    write_durably(folder / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")
    return manifest


def _one(opened: list[Input]) -> dict[str, Any]:
    first = {"resolved_revision": None, **opened[0].source.describe()}
    names = f"{first['name']} and {len(opened) - 1} more"
    return first if len(opened) == 1 else {"kind": "several", "name": names, "resolved_revision": None}


def _described(opened: Input, number: int, tally: Tally, sides: Mapping[str, SideTally]) -> dict[str, Any]:
    counts = {
        "read": tally.read[number],
        "rejected": tally.unusable[number],
        "with_tools": tally.with_tools[number],
    }
    return opened.describe() | {"counts": counts | {name: side.by_source[number] for name, side in sides.items()}}


def _count_tokens(folder: Path, tokens: TokenStatistics) -> dict[str, Any]:
    for name in ("train.jsonl", "test.jsonl"):
        with open(folder / name, "rb") as file:
            for line in file:
                record = json.loads(line)
                tokens.add(record["messages"], record.get("tools"))
    return tokens.summary()
