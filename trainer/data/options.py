"""The options of a data preparation, checked before anything is opened."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import dataclass, fields
from typing import Any

from trainer.data.shapes import SHAPES
from trainer.errors import TrainerError

MAX_WEIGHT = 100.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceOptions:
    """One source of conversations.

    Args:
        source: a file, a folder of data files, a pattern, or a hub dataset, `owner/name` or `owner/name#split`.
        weight: how often each of its conversations is trained on, on average: 0.3 leaves 70 % of them out.
        shape: one of SHAPES or auto; None: that of all sources.
        config, split, revision: for hub datasets only; None: those of all sources.
    """

    source: str
    weight: float = 1.0
    shape: str | None = None
    config: str | None = None
    split: str | None = None
    revision: str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.source, str) or not self.source:
            raise _mistake(f"The data source {self.source!r} is not a name.", "Name a file or a dataset.")
        for name in ("shape", "config", "split", "revision"):
            if not isinstance(getattr(self, name), str | None):
                raise _mistake(f"{name} of the data source {self.source} is {getattr(self, name)!r}, not text.")
        if self.shape is not None:
            _require_shape(self.shape)
        is_number = isinstance(self.weight, int | float) and not isinstance(self.weight, bool)
        if not is_number or not (math.isfinite(self.weight) and 0 < self.weight <= MAX_WEIGHT):
            raise _mistake(
                f"The weight of the data source {self.source} is {self.weight}, not from above 0 to {MAX_WEIGHT:g}.",
                "For example 0.3, or 2.",
            )

    @classmethod
    def parse(cls, text: str) -> SourceOptions:
        """Read a name, or a JSON object of this class's fields."""
        try:
            values: Any = json.loads(text) if text.startswith("{") else None
        except ValueError:
            values = None  # a file may be called {chats}.jsonl
        if not isinstance(values, dict):
            return cls(source=text)
        known = [field.name for field in fields(cls)]
        for key in values:
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1)
                hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(known)}."
                raise _mistake(f"The data source {text} has the unknown key {key!r}.", hint)
        return cls(**{"source": "", **values})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What to prepare and how.

    Args:
        sources: where the conversations come from, in this order.
        config_name, split, revision: for hub datasets that do not say their own.
        streaming: hub datasets are read over the network while they are prepared, and not kept on the disk.
        shape: one of SHAPES, or auto.
        group_by: a column; conversations with the same value stay on the same side.
        test_share: share of the conversations (or groups) kept for testing, between 0 and 1.
        test_source: what is the test side, instead of a share.
        max_rejected_share: more rejected records than this share stop the preparation.
        deduplicate: of conversations with the same content only the first of a side stays.
        max_examples: most conversations of both sides, those with the smallest seeded hash; a test source stays whole.
        tokenizer, max_length: for token statistics; max_length in tokens.
    Raises:
        TrainerError: a value out of its range.
    """

    sources: tuple[SourceOptions, ...]
    output_dir: str
    config_name: str | None = None
    split: str | None = None
    revision: str | None = None
    streaming: bool = False
    shape: str = "auto"
    group_by: str | None = None
    test_share: float = 0.2
    test_source: SourceOptions | None = None
    seed: int = 0
    max_rejected_share: float = 0.0
    deduplicate: bool = False
    max_examples: int | None = None
    tokenizer: str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if not self.sources:
            raise _mistake("No data source is named.", "Name a file or a dataset.")
        _require_shape(self.shape)
        if not 0 < self.test_share < 1:
            raise _mistake(f"test_share is {self.test_share:g}, not between 0 and 1.", "For example 0.2.")
        if not 0 <= self.max_rejected_share < 1:
            raise _mistake(f"max_rejected_share is {self.max_rejected_share:g}, not from 0 to below 1.", "Default: 0.")
        if self.max_length is not None and self.max_length < 1:
            raise _mistake(f"max_length is {self.max_length}, not a positive number of tokens.", "For example 2048.")
        if self.max_examples is not None and self.max_examples < 2:
            raise _mistake(f"max_examples is {self.max_examples}, too few for two sides.", "For example 10000.")

    @property
    def label(self) -> str:
        """The sources in a message to a person."""
        first, *others = self.sources
        return f"{first.source} and {len(others)} more" if others else first.source


def _require_shape(shape: str) -> None:
    if shape != "auto" and shape not in SHAPES:
        near = difflib.get_close_matches(shape, SHAPES, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"Known: auto, {', '.join(SHAPES)}."
        raise _mistake(f"The shape {shape!r} is not known.", hint)


def _mistake(message: str, fix: str = "") -> TrainerError:
    return TrainerError(message, fix, kind="configuration")
