"""A polite end: SIGTERM and Ctrl-C become a checkpoint during training and a clear exit at any time.

A preempted machine, `phiflow cancel` and a launcher each give about GRACE_SECONDS from the signal to the end.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from trainer.errors import EXIT_PREEMPTED, TrainerError

log = logging.getLogger(__name__)

GRACE_SECONDS = 30.0
# A terminal signals the launcher and its processes, and the launcher passes it on: that is one request, not two.
_ONE_REQUEST_SECONDS = 1.0
# For the call that runs when the signal comes, outside of training; an uninterruptible one must not use up the grace.
_PATIENCE_SECONDS = 20.0
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


class Interrupted(BaseException):
    """The run was asked to end. No Exception: whoever survives a failure of a library must not survive this."""

    def __init__(self, error: TrainerError) -> None:
        super().__init__(str(error))
        self.error = error


class Interruption:
    """Remembers that the run was asked to end; while deferred, the training ends itself after its step."""

    def __init__(self) -> None:
        self.requested: str | None = None
        self._since = 0.0
        self._deferred = False
        self._settled = threading.Event()

    def listen(self) -> None:
        """Take over SIGTERM and SIGINT."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        threading.Thread(target=self._insist, args=(reader,), daemon=True).start()

    def settle(self) -> None:
        """Hear no more signals: the run has ended and says how."""
        self._settled.set()
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Within, a signal only sets `requested`; afterwards it is raised."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.check()

    def check(self) -> None:
        """End the run here when it was asked to."""
        if self.requested:
            raise self.ended()

    def ended(self) -> Interrupted:
        """What the run ends with."""
        error = TrainerError(
            f"The training was stopped by {self.requested}.",
            "Run the same command again; it goes on from the last checkpoint.",
            "preempted",
        )
        return Interrupted(error)

    def seconds_left(self) -> float:
        """What is left of the grace."""
        return GRACE_SECONDS - (time.monotonic() - self._since)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        again = self.requested is not None
        if again and now - self._since < _ONE_REQUEST_SECONDS:
            return
        if not again:
            self.requested, self._since = signal.Signals(number).name, now
        if again or not self._deferred:  # a second signal does not wait for the step
            raise self.ended()

    def _insist(self, reader: int) -> None:
        """End the process when its main thread, in a call that Python cannot interrupt, does not hear the signal."""
        while not self._settled.is_set():
            if os.read(reader, 1)[0] not in _SIGNALS:
                continue
            if not self._settled.wait(_PATIENCE_SECONDS) and not self._deferred:
                os._exit(EXIT_PREEMPTED)


def die_with_parent(number: int = signal.SIGTERM) -> None:
    """Have this process signalled when the one that started it is gone, even by SIGKILL; on Linux alone."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # where there is no glibc
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(number))


def worker_signals() -> None:
    """Make a worker process end with its parent, and leave Ctrl-C to it; for a pool's initializer."""
    signal.set_wakeup_fd(-1)  # a forked worker would wake its parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    die_with_parent(signal.SIGKILL)
