"""Rates and the time left, by a clock of the test's."""

from __future__ import annotations

import io
import logging

import pytest

from trainer.console import Console
from trainer.pace import Pace


def test_rates_are_of_the_last_steps_alone() -> None:
    """The first step, evaluations and what is older than half a minute of steps do not slow the rates."""
    pace = Pace(0.0)
    pace.step(50.0, 1000, 100)  # compiles
    assert pace.tokens_per_second == pytest.approx(20)
    now = 50.0
    for _ in range(20):
        pace.step(now := now + 5.0, 1000, 100)
    pace.other(now := now + 100.0, "evaluation")
    assert pace.tokens_per_second == pytest.approx(200)
    assert pace.supervised_tokens_per_second == pytest.approx(20)
    for _ in range(30):
        pace.step(now := now + 1.0, 1000, 500)
    assert (pace.tokens_per_second, pace.step_seconds) == (pytest.approx(1000), pytest.approx(1.0))
    assert pace.supervised_tokens_per_second == pytest.approx(500)
    assert pace.mean_seconds("evaluation") == pace.spent("evaluation") == 100.0
    assert pace.mean_seconds("checkpoint", default=3.0) == 3.0


def test_nothing_is_known_at_the_beginning() -> None:
    """Before the first step all rates are 0."""
    pace = Pace(7.0)
    assert (pace.tokens_per_second, pace.step_seconds, pace.spent("evaluation")) == (0.0, 0.0, 0)


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


def written(stream: io.StringIO) -> str:
    """What is written to a console with a status line around a log line."""
    console = Console(stream)
    console.setFormatter(logging.Formatter("%(message)s"))
    console.status("step 1")
    console.emit(logging.LogRecord("trainer", logging.INFO, "", 0, "saved", (), None))
    console.status("step 2")
    console.status("")
    return stream.getvalue()


def test_a_log_line_stands_above_the_status_line() -> None:
    """On a terminal the status is taken away for a log line and put back; at the end nothing of it is left."""
    text = written(Terminal())
    lines = [part.rpartition("\r\x1b[K")[2] for part in text.split("\n")]
    assert lines == ["saved", ""]
    assert text.index("step 1") < text.index("saved") < text.rindex("step 1") < text.index("step 2")


def test_without_a_terminal_there_are_log_lines_alone() -> None:
    """What goes into a file has no control characters and no status."""
    assert written(io.StringIO()) == "saved\n"
