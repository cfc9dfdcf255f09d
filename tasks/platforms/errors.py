"""Every error a user can meet: what happened, whether trying again may help, and what to do."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_REFUSED = 3
EXIT_PLATFORM = 4


class Failure(StrEnum):
    """The classes of what goes wrong on a platform; each has its own cause and its own fix."""

    QUOTA = "quota"
    CAPACITY = "capacity"
    IMAGE_BUILD = "image build"
    AUTHORISATION = "authorisation"
    USER_CODE = "user code"
    DATA = "data"
    PREEMPTION = "preemption"
    SCORING = "scoring"
    THROTTLING = "throttling"
    SERVICE = "service fault"

    @property
    def retryable(self) -> bool:
        """Whether the same thing may go through when it is tried again."""
        return self in (Failure.CAPACITY, Failure.PREEMPTION, Failure.THROTTLING, Failure.SERVICE)


class PhiflowError(Exception):
    """Base of the hierarchy; the message is one line for a person.

    Args:
        message: what happened to which named thing, and the value seen.
        fix: what to do next, one sentence.
        detail: further lines worth printing below (rejected records, the tail of a log).
        failure: the class of a platform's failure, where it is known.
    """

    exit_code: ClassVar[int] = EXIT_PLATFORM
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, fix: str = "", detail: tuple[str, ...] = (), failure: Failure | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.detail = detail
        self.failure = failure

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()

    @property
    def may_go_through(self) -> bool:
        """Whether the same thing may go through when it is tried again."""
        return self.retryable or bool(self.failure and self.failure.retryable)


class ConfigError(PhiflowError):
    """The configuration or the command line is wrong."""

    exit_code = EXIT_INPUT


class DataError(PhiflowError):
    """The data cannot be read, or too much of it was rejected."""

    exit_code = EXIT_INPUT


class NotFoundError(PhiflowError):
    """A named thing does not exist on the platform."""


class ConflictError(PhiflowError):
    """A named thing is held, or was changed by somebody else."""


class PermissionDeniedError(PhiflowError):
    """The platform refused the caller."""


class QuotaError(PhiflowError):
    """The platform has no room: vCPUs, memory or disk."""


class EnvironmentBuildError(PhiflowError):
    """An environment could not be built."""


class JobFailedError(PhiflowError):
    """A training or evaluation job ended without a result."""


class JobInterruptedError(JobFailedError):
    """The platform ended the job, which may go through when tried again; the next attempt continues it."""


class JobInputError(JobFailedError):
    """A job refused its configuration or its data."""

    exit_code = EXIT_INPUT


class GateRefusedError(PhiflowError):
    """The candidate did not pass the gate, or an approval was denied."""

    exit_code = EXIT_REFUSED


class RolloutError(PhiflowError):
    """A new deployment was not good enough to keep traffic."""


class TransientPlatformError(PhiflowError):
    """The platform did not answer as it should; the same call may go through later."""

    retryable = True
