"""A range of what is expected, and how numbers are shown to people."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Range:
    """From the least to the most that is expected."""

    low: float
    high: float

    def __add__(self, other: Range) -> Range:
        return Range(low=self.low + other.low, high=self.high + other.high)

    def times(self, low: float, high: float | None = None) -> Range:
        """Scaled by a factor, or by one that is itself a range."""
        return Range(low=self.low * low, high=self.high * (low if high is None else high))


NOTHING = Range(low=0, high=0)


def exactly(value: float) -> Range:
    """A range of one value."""
    return Range(low=value, high=value)


def dollars(amount: Range | float) -> str:
    """Money with cents, or without from a hundred on."""
    if isinstance(amount, Range):
        return _joined(amount, _money, " dollars")
    return f"{_money(amount)} dollars"


def gigabytes(size: Range | float) -> str:
    """Bytes in units of 10^9."""
    if isinstance(size, Range):
        return _joined(size, _giga, " GB")
    return f"{_giga(size)} GB"


def seconds_text(seconds: Range | float) -> str:
    """A length of time in the unit that fits the longer end."""
    longest = seconds.high if isinstance(seconds, Range) else seconds
    divisor, unit = (1, " s") if longest < 120 else (60, " min") if longest < 7200 else (3600, " h")
    digits = 0 if divisor == 1 and longest >= 10 else 1 if longest / divisor < 10 else 0

    def shown(value: float) -> str:
        return f"{value / divisor:.{digits}f}"

    return _joined(seconds, shown, unit) if isinstance(seconds, Range) else f"{shown(seconds)}{unit}"


def count_text(number: Range | float) -> str:
    """A number with three digits that say something: 950, 12.3 thousand, 3.82 million."""
    if isinstance(number, Range):
        return _joined(number, count_text, "")
    for size, name in ((1e15, " quadrillion"), (1e12, " trillion"), (1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:,.0f}"


def _joined(amount: Range, shown: object, unit: str) -> str:
    assert callable(shown)
    low, high = shown(amount.low), shown(amount.high)
    return f"{low}{unit}" if low == high else f"{low} to {high}{unit}"


def _money(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}"


def _giga(value: float) -> str:
    giga = value / 1e9
    return f"{giga:.0f}" if giga >= 100 else f"{giga:.1f}" if giga >= 1 else f"{giga:.3f}"
