"""Stage: a person says yes before a run spends, or before a new version takes traffic.

The question is Prefect's own pause with a form: its UI (Resume), `phiflow approve` and the time-out fill in the same
one, and the first answer counts. A paused run keeps its process, here or at a worker, which takes the answer, or takes
everything away again when it is cancelled. Suspending would free the process, but only runs of a deployment can be
suspended, and then nobody is there to notice the time-out or the cancellation.

What holds, whoever answers:

- Nothing goes on without an answer: the form has no default, and a run that was resumed without one is refused.
- An answer is for one question: a run that is retried, or started again after its process died, asks again.
- The endpoint is not kept from others while a run waits; `tasks.questions.require_unchanged` reads it again afterwards,
  and refuses when what was approved is no longer what would happen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal
from uuid import UUID, uuid4

import httpx
from prefect.cache_policies import NO_CACHE
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.responses import SetStateStatus
from prefect.input import RunInput, keyset_from_paused_state
from prefect.runtime import flow_run
from prefect.states import Paused, State
from prefect.utilities.urls import url_for
from pydantic import Field, ValidationError

from tasks.config import ApprovalConfig
from tasks.job_wait import duration
from tasks.platforms.errors import ConflictError, GateRefusedError, TransientPlatformError
from tasks.platforms.refs import Origin
from tasks.step import log, step

Place = Literal["submit", "traffic"]
WHAT: dict[Place, str] = {"submit": "submit the training job", "traffic": "move traffic"}
POLL_SECONDS = 2.0
REMIND_SECONDS = 900.0
# How long the Prefect server may be out of reach after the time-out; it fails what is paused for longer by itself.
PATIENCE_SECONDS = 3600
TIME_OUT = "the time-out"


class Answer(RunInput):
    """The form."""

    answer: Literal["approve", "refuse"] = Field(description="What the run does next.")
    reason: str = Field("", description="Kept in the run's log and report.")
    by: str = Field("", title="Your name")


class TrafficAnswer(Answer):
    """The form before traffic moves."""

    reject_version: bool = Field(
        False, title="Reject the version", description="With refuse: later runs give this version no traffic, either."
    )


FORMS: dict[Place, type[Answer]] = {"submit": Answer, "traffic": TrafficAnswer}


@dataclass(frozen=True, slots=True, kw_only=True)
class Approval:
    """What was answered, by whom and why."""

    granted: bool
    by: str
    reason: str
    rejects_version: bool
    origin: Origin

    def require(self, what_did_not_happen: str) -> None:
        """GateRefusedError unless it was granted."""
        if not self.granted:
            reason = f": {self.reason.rstrip('.')}" if self.reason else ""
            raise GateRefusedError(f"{what_did_not_happen}: refused by {self.by}{reason}.")


@step(cache_policy=NO_CACHE, task_run_name="await_approval-{place}")
def await_approval(place: Place, question: str, limits: ApprovalConfig) -> Approval:
    """Pause the run until a person, or the time-out, has answered the question, which is Markdown.

    Raises:
        ConflictError: the run may not be paused, such as one that is being cancelled.
        TransientPlatformError: the Prefect server stayed out of reach.
    """
    run_id = UUID(str(flow_run.id))
    form = FORMS[place].with_initial_data(description=question)
    # Prefect forgets at a retry which pauses a run had, but keeps their answers: no two pauses share a key.
    pause: State[Any] = Paused(
        timeout_seconds=limits.timeout_seconds + PATIENCE_SECONDS, pause_key=f"{place}-{uuid4().hex[:8]}"
    )
    keyset = keyset_from_paused_state(pause)
    pause.state_details.run_input_keyset = dict(keyset)  # type: ignore[arg-type]
    form.save(keyset, run_id)
    with get_client(sync_client=True) as client:
        answered = client.set_flow_run_state(run_id, pause)
        if answered.status != SetStateStatus.ACCEPT:
            raise ConflictError(f"Run {flow_run.name} cannot wait for an approval: {answered.details}.")
        _await_resumed(client, run_id, place, limits)
    try:
        answer = form.load(keyset, run_id)
    except ValidationError:
        answer = Answer(answer="refuse", by="Prefect", reason="the run was resumed without an answer")
    assert isinstance(answer, Answer)  # not a coroutine: this is synchronous code
    return _approval(answer)


def _await_resumed(client: SyncPrefectClient, run_id: UUID, place: Place, limits: ApprovalConfig) -> None:
    """Wait until the run goes on; answer with the default when nobody did in time.

    Prefect's own `pause_flow_run` would wait, too, but not notice a cancellation, not outlive a restart of the server,
    and at its time-out end the run.
    """
    began = told = time.time()
    until = time.strftime("%Y-%m-%d %H:%M", time.localtime(began + limits.timeout_seconds))
    log().warning(
        "Waits for approval to %s, until %s, then the answer is %s. %s (Resume), or: phiflow approve --run %s",
        *(WHAT[place], until, limits.default, url_for("flow-run", run_id), str(run_id)[:8]),
    )
    while True:
        time.sleep(POLL_SECONDS)
        waited = time.time() - began
        try:
            state = client.read_flow_run(run_id).state
            if state is None or state.is_running():
                return
            if not state.is_paused():
                raise KeyboardInterrupt(f"the run is {state.name}")
            if waited >= limits.timeout_seconds:
                client.resume_flow_run(run_id, run_input=_answer_of_time_out(limits))
        except httpx.HTTPError as error:
            if waited >= limits.timeout_seconds + PATIENCE_SECONDS:
                raise TransientPlatformError(f"The Prefect server did not answer: {error}") from error
        if time.time() - told >= REMIND_SECONDS:
            told = time.time()
            log().info("Still waits for approval to %s (for %s, until %s)", WHAT[place], duration(waited), until)


def _answer_of_time_out(limits: ApprovalConfig) -> dict[str, Any]:
    waited = duration(limits.timeout_seconds)
    reason = f"nobody answered within {waited}, and approval.default is {limits.default}"
    return {"answer": limits.default, "by": TIME_OUT, "reason": reason}


def _approval(answer: Answer) -> Approval:
    granted, by = answer.answer == "approve", answer.by.strip() or "somebody in the Prefect UI"
    reason = " ".join(answer.reason.split())
    told = f"{'approved' if granted else 'refused'} by {by}{': ' if reason else ''}{reason}"
    log().warning("The run was %s", told)
    return Approval(
        granted=granted,
        by=by,
        reason=reason,
        rejects_version=not granted and isinstance(answer, TrafficAnswer) and answer.reject_version,
        origin=Origin(reused=False, reason=told),
    )
