"""When a training has diverged: a loss or a gradient norm that is no number, or a loss that has run away."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import Any

from trainer.errors import TrainerError

_STEPS = 20
_FACTOR, _NATS = 2.0, 1.0
_LINES_SHOWN = 20


class Divergence:
    """Judges each step's loss and gradient norm.

    The loss has run away when the mean of the last 20 steps is above twice the mean of the first 20, plus one nat.
    """

    def __init__(self) -> None:
        self._first: list[float] = []
        self._last: deque[float] = deque(maxlen=_STEPS)

    def problem(self, loss: float, grad_norm: float) -> str | None:
        """Take in one step and say what is wrong with it, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        if not math.isfinite(grad_norm):
            return f"the gradient norm is {grad_norm} (loss {loss:.4g})"
        if len(self._first) < _STEPS:
            self._first.append(loss)
            return None
        self._last.append(loss)
        begun, now = sum(self._first) / _STEPS, sum(self._last) / _STEPS
        if len(self._last) == _STEPS and now > _FACTOR * begun + _NATS:
            return f"the loss has run away: {now:.4g} on average of the last {_STEPS} steps, {begun:.4g} of the first"
        return None

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run judges by."""
        return {"first": self._first, "last": list(self._last)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from state_dict()."""
        self._first, self._last = list(state["first"]), deque(state["last"], maxlen=_STEPS)


def diverged_error(problem: str, step: int, learning_rate: float, batch: str) -> TrainerError:
    """What a diverged training ends with.

    Args:
        batch: names what was learned from in that step; empty where it is not known.
    """
    return TrainerError(
        f"The training diverged: {problem} at step {step} (learning_rate {learning_rate:g}){batch and f', {batch}'}.",
        f"Lower train.learning_rate, raise train.warmup_ratio{', or look at those lines' if batch else ''}.",
        "diverged",
    )


def lines_named(file: str, lines: Sequence[int]) -> str:
    """Name lines of a file for a person: the first of many."""
    distinct = sorted(set(lines))
    if not distinct:
        return ""
    more = len(distinct) - _LINES_SHOWN
    shown = ", ".join(str(line) for line in distinct[:_LINES_SHOWN])
    return f"{file} line{'s' * (len(distinct) > 1)} {shown}{f' and {more} more' if more > 0 else ''}"
