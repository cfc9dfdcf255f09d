"""A run waits for a person at a real Prefect server: answered in its UI, in a terminal, by the time-out, or never."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from deployed import Prefect, parameters_of
from journey import Journey, eventually, kill

pytestmark = pytest.mark.journey
WAITER = Path(__file__).with_name("waiting_flow.py")


class Waiting:
    """Runs that only ask, each process making some of them, and the Prefect API that they are paused in."""

    def __init__(self, journey: Journey) -> None:
        exports = journey.exports()
        self._journey = journey
        self._api = exports["PREFECT_API_URL"]
        self._environment = journey.environment(**exports, PYTHONFAULTHANDLER="1")
        self._processes: list[subprocess.Popen[str]] = []

    def start(self, **runs: list[dict[str, Any]]) -> subprocess.Popen[str]:
        """One process that makes runs of these names, which ask these questions, one after the other."""
        made = [{"name": name, "questions": questions} for name, questions in runs.items()]
        log = (self._journey.folder / f"{next(iter(runs))}.log").open("w")
        process = subprocess.Popen(
            [sys.executable, str(WAITER), json.dumps(made)],
            cwd=self._journey.folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        self._processes.append(process)
        return process

    def post(self, path: str, **body: Any) -> Any:
        """Send to the API; again while it says that it is busy, as Prefect's own client does."""

        def answered() -> list[requests.Response]:
            response = requests.post(f"{self._api}{path}", json=body, timeout=30)
            return [] if response.status_code == 503 else [response]

        (response,) = eventually(answered, 60)
        response.raise_for_status()
        return response.json()

    def runs(self, name: str) -> list[dict[str, Any]]:
        """The runs of a name, newest first."""
        return self.post("/flow_runs/filter", flow_runs={"name": {"any_": [name]}}, sort="START_TIME_DESC")

    def paused(self, name: str, place: str = "submit") -> str:
        """Wait until the newest run of a name waits at a place; returns its id."""

        def found() -> str:
            run = next(iter(self.runs(name)), None)
            key = str(run["state"]["state_details"]["pause_key"]) if run else ""
            return str(run["id"]) if run and run["state"]["type"] == "PAUSED" and key.startswith(f"{place}-") else ""

        return eventually(found, 60)

    def resume(self, run_id: str, **answer: Any) -> str:
        """Send the form of the UI's Resume; returns whether it was taken."""
        return str(self.post(f"/flow_runs/{run_id}/resume", run_input=answer)["status"])

    def close(self) -> None:
        """End what still waits."""
        for process in self._processes:
            process.kill()
            process.wait()

    def logs(self) -> str:
        """The ends of what the processes wrote, for a test that fails."""
        return "\n".join(f"{log.name}: {log.read_text()[-3000:]}" for log in self._journey.folder.glob("*.log"))


@pytest.fixture(scope="module")
def waiting(journey: Journey) -> Iterator[Waiting]:
    """Nothing waits yet."""
    waiting = Waiting(journey)
    yield waiting
    waiting.close()


def ended(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """What a process said of its runs, when it has ended; one that does not writes into its log where it is."""
    try:
        out, _ = process.communicate(timeout=60)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGABRT)
        process.wait(10)
        raise
    return [json.loads(line) for line in out.splitlines()]


def test_first_answer_counts_whoever_gives_it(journey: Journey, waiting: Waiting) -> None:
    """The form, the command and the time-out answer the same question; without an answer nothing goes on."""
    ask = {"timeout_seconds": 600, "default": "approve"}
    soon = {"timeout_seconds": 1}
    process = waiting.start(
        both=[{"place": "submit", **ask}, {"place": "traffic", **ask}],
        late=[{"place": "submit", **soon, "default": "approve"}, {"place": "traffic", **soon, "default": "refuse"}],
        silent=[{"place": "submit", **ask}],
        stopped=[{"place": "submit", **ask}],
    )
    both = waiting.paused("both")
    for wrong in ({}, {"answer": ""}, {"answer": "perhaps"}, {"reason": "fine"}, {"answer": "approve", "x": 1}):
        assert waiting.resume(both, **wrong) == "REJECT", wrong
    assert waiting.paused("both") == both
    assert waiting.resume(both, answer="approve", by="maria", reason="it is cheap") == "ACCEPT"
    assert waiting.paused("both", "traffic") == both
    told = journey.json("approve", "--run", both[:8], "--refuse", "--reason", "rude")
    assert (told["waits_to"], told["answer"], told["question"]) == ("traffic", "refuse", "## both, traffic?")
    silent = waiting.paused("silent")
    assert waiting.resume(both, answer="approve") == "ABORT"  # it has ended
    waiting.post(f"/flow_runs/{silent}/set_state", state={"type": "RUNNING"}, force=True)
    stopped = waiting.paused("stopped")
    waiting.post(f"/flow_runs/{stopped}/set_state", state={"type": "CANCELLING"})
    both_told, late_told, silent_told, stopped_told = ended(process)
    assert both_told["answers"][0] == ["approved", "maria", "it is cheap"]
    assert both_told["answers"][1][0::2] == ["refused", "rude"]
    assert "@" in both_told["answers"][1][1]
    (first, by, why), (second, *_) = late_told["answers"]
    assert (first, by, second) == ("approved", "the time-out", "refused")
    assert why == "nobody answered within 1 s, and approval.default is approve"
    assert silent_told["answers"] == [["refused", "Prefect", "the run was resumed without an answer"]]
    assert stopped_told["state"] == "interrupted"
    assert waiting.runs("stopped")[0]["state"]["type"] in ("CRASHED", "CANCELLED")


def test_waiter_that_was_killed_is_told_and_asked_again(journey: Journey, waiting: Waiting) -> None:
    """After kill -9 nobody can answer; the next run says Crashed of it, asks again, and takes no earlier answer."""
    question = [{"place": "submit", "timeout_seconds": 600}]
    process = waiting.start(killed=question)
    first = waiting.paused("killed")
    config = journey.configure("killed")
    kill(process.pid)
    ended_command = journey.phiflow("approve", config)
    assert ended_command.returncode == 4
    assert "No run of killed waits for approval" in ended_command.stderr
    assert len(ended_command.stderr.splitlines()) == 1
    waiting.resume(first, answer="approve")
    again = waiting.start(killed=question)
    second = waiting.paused("killed")
    assert second != first
    assert [run["state"]["name"] for run in waiting.runs("killed")] == ["Paused", "Crashed"]
    again.send_signal(signal.SIGINT)
    try:
        (told,) = ended(again)
    except subprocess.TimeoutExpired:
        pytest.fail(f"An interrupted run did not end.\n{waiting.logs()}")
    assert told["state"] == "interrupted"
    assert waiting.runs("killed")[0]["state"]["type"] in ("CRASHED", "CANCELLED")


@pytest.mark.slow
def test_pipeline_waits_before_it_spends_and_before_traffic(journey: Journey, prefect: Prefect) -> None:
    """A worker's run: retried it asks again, refused it submits nothing, cancelled it leaves nothing deployed."""
    ask = {"approve": ["submit", "traffic"], "approval": {"timeout_seconds": 900}}
    config = journey.configure("asked")
    parameters = parameters_of(journey, config)
    parameters["config"] |= ask
    refused = prefect.run(parameters)
    prefect.await_state(refused, "Paused")
    kill(int(prefect.get(f"/flow_runs/{refused}")["labels"]["phiflow.process"].partition("@")[0]))
    prefect.await_state(refused, "Crashed")

    def asks_again() -> bool:
        # The worker reports the process's end, too, and may do so when the retry has begun.
        if prefect.state(refused) in ("Crashed", "Failed"):
            state = {"type": "SCHEDULED", "name": "AwaitingRetry"}
            prefect.post(f"/flow_runs/{refused}/set_state", state=state)
        return prefect.state(refused) == "Paused"

    eventually(asks_again, 240, every=1)
    shown = journey.json("approve", config, "--show")
    assert shown["question"].startswith("## Submit training job asked-")
    resume(prefect, refused, answer="refuse", by="maria", reason="too dear")
    assert prefect.await_state(refused, "Refused", "Completed", "Failed", "Crashed") == "Refused"
    message = prefect.get(f"/flow_runs/{refused}")["state"]["message"]
    assert message.endswith("was not submitted: refused by maria: too dear.")
    assert journey.jobs("asked") == []
    assert "no job was submitted" in prefect.artifacts(refused)["report"]["data"]

    cancelled = prefect.run(parameters)
    prefect.await_state(cancelled, "Paused")
    resume(prefect, cancelled, answer="approve")
    prefect.await_state(cancelled, "Running")
    prefect.await_state(cancelled, "Paused")
    (candidate,) = journey.endpoint("asked")["deployments"]
    assert journey.endpoint("asked")["traffic"] == {candidate: 0}
    prefect.post(f"/flow_runs/{cancelled}/set_state", state={"type": "CANCELLING"})
    assert prefect.await_state(cancelled, "Cancelled", "Completed", "Failed", "Crashed") == "Cancelled"
    eventually(lambda: not journey.endpoint("asked")["deployments"], 60)
    assert not journey.endpoint("asked").get("rollout")

    # The job is there: nobody is asked about it again.
    parameters["config"]["approval"] = {"timeout_seconds": 1, "default": "refuse"}
    timed_out = prefect.run(parameters)
    assert prefect.await_state(timed_out, "Refused", "Completed", "Failed", "Crashed") == "Refused"
    assert "nobody answered within 1 s" in prefect.get(f"/flow_runs/{timed_out}")["state"]["message"]
    assert journey.endpoint("asked")["deployments"] == {}
    assert len(prefect.task_runs(timed_out)["await_approval"]) == 1

    parameters["config"]["approval"] = {"timeout_seconds": 900}
    approved = prefect.run(parameters)
    prefect.await_state(approved, "Paused")
    told = journey.json("approve", config, "--reason", "answers well")
    assert "## Sample answers" in told["question"]
    assert prefect.await_state(approved, "Completed", "Refused", "Failed", "Crashed") == "Completed"
    assert list(journey.endpoint("asked")["traffic"].values()) == [100]
    assert len(journey.jobs("asked")) == 1


def resume(prefect: Prefect, run_id: str, **answer: Any) -> None:
    """Send the form of the UI's Resume."""
    assert prefect.post(f"/flow_runs/{run_id}/resume", run_input=answer)["status"] == "ACCEPT"
