"""`@step`: a Prefect task that says, and remembers, whether its value was made now or reused, and why."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import get_run_logger, task
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import Task

from tasks.platforms.errors import TransientPlatformError
from tasks.platforms.refs import Origin

P = ParamSpec("P")
R = TypeVar("R")
RETRIES = 3
RETRY_SECONDS = 5

# Of this process's task runs, by id, for the list of steps.
origins: dict[str, Origin] = {}


async def is_transient(task: Task[Any, Any], run: TaskRun, state: State[Any]) -> bool:
    """Retry only what says that trying again may help."""
    return isinstance(await state.aresult(raise_on_failure=False), TransientPlatformError)


def step(**options: Any) -> Callable[[Callable[P, R]], Task[P, R]]:
    """Make a task; its retries are for transient errors, its parameters those of `prefect.task`."""

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            value = function(*args, **kwargs)
            origin = getattr(value, "origin", None)
            if origin is not None:
                origins[str(task_run.id)] = origin
                verb = "Reused" if origin.reused else "Made"
                get_run_logger().info("%s by %s: %s", verb, function.__name__, origin.reason)
            return value

        settings = {"retries": RETRIES, "retry_delay_seconds": RETRY_SECONDS, **options}
        return task(name=function.__name__, retry_condition_fn=is_transient, **settings)(run)

    return decorate


def log() -> logging.Logger | logging.LoggerAdapter[Any]:
    """The run's logger, or this module's outside a run."""
    try:
        return get_run_logger()
    except RuntimeError:
        return logging.getLogger(__name__)
