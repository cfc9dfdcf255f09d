"""What all checks share: how one is written down, and how several are carried out at once and told in order."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from tasks.platforms.errors import ConfigError, DataError, Failure, PermissionDeniedError, PhiflowError, QuotaError
from tasks.platforms.upkeep import Check, Outcome

_AT_ONCE = 8
# What these say is wrong; any other error is about the looking itself.
_FINDINGS = (ConfigError, DataError, QuotaError)


def passed(name: str, found: str) -> Check:
    """Nothing to do."""
    return Check(name=name, outcome=Outcome.PASS, found=found)


def warned(name: str, found: str, fix: str = "") -> Check:
    """It may work all the same."""
    return Check(name=name, outcome=Outcome.WARN, found=found, fix=fix)


def failed(name: str, found: str, fix: str, failure: Failure | None = None) -> Check:
    """It cannot work."""
    return Check(name=name, outcome=Outcome.FAIL, found=found, fix=fix, failure=str(failure or ""))


def carried_out(name: str, check: Callable[[], Iterable[Check]]) -> list[Check]:
    """What a check found; one that breaks is told as a warning, and never as a traceback."""
    found: list[Check] = []
    try:
        found.extend(check())
    except PhiflowError as error:
        if isinstance(error, _FINDINGS):
            found.append(failed(name, error.message, error.fix, error.failure))
        elif isinstance(error, PermissionDeniedError):  # the rest of its message is the service's, and long
            found.append(warned(name, f"not checked: {error.message.partition(': ')[0]}", error.fix))
        else:
            found.append(warned(name, f"not checked: {error.message}", error.fix))
    except Exception as error:  # the other checks go on
        told = next(iter(str(error).splitlines()), "")
        found.append(warned(name, f"not checked: {type(error).__name__}: {told}"))
    return found


def all_at_once(checks: Iterable[tuple[str, Callable[[], Iterable[Check]]]]) -> Iterator[Check]:
    """Carry out checks beside each other, and yield what they found in their order, each as soon as it is known."""
    with ThreadPoolExecutor(max_workers=_AT_ONCE) as pool:
        for future in [pool.submit(carried_out, name, check) for name, check in checks]:
            yield from future.result()
