"""What can stop the trainer: one message for a person, what to do next, and an exit code."""

from __future__ import annotations

EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_PREEMPTED = 75

# kind -> (exit code, whether the same command may go through later)
_KINDS = {
    "configuration": (EXIT_INPUT, False),
    "data": (EXIT_INPUT, False),
    "diverged": (EXIT_BUG, False),
    "out_of_memory": (EXIT_BUG, False),
    "bug": (EXIT_BUG, False),
    "preempted": (EXIT_PREEMPTED, True),
}


class TrainerError(Exception):
    """A failure the user can act on; printed as one line.

    Args:
        message: what happened to which named thing, and the value seen.
        fix: what to do next, one sentence.
        kind: configuration, data, diverged, out_of_memory, preempted or bug.
    """

    def __init__(self, message: str, fix: str = "", kind: str = "data") -> None:
        if kind not in _KINDS:
            raise ValueError(f"unknown kind of error {kind!r}; one of {', '.join(_KINDS)}")
        super().__init__(message)
        self.message = " ".join(message.split())
        self.fix = " ".join(fix.split())
        self.kind = kind

    @property
    def exit_code(self) -> int:
        """The process's exit status."""
        return _KINDS[self.kind][0]

    @property
    def retryable(self) -> bool:
        """Whether the same command may go through later."""
        return _KINDS[self.kind][1]

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()
