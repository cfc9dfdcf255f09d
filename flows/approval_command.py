"""`phiflow approve`: answers the question that a run waits with, as the form in Prefect's UI does."""

from __future__ import annotations

import getpass
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.command import open_configuration
from flows.run_command import point_at_prefect_of
from tasks.platforms.errors import ConfigError, ConflictError, NotFoundError

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun


def answer_waiting_run(path: Path | None, run_id: str, answer: dict[str, Any]) -> dict[str, Any]:
    """Answer the one run that waits, of a configuration or by the beginning of its id.

    Args:
        answer: the form's fields; empty: only show the question.
    Raises:
        NotFoundError: no such run waits.
        ConfigError: several do, and the command does not say which.
        ConflictError: it was answered in the same moment, or the form has no such field.
    """
    config = None if run_id else open_configuration(path)[0]
    point_at_prefect_of(config.platform.home if config else "")
    from flows.runs import run_url, waiting_runs

    run = _only(waiting_runs(), run_id, config.name if config else "")
    told = {
        "run": {"id": str(run.id), "name": run.name, "url": run_url(str(run.id))},
        "waits_to": _place(run),
        "question": _question(run),
        "answer": answer.get("answer"),
    }
    if answer:
        _send(run, {"by": f"{getpass.getuser()}@{socket.gethostname()}", **answer})
    return told


def _only(waiting: list[FlowRun], run_id: str, name: str) -> FlowRun:
    found = [
        run
        for run in waiting
        if (str(run.id).startswith(run_id) if run_id else run.parameters.get("config", {}).get("name") == name)
    ]
    which = f"with an id that begins with {run_id}" if run_id else f"of {name}"
    if not found:
        others = ", ".join(f"{run.name} (--run {str(run.id)[:8]})" for run in waiting)
        raise NotFoundError(
            f"No run {which} waits for approval at {os.environ['PREFECT_API_URL']}.",
            fix=f"Waiting: {others}." if others else "phiflow run starts one.",
        )
    if len(found) > 1:
        raise ConfigError(
            f"{len(found)} runs {which} wait for approval.",
            fix=f"Say which with --run: {', '.join(f'{str(r.id)[:8]} (to {_place(r)})' for r in found)}.",
        )
    return found[0]


def _place(run: FlowRun) -> str:
    """Where it waits: the pause's key says it first."""
    assert run.state
    return str(run.state.state_details.pause_key).partition("-")[0]


def _question(run: FlowRun) -> str:
    from prefect.input.actions import read_flow_run_input

    assert run.state and run.state.state_details.run_input_keyset
    return str(read_flow_run_input(run.state.state_details.run_input_keyset["description"], run.id) or "")


def _send(run: FlowRun, answer: dict[str, Any]) -> None:
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.responses import SetStateStatus

    with get_client(sync_client=True) as client:
        result = client.resume_flow_run(run.id, run_input=answer)
    if result.status != SetStateStatus.ACCEPT:
        why = getattr(result.details, "reason", "") or result.status
        raise ConflictError(f"Run {run.name} did not take the answer: {why}", fix="phiflow approve --show looks again.")


def show_answer(told: dict[str, Any]) -> None:
    """The question that was answered, or, when nothing was, that waits."""
    title, _, rest = told["question"].partition("\n")
    title = title.removeprefix("## ")
    if told["answer"] is None:
        print(f"{title}\n{rest}\n\n  answer    phiflow approve --run {told['run']['id'][:8]} [--refuse --reason ...]")
        print(f"  Prefect   {told['run']['url']}")
        return
    print(f"{'Approved' if told['answer'] == 'approve' else 'Refused'}: {title}")
    print(f"  Prefect   {told['run']['url']}")
