"""The terminal: log lines, and below them one line that changes in place."""

from __future__ import annotations

import logging
import shutil
import sys
from typing import TextIO

_CLEAR = "\r\x1b[K"


class Console(logging.StreamHandler[TextIO]):
    """Writes log lines; on a terminal it also keeps a status line, which no log line gets mixed up with."""

    def __init__(self, stream: TextIO | None = None) -> None:
        super().__init__(stream or sys.stdout)
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
        self.is_terminal = self.stream.isatty()
        self._status = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line above the status line."""
        status = self._status
        self.status("")
        super().emit(record)
        self.status(status)

    def status(self, text: str) -> None:
        """Put another text into the status line; nothing takes it away. Without a terminal there is none."""
        if self.is_terminal and text != self._status:
            self._status = text
            self.stream.write(_CLEAR + text[: shutil.get_terminal_size().columns - 1])
            self.stream.flush()


def find_console() -> Console | None:
    """The console that the trainer's log goes to, if it goes to one."""
    return next((each for each in logging.getLogger("trainer").handlers if isinstance(each, Console)), None)
