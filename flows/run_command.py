"""`phiflow run`: the flow in this process, against a Prefect server that stays."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

from flows.billing import what_bills
from flows.command import (
    as_json_text,
    default_configuration,
    error_document,
    open_configuration,
    remember_run,
    report_error,
)
from tasks.config import AzurePlatformConfig, PipelineConfig
from tasks.platforms.connect import local_services, require_runnable
from tasks.platforms.errors import EXIT_BUG, EXIT_REFUSED, PhiflowError

INTERRUPTED = 130


def run_configuration(path: Path | None, overrides: list[str] | None, as_json: bool) -> int:
    """Run the flow and return the exit code: 0 done, 3 refused, else what the error says."""
    path = path or default_configuration()
    config, _ = open_configuration(path, overrides)
    require_runnable(config)
    point_at_prefect(config)
    remember_run(path, overrides or [])
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `phiflow cancel` interrupts like Ctrl-C
    try:
        with local_services(config.platform.home).known_run():
            return _run(config, as_json)
    except KeyboardInterrupt:
        print(
            "Interrupted. A training job that was submitted goes on: the same command adopts it, "
            f"'phiflow cancel {path}' stops it.",
            *what_bills(config),
            sep="\n  ",
            file=sys.stderr,
        )
        return INTERRUPTED


def point_at_prefect(config: PipelineConfig) -> None:
    """Use the Prefect server that PREFECT_API_URL names, else this machine's own; before Prefect is imported."""
    point_at_prefect_of(config.platform.home)


def point_at_prefect_of(home: str) -> None:
    """As `point_at_prefect`, with the state folder."""
    os.environ.setdefault("PREFECT_LOGGING_EXTRA_LOGGERS", "tasks,flows")
    if os.environ.get("PREFECT_API_URL"):
        return
    os.environ.update(local_services(home).prefect_environment())


def _run(config: PipelineConfig, as_json: bool) -> int:
    from flows.fine_tune_and_deploy import fine_tune_and_deploy
    from flows.runs import error_of, read_steps, run_url
    from flows.show import show_run
    from tasks.report import RunReport, document, spent_of

    pipeline = fine_tune_and_deploy
    if isinstance(config.platform, AzurePlatformConfig):
        from tasks.results import results_block

        pipeline = pipeline.with_options(result_storage=results_block(config.platform))
    state = pipeline(config, return_state=True)
    run_id = str(state.state_details.flow_run_id)
    told: dict[str, Any] = {
        "run": {"id": run_id, "url": run_url(run_id), "state": state.name, "message": state.message},
        "steps": read_steps(run_id),
        **dict.fromkeys(("data", "job", "gate", "model", "endpoint", "chat", "mlflow", "estimate", "spent")),
    }
    error = error_of(state)
    if error is None:
        report = state.result()
        assert isinstance(report, RunReport)
        told |= document(report, spent_of(config.platform, report))
    else:
        told["error"] = error_document(error)
    if as_json:
        print(as_json_text(told))
    elif error is None:
        show_run(told, config)
    if error is None:
        return EXIT_REFUSED if state.name == "Refused" else 0
    if isinstance(error, PhiflowError):
        return report_error(error, as_json=False)
    print(f"error: the run ended {state.name}: {error}", file=sys.stderr)
    return EXIT_BUG
