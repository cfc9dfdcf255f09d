"""How fast a training goes: rates over its last steps, and the time left with evaluations and checkpoints in it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import NamedTuple

_WINDOW_SECONDS = 30.0


class _Step(NamedTuple):
    seconds: float
    num_tokens: int
    num_supervised_tokens: int


@dataclass(slots=True)
class Pace:
    """A clock that knows what the time went into: every call says what ended now, and begins the next thing.

    Args:
        begun: seconds, of any clock.
    """

    begun: float
    _mark: float = 0.0
    _steps: deque[_Step] = field(default_factory=deque)
    _num_steps: int = 0
    _others: dict[str, list[float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._mark = self.begun

    def step(self, now: float, num_tokens: int, num_supervised_tokens: int) -> None:
        """A step has ended."""
        self._num_steps += 1
        if self._num_steps == 2:  # the first one compiled, allocated and read for the first time
            self._steps.clear()
        self._steps.append(_Step(now - self._mark, num_tokens, num_supervised_tokens))
        self._mark = now
        while len(self._steps) > 1 and sum(step.seconds for step in self._steps) > _WINDOW_SECONDS:
            self._steps.popleft()

    def other(self, now: float, what: str) -> None:
        """Something has ended that is no step: an evaluation, a checkpoint, samples."""
        self._others.setdefault(what, []).append(now - self._mark)
        self._mark = now

    def spent(self, what: str) -> float:
        """Seconds that went into something that is no step, up to now."""
        return sum(self._others.get(what, ()))

    def mean_seconds(self, what: str, default: float = 0.0) -> float:
        """Seconds that one of them takes."""
        taken = self._others.get(what)
        return sum(taken) / len(taken) if taken else default

    @property
    def step_seconds(self) -> float:
        """Seconds a recent step took."""
        return sum(step.seconds for step in self._steps) / len(self._steps) if self._steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Tokens a second in the recent steps, those that are not learned from included."""
        return self._rate(sum(step.num_tokens for step in self._steps))

    @property
    def supervised_tokens_per_second(self) -> float:
        """Tokens a second in the recent steps that were learned from."""
        return self._rate(sum(step.num_supervised_tokens for step in self._steps))

    def _rate(self, total: int) -> float:
        seconds = sum(step.seconds for step in self._steps)
        return total / seconds if seconds > 0 else 0.0
