"""A run that only asks: the flow's name, its begin and its questions, without what a pipeline does between them.

Usage: python waiting_flow.py RUNS, a JSON list of {"name": ..., "questions": [{"place": ..., ApprovalConfig's keys}]}.
Prints a JSON line after each run: its id, its state and the answers; a run that fails says so in its state.
"""

from __future__ import annotations

import json
import sys
from typing import Any

from prefect import flow

import tasks.approval
from flows.runs import FLOW_NAME, begin_run
from tasks.approval import await_approval
from tasks.config import ApprovalConfig, PipelineConfig

tasks.approval.POLL_SECONDS = 0.2


@flow(name=FLOW_NAME, flow_run_name="{config.name}", persist_result=True)
def ask(config: PipelineConfig, questions: list[dict[str, Any]]) -> list[list[str]]:
    """Ask one question after the other."""
    begin_run(config)
    told = []
    for question in questions:
        limits = ApprovalConfig.model_validate({key: question[key] for key in question if key != "place"})
        answer = await_approval(question["place"], f"## {config.name}, {question['place']}?", limits)
        told.append(["approved" if answer.granted else "refused", answer.by, answer.reason])
    return told


def main() -> None:
    """Make the runs, one after the other."""
    for run in json.loads(sys.argv[1]):
        config = PipelineConfig.model_validate({"name": run["name"], "data": {"source": "x"}, "approve": ["submit"]})
        try:
            state = ask(config, run["questions"], return_state=True)
        except KeyboardInterrupt:
            print(json.dumps({"name": run["name"], "state": "interrupted"}), flush=True)
            continue
        answers = state.result(raise_on_failure=False) if state.is_completed() else str(state.message)
        print(json.dumps({"name": run["name"], "state": state.name, "answers": answers}), flush=True)


if __name__ == "__main__":
    main()
