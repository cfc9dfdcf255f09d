"""What was found while a JSON value was held against its description: problems, and which keys every object had."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

Direction = Literal["request", "response"]


@dataclass(frozen=True)
class Problem:
    """One disagreement.

    Attributes:
        place: a path such as response.properties.outputs.*.mode.
        rule: required, unknown, type, null, enum, discriminator, read-only, pattern, format, status, query, name,
            operation, extra (sent though never recorded), missing (always recorded).
    """

    place: str
    rule: str
    what: str


@dataclass(frozen=True)
class Shape:
    """An object as it was seen: where, and its keys with those whose value was null.

    Attributes:
        place: as in Problem, with the discriminator's value in brackets, so that unlike things are not compared.
        declared: the keys that the description knows there; None where any key may be.
    """

    place: str
    keys: frozenset[str]
    nulls: frozenset[str]
    declared: frozenset[str] | None


@dataclass
class Reading:
    """Grows while a value is read."""

    direction: Direction
    problems: list[Problem] = field(default_factory=list)
    shapes: list[Shape] = field(default_factory=list)

    def note(self, place: str, rule: str, what: str) -> None:
        """Add a problem."""
        self.problems.append(Problem(place, rule, what))

    def saw(self, place: str, value: dict[str, Any], declared: Iterable[str] | None) -> None:
        """Add an object."""
        nulls = frozenset(key for key in value if value[key] is None)
        known = None if declared is None else frozenset(declared)
        self.shapes.append(Shape(place, frozenset(value), nulls, known))


def shown(value: Any) -> str:
    """A value short enough for a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
