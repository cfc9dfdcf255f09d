"""`@step`: a Prefect task that says, and remembers, whether its value was made now or reused, and why."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.client.schemas.objects import State, TaskRun
from prefect.runtime import task_run
from prefect.tasks import Task

from tasks.platforms.errors import PhiflowError, TransientPlatformError
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

    settings = {"retries": RETRIES, "retry_delay_seconds": RETRY_SECONDS, **options}

    def decorate(function: Callable[P, R]) -> Task[P, R]:
        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                value = function(*args, **kwargs)
            except PhiflowError as error:
                if error.failure and not _is_tried_again(error, settings["retries"]):
                    publish_failure(function.__name__, error)
                raise
            origin = getattr(value, "origin", None)
            if origin is not None:
                origins[str(task_run.id)] = origin
                verb = "Reused" if origin.reused else "Made"
                get_run_logger().info("%s by %s: %s", verb, function.__name__, origin.reason)
            return value

        return task(name=function.__name__, retry_condition_fn=is_transient, **settings)(run)

    return decorate


def publish_failure(step_name: str, error: PhiflowError) -> None:
    """Keep the failure of a step as an artifact: its class, its cause, what to do, and the last lines of its log."""
    again = "yes" if error.may_go_through else "no, not before it is mended"
    lines = "\n".join(error.detail)
    text = (
        f"**{step_name} failed: {error.failure or 'error'}**\n\n{error.message}\n\n"
        f"| | |\n|---|---|\n| What to do | {error.fix or 'see the message'} |\n| Worth trying again | {again} |\n"
    )
    create_markdown_artifact(f"{text}\n```\n{lines}\n```\n" if lines else text, key="failure")


def _is_tried_again(error: PhiflowError, retries: int) -> bool:
    return isinstance(error, TransientPlatformError) and int(task_run.run_count or 1) <= retries


def log() -> logging.Logger | logging.LoggerAdapter[Any]:
    """The run's logger, or this module's outside a run."""
    try:
        return get_run_logger()
    except RuntimeError:
        return logging.getLogger(__name__)
