"""A polite end: SIGTERM and Ctrl-C become a checkpoint during training and a clear exit at any time."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from trainer.errors import TrainerError


class Interruption:
    """Remembers that the run was asked to end; while deferred, the training ends itself after its step."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._deferred = False

    def listen(self) -> None:
        """Take over SIGTERM and SIGINT."""
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal only sets `requested`; afterwards it is raised."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        if self.requested:
            raise self.error()

    def error(self) -> TrainerError:
        """What the run ends with."""
        return TrainerError(
            f"The training was stopped by {self.requested}.",
            "Run the same command again; it goes on from the last checkpoint.",
            "preempted",
        )

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        again = self.requested is not None
        self.requested = signal.Signals(number).name
        if again or not self._deferred:  # a second signal does not wait for the step
            raise self.error()
