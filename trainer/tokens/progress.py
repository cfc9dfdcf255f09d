"""How far the tokenising is, said every few seconds."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

OnProgress = Callable[..., Any]
_SECONDS = 5.0


class Progress:
    """Counts lines; logs a line, and tells on_progress the same, every five seconds.

    Args:
        on_progress: called with file, num_lines, of_lines, lines_per_second and seconds_left.
    """

    def __init__(self, file_name: str, of_lines: int, on_progress: OnProgress | None) -> None:
        self._file_name = file_name
        self._of_lines = of_lines
        self._on_progress = on_progress
        self._begun = self._said = time.monotonic()
        self.num_lines = 0

    @property
    def seconds(self) -> float:
        """Since it began."""
        return time.monotonic() - self._begun

    def add(self, num_lines: int) -> None:
        """So many lines more are done."""
        self.num_lines += num_lines
        if time.monotonic() - self._said < _SECONDS:
            return
        self._said = time.monotonic()
        rate = self.num_lines / self.seconds
        left = (self._of_lines - self.num_lines) / rate if rate else 0.0
        log.info(
            "Tokenised num_lines=%d of=%d lines_per_second=%.0f seconds_left=%.0f",
            self.num_lines,
            self._of_lines,
            rate,
            left,
        )
        if self._on_progress:
            self._on_progress(
                file=self._file_name,
                num_lines=self.num_lines,
                of_lines=self._of_lines,
                lines_per_second=round(rate, 1),
                seconds_left=round(left, 1),
            )
