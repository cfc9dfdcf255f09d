"""The options of a data preparation, checked before anything is opened."""

from __future__ import annotations

import difflib
from dataclasses import dataclass

from trainer.data.shapes import SHAPES
from trainer.errors import TrainerError


@dataclass(frozen=True, slots=True, kw_only=True)
class DataOptions:
    """What to prepare and how.

    Args:
        source: a local file or a hub dataset, `owner/name` or `owner/name#split`.
        config_name, split, revision: for hub datasets only.
        shape: one of SHAPES, or auto.
        group_by: a column; conversations with the same value stay on the same side.
        test_share: share of the conversations (or groups) kept for testing, between 0 and 1.
        test_source: a file or dataset that is the test side, instead of a share.
        max_rejected_share: more rejected records than this share stop the preparation.
        tokenizer, max_length: for token statistics; max_length in tokens.
    Raises:
        TrainerError: a value out of its range.
    """

    source: str
    output_dir: str
    config_name: str | None = None
    split: str | None = None
    revision: str | None = None
    shape: str = "auto"
    group_by: str | None = None
    test_share: float = 0.2
    test_source: str | None = None
    seed: int = 0
    max_rejected_share: float = 0.0
    tokenizer: str | None = None
    max_length: int | None = None

    def __post_init__(self) -> None:
        if self.shape != "auto" and self.shape not in SHAPES:
            near = difflib.get_close_matches(self.shape, SHAPES, n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: auto, {', '.join(SHAPES)}."
            raise _mistake(f"The shape {self.shape!r} is not known.", hint)
        if not 0 < self.test_share < 1:
            raise _mistake(f"test_share is {self.test_share:g}, not between 0 and 1.", "For example 0.2.")
        if not 0 <= self.max_rejected_share < 1:
            raise _mistake(f"max_rejected_share is {self.max_rejected_share:g}, not from 0 to below 1.", "Default: 0.")
        if self.max_length is not None and self.max_length < 1:
            raise _mistake(f"max_length is {self.max_length}, not a positive number of tokens.", "For example 2048.")


def _mistake(message: str, fix: str) -> TrainerError:
    return TrainerError(message, fix, kind="configuration")
