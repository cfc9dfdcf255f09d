"""What the program of `train.command` prints and reports while it runs, passed on to whoever watches this trainer."""

from __future__ import annotations

import json
import math
import os
import sys
import threading
from pathlib import Path
from typing import IO, Any

from trainer.job import Reporting

_LAST_BYTES = 2_000
_EVENTS = ("stage", "progress", "checkpoint", "resumed", "evaluation", "sample")
_NUMBERS = ("step", "num_steps", "epoch", "loss", "learning_rate", "tokens_per_second", "seconds_left", "grad_norm")


class Output(threading.Thread):
    """Shows what the program prints, as it prints it, and remembers how it ended."""

    def __init__(self, stream: IO[bytes] | None) -> None:
        super().__init__(daemon=True)
        self._stream, self._end = stream, b""
        self.start()

    def run(self) -> None:
        """Pass on until the program and all that it started have ended."""
        assert self._stream is not None
        while chunk := os.read(self._stream.fileno(), 65_536):
            sys.stdout.write(chunk.decode("utf-8", "replace"))
            sys.stdout.flush()
            self._end = (self._end + chunk)[-_LAST_BYTES:]

    @property
    def last_line(self) -> str:
        """The last thing it said, as one line."""
        lines = self._end.decode("utf-8", "replace").replace("\r", "\n").split("\n")
        return next((" ".join(line.split()) for line in reversed(lines) if line.strip()), "no output")[-300:]


class Events:
    """Reads the program's events as it appends them, and passes on those that this trainer's readers know."""

    def __init__(self, path: Path) -> None:
        self._path, self._read = path, 0
        self.losses: list[list[float]] = []

    def relay(self, reporting: Reporting) -> None:
        """Pass on every whole line that is new; what is no event is left out."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._read)
                text = file.read()
        except OSError:
            return
        whole = text[: text.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.splitlines():
            try:
                event = json.loads(line)
            except ValueError:
                continue
            if isinstance(event, dict) and event.get("event") in _EVENTS:
                fields = {key: value for key, value in event.items() if key not in ("event", "time")}
                self._pass_on(event["event"], fields, reporting)

    def _pass_on(self, name: str, fields: dict[str, Any], reporting: Reporting) -> None:
        if name == "stage":
            reporting.events.stage(str(fields.get("name", "")))
            return
        if name == "progress":
            fields = {key: value for key, value in fields.items() if key in _NUMBERS and is_number(value)}
            self._plot(fields, reporting)
        reporting.events.emit(name, **fields)

    def _plot(self, progress: dict[str, float], reporting: Reporting) -> None:
        step = int(progress.get("step", 0))
        if "loss" in progress:
            self.losses.append([step, float(progress["loss"])])
        for key in ("loss", "learning_rate", "grad_norm"):
            if key in progress:
                reporting.tracker.point(f"train_{key}", float(progress[key]), step)


def is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
