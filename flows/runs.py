"""Runs as Prefect knows them: started here, found dead, cancelled, and told as a list of steps."""

from __future__ import annotations

import logging
import os
import signal
import socket
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import psutil
from prefect import State
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowFilter,
    FlowFilterName,
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.runtime import flow_run
from prefect.settings import PREFECT_UI_URL
from prefect.states import Cancelling, Crashed

from tasks.config import PipelineConfig
from tasks.platforms.errors import ConfigError, PhiflowError
from tasks.platforms.refs import Origin
from tasks.results import WorkspaceResults  # noqa: F401 - a worker reads results through the blocks it knows
from tasks.step import origins

FLOW_NAME = "fine-tune-and-deploy"
_HOST, _PROCESS = "phiflow.host", "phiflow.process"
_ALWAYS_RUNS = Origin(reused=False, reason="it looks at what is there now, so it always runs")
_log = logging.getLogger(__name__)


class WithoutTraceback(logging.Filter):
    """Prefect logs every exception with its traceback; ours are one line for a person."""

    def filter(self, record: logging.LogRecord) -> bool:
        error = record.exc_info[1] if isinstance(record.exc_info, tuple) else None
        if isinstance(error, PhiflowError):
            record.msg, record.args, record.exc_info = "%s", (str(error),), None
        return True


def begin_run(config: PipelineConfig) -> None:
    """Note which process carries this run, and mark the runs whose process died as Crashed.

    Raises:
        ConfigError: the run is to wait for approval, which its deployment would not let it survive.
    """
    for name in ("prefect.flow_runs", "prefect.task_runs"):
        logger = logging.getLogger(name)
        if not any(isinstance(known, WithoutTraceback) for known in logger.filters):
            logger.addFilter(WithoutTraceback())
    _show_progress_of_adapters()
    with get_client(sync_client=True) as client:
        run_id = UUID(str(flow_run.id))
        client.update_flow_run_labels(run_id, {_HOST: socket.gethostname(), _PROCESS: _process_token(os.getpid())})
        if config.approve:
            _require_no_slot(client.read_flow_run(run_id))
        for run in _unended_runs(client):
            if run.id != run_id and _has_died(run):
                message = "Its process on this machine has died; a later run adopts what it started."
                client.set_flow_run_state(run.id, Crashed(message=message), force=True)
                _log.warning("Marked run %s as Crashed: its process has died", run.id)


def _require_no_slot(run: FlowRun) -> None:
    """Prefect 3.8.8 takes the slot of a deployment's limit from a paused run, and ends it for having none."""
    if run.state and run.state.state_details.deployment_concurrency_lease_id:
        raise ConfigError(
            f"Run {run.name} cannot wait for an approval: Prefect ends a paused run of a deployment that has a "
            "concurrency limit within minutes.",
            fix="Deploy without concurrency_limit: prefect deploy --all",
        )


def _show_progress_of_adapters() -> None:
    """Prefect sends extra loggers to its server alone; what takes minutes must be seen in the terminal too."""
    adapters = logging.getLogger("tasks")
    adapters.setLevel(logging.INFO)
    for handler in logging.getLogger("prefect").handlers:
        if handler not in adapters.handlers:
            adapters.addHandler(handler)


def waiting_runs() -> list[FlowRun]:
    """The runs that wait for a person, wherever they are; one whose process died on this machine does not."""
    with get_client(sync_client=True) as client:
        return [
            run
            for run in _unended_runs(client)
            if run.state and run.state.is_paused() and run.state.state_details.run_input_keyset and not _has_died(run)
        ]


def cancel_runs(config_name: str) -> list[str]:
    """Ask the unended runs of a configuration to stop; returns their ids.

    A run of a deployment is cancelled by its worker; one started in a terminal is interrupted here.
    """
    cancelled = []
    with get_client(sync_client=True) as client:
        for run in _unended_runs(client):
            if run.parameters.get("config", {}).get("name") != config_name:
                continue
            cancelled.append(str(run.id))
            if run.deployment_id:
                client.set_flow_run_state(run.id, Cancelling())
            elif run.labels.get(_HOST) == socket.gethostname() and _is_alive(run):
                os.kill(_pid(run), signal.SIGTERM)
    return cancelled


def read_steps(run_id: str) -> list[dict[str, Any]]:
    """The run's steps in the order they ran: name, state, seconds, reused and why."""
    with get_client(sync_client=True) as client:
        only_this = FlowRunFilter(id=FlowRunFilterId(any_=[UUID(run_id)]))
        runs = client.read_task_runs(flow_run_filter=only_this)
    steps = []
    named = ("ensure_environment", "await_approval")
    for run in sorted(runs, key=lambda run: (run.start_time is None, run.start_time or run.expected_start_time)):
        origin = origins.get(str(run.id), _ALWAYS_RUNS)
        completed = run.state is not None and run.state.is_completed()
        steps.append(
            {
                "name": run.name if run.name.startswith(named) else run.name.rpartition("-")[0],
                "state": run.state_name,
                "seconds": round(run.total_run_time.total_seconds(), 2),
                "reused": origin.reused,
                "reason": origin.reason if completed else run.state and run.state.message,
            }
        )
    return steps


def ends_of_runs(run_ids: set[str]) -> dict[str, datetime | None]:
    """When each run that this server knows ended; None: it goes on.

    One whose process on this machine has died is marked as Crashed, and so ends now.
    """
    asked = []
    for run_id in run_ids:
        with suppress(ValueError):  # a label that is no run's
            asked.append(UUID(run_id))
    ends: dict[str, datetime | None] = {}
    if not asked:
        return ends
    with get_client(sync_client=True) as client:
        for run in client.read_flow_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=asked))):
            ends[str(run.id)] = run.end_time if run.state and run.state.is_final() else None
            if run.state and run.state.is_running() and _has_died(run):
                client.set_flow_run_state(run.id, Crashed(message="Its process on this machine has died."), force=True)
                ends[str(run.id)] = datetime.now(UTC)
    return ends


def run_url(run_id: str) -> str:
    """The run's page in the Prefect UI."""
    return f"{PREFECT_UI_URL.value()}/runs/flow-run/{run_id}"


def error_of(state: State[Any]) -> BaseException | None:
    """The exception that ended the run, if one did."""
    with suppress(Exception):  # a crash leaves no result to read; its message is told below
        result = state.result(raise_on_failure=False)
        if isinstance(result, BaseException):
            return result
    return RuntimeError(state.message or state.name) if not state.is_completed() else None


def _unended_runs(client: SyncPrefectClient) -> list[FlowRun]:
    unended = [StateType.PENDING, StateType.RUNNING, StateType.PAUSED]
    return client.read_flow_runs(
        flow_filter=FlowFilter(name=FlowFilterName(any_=[FLOW_NAME])),
        flow_run_filter=FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=unended))),
    )


def _process_token(pid: int) -> str:
    return f"{pid}@{psutil.Process(pid).create_time():.2f}"


def _pid(run: FlowRun) -> int:
    return int(str(run.labels.get(_PROCESS, "0@")).partition("@")[0])


def _has_died(run: FlowRun) -> bool:
    return run.labels.get(_HOST) == socket.gethostname() and not _is_alive(run)


def _is_alive(run: FlowRun) -> bool:
    try:
        ended = psutil.Process(_pid(run)).status() == psutil.STATUS_ZOMBIE
        return not ended and _process_token(_pid(run)) == run.labels.get(_PROCESS)
    except (psutil.Error, ValueError):
        return False
