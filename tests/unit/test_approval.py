"""Approvals: who is asked what, and what an answer is still good for when it comes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import ENDPOINT, MADE, FakePlatform, job_spec
from pydantic import ValidationError
from rollout_flow import OLD, unchanged

import tasks.approval
import tasks.questions
import tasks.roll_back
import tasks.training
from tasks.approval import FORMS, Answer, Approval
from tasks.config import PipelineConfig
from tasks.estimate.estimate import estimate_run
from tasks.platforms.errors import GateRefusedError
from tasks.platforms.refs import JobState, RolloutRecord

NEW = "v2-16"
TRAFFIC = {"approve": ["traffic"]}


def approval(granted: bool = True, *, rejects: bool = False, reason: str = "") -> Approval:
    """An answer."""
    return Approval(granted=granted, by="maria", reason=reason, rejects_version=rejects, origin=MADE)


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Say what is answered, and what happens while the question waits; returns the questions."""
    asked: list[str] = []

    def set_answer(answer: Approval, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
        def ask(place: str, question: str, limits: Any) -> Approval:
            asked.append(question)
            meanwhile()
            return answer

        monkeypatch.setattr(tasks.questions, "await_approval", ask)
        return asked

    return set_answer


def submission(platform: FakePlatform, **settings: Any) -> None:
    """Ask before a job is submitted."""
    config = PipelineConfig.model_validate({"name": ENDPOINT, "data": {"source": "x.jsonl"}, **settings})
    tasks.questions.approve_submission(config, job_spec(), estimate_run(config))


def test_nobody_is_asked_where_approve_names_no_place(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]]
) -> None:
    """Without `approve` a run asks nobody, neither before it submits nor before traffic."""
    asked = answers(approval())
    submission(platform)
    assert run_flow("2").report.outcome == "Completed"
    assert asked == []


@pytest.mark.parametrize("state", list(JobState))
def test_only_a_job_that_would_be_submitted_is_asked_about(
    platform: FakePlatform, answers: Callable[..., list[str]], state: JobState
) -> None:
    """One that runs or has completed is adopted and costs nothing; after a failure the next attempt is asked about."""
    asked = answers(approval())
    platform.jobs[job_spec().key] = state
    submission(platform, approve=["submit"])
    assert bool(asked) == (state in (JobState.FAILED, JobState.CANCELLED))


@pytest.mark.parametrize("state", [None, *JobState])
def test_retried_run_submits_the_attempt_that_it_asked_about(
    platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, state: JobState | None
) -> None:
    """What failed makes submitting another call than the one that Prefect remembers; what is adopted does not."""
    monkeypatch.setattr(tasks.training, "connect", lambda place: platform)
    platform.jobs |= {job_spec().key: state} if state else {}
    follows = tasks.training.failed_attempt(PipelineConfig.model_fields["platform"].default, job_spec())
    assert (follows is not None) == (state in (JobState.FAILED, JobState.CANCELLED))


def test_refused_submission_says_who_and_why(platform: FakePlatform, answers: Callable[..., list[str]]) -> None:
    """The question names the job, its data and its limits; a refusal is one line with who refused and why."""
    asked = answers(approval(granted=False, reason="too dear."))
    with pytest.raises(GateRefusedError) as refused:
        submission(platform, approve=["submit"])
    assert str(refused.value) == f"Job {job_spec().key} was not submitted: refused by maria: too dear."
    for wanted in (job_spec().key, "80 conversations", "24.0 h", "3 attempts"):
        assert wanted in asked[0], wanted


def test_run_refused_before_its_job_ends_refused_and_trains_nothing(
    platform: FakePlatform,
    run_flow: Callable[..., Any],
    answers: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The run is Completed with the name Refused, its report has no job, and the endpoint is as it was."""
    answers(approval(granted=False))
    refusal = approval(granted=False)
    monkeypatch.setattr("flows.fine_tune_and_deploy.approve_submission", lambda *_: refusal.require("x"))
    ended = run_flow("2", approve=["submit"])
    assert (ended.outcome.name, ended.outcome.is_completed()) == ("Refused", True)
    assert ended.report.result is None
    assert ended.report.reason == "x: refused by maria."
    unchanged(platform)


def test_approved_version_gets_the_traffic(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]]
) -> None:
    """The question has the gate's reason and sample answers, comes after the probe, and while nothing has moved."""
    seen: list[dict[str, int]] = []
    asked = answers(approval(), lambda: seen.append(dict(platform.percents)))
    assert run_flow("2", **TRAFFIC).report.outcome == "Completed"
    assert seen == [{OLD: 100, NEW: 0}]
    assert platform.percents == {OLD: 0, NEW: 100}
    for wanted in ("version 2 the traffic of support", "version 1 has now", "10, 50, 100 %", "the gate's reason"):
        assert wanted in asked[0], wanted
    assert "answer 0" in asked[0]
    run_flow("2", **TRAFFIC)
    assert len(asked) == 1  # it has the traffic already


def test_the_rest_of_the_traffic_is_asked_about_too(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]]
) -> None:
    """A version with most of the traffic, but not all, gets no more of it without an answer."""
    asked = answers(approval(granted=False))
    platform.serve(NEW, "2", 0)
    platform.set_traffic(ENDPOINT, {OLD: 40, NEW: 60}, "by hand")
    run_flow("2", **TRAFFIC)
    assert len(asked) == 1
    assert platform.percents == {OLD: 40, NEW: 60}


def test_others_may_change_the_endpoint_while_a_run_waits(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]]
) -> None:
    """The lease is free while the question waits, and the run's own again afterwards."""

    def meanwhile() -> None:
        with platform.lease_endpoint(ENDPOINT, "roll-back", 0):
            pass

    held: list[list[str]] = []
    platform.on_set_traffic = lambda _: held.append(list(platform.leases))
    answers(approval(), meanwhile)
    assert run_flow("2", **TRAFFIC).report.outcome == "Completed"
    assert all(len(owners) == 1 for owners in held)
    assert platform.leases == []


def test_refused_traffic_takes_the_candidate_away(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]]
) -> None:
    """A refusal ends the run Refused, leaves everything as it was, and the version may be tried again."""
    answers(approval(granted=False, reason="rude"))
    ended = run_flow("2", **TRAFFIC)
    assert ended.outcome.name == "Refused"
    assert ended.report.reason == "Version 2 got no traffic: refused by maria: rude."
    assert platform.rejected == {}
    unchanged(platform)


def test_refused_candidate_of_a_killed_waiter_goes_too(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]]
) -> None:
    """What a run that died while it waited left deployed, and has never served, bills nobody after a refusal."""
    platform.serve(NEW, "2", 0)
    answers(approval(granted=False))
    run_flow("2", **TRAFFIC)
    unchanged(platform)


def test_refusal_may_reject_the_version(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]]
) -> None:
    """When the answer says so, the version is rejected in the registry, with who said it."""
    answers(approval(granted=False, rejects=True, reason="rude"))
    assert "and was rejected" in run_flow("2", **TRAFFIC).report.reason
    assert platform.rejected == {"2": "maria: rude"}
    unchanged(platform)


def test_roll_back_gives_no_traffic_to_what_waits(
    platform: FakePlatform,
    run_flow: Callable[..., Any],
    answers: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While a version waits for approval, a roll-back goes to the one that served before, and is not undone."""
    monkeypatch.setattr(tasks.roll_back, "connect", lambda place: platform)
    run_flow("2")
    config = PipelineConfig.model_validate({"name": ENDPOINT, "data": {"source": "x.jsonl"}})
    answers(approval(), lambda: tasks.roll_back.roll_back(config, "rude") and None)
    ended = run_flow("3", **TRAFFIC)
    assert "was changed while the run waited" in ended.report.reason
    assert platform.percents == {OLD: 100, NEW: 0}
    assert platform.rejected == {"2": "rude"}
    assert platform.record is None


def _other_version_serves(platform: FakePlatform) -> None:
    platform.serve("v9-16", "9", 0)
    platform.set_traffic(ENDPOINT, {"v9-16": 100}, "another run")


def _frozen(platform: FakePlatform) -> None:
    platform.frozen = "incident"


@pytest.mark.parametrize(
    ("meanwhile", "said"),
    [
        (_other_version_serves, r"traffic of support was changed while the run waited, from .*v1-16.* to .*v9-16"),
        (_frozen, "frozen: incident"),
        (lambda platform: platform.rejected.update({"2": "bad"}), "Version 2 was rejected: bad"),
        (lambda platform: platform.delete_deployment(ENDPOINT, NEW), "v2-16 was deleted since it was shown"),
        (lambda platform: platform.fails_to_start.update({NEW: "crashed"}), "v2-16 is failed since it was shown"),
        (lambda platform: setattr(platform, "is_gone", True), "support was deleted while the run waited"),
    ],
)
def test_approval_of_what_is_no_longer_so_is_refused(
    platform: FakePlatform,
    run_flow: Callable[..., Any],
    answers: Callable[..., list[str]],
    meanwhile: Callable[[FakePlatform], None],
    said: str,
) -> None:
    """What changed while the question waited is seen before traffic moves: the candidate gets none, and goes."""
    answers(approval(), lambda: meanwhile(platform))
    ended = run_flow("2", **TRAFFIC)
    assert ended.outcome.name == "Refused"
    with pytest.raises(AssertionError, match=said):
        raise AssertionError(ended.report.reason)
    assert all(NEW not in split for split in platform.splits)
    assert NEW not in platform.deployments or platform.is_gone
    assert platform.leases == []


def test_version_that_got_the_traffic_meanwhile_is_left_alone(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]]
) -> None:
    """When another run with the same content has moved the traffic already, an approval has nothing left to do."""
    answers(approval(), lambda: platform.percents.update({OLD: 0, NEW: 100}))
    assert run_flow("2", **TRAFFIC).report.outcome == "Completed"
    assert platform.splits == []
    assert platform.percents[NEW] == 100


@pytest.mark.parametrize("granted", [True, False])
def test_run_that_was_overtaken_still_cleans_up(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]], granted: bool
) -> None:
    """Another run's rollout replaced the record of this one, whose candidate is still its own to serve or take away."""
    other = RolloutRecord(run_id="other", candidate="v9-16", traffic_before=((OLD, 100),))
    answers(approval(granted), lambda: platform.record_rollout(ENDPOINT, other))
    run_flow("2", **TRAFFIC)
    assert platform.percents == ({OLD: 0, NEW: 100} if granted else {OLD: 100})
    assert platform.record is None


def test_interrupted_while_it_waits_it_takes_the_candidate_away(
    platform: FakePlatform, run_flow: Callable[..., Any], answers: Callable[..., list[str]]
) -> None:
    """Ctrl-C and `phiflow cancel` leave everything as it was."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    answers(approval(), interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_flow("2", **TRAFFIC)
    unchanged(platform)


def test_interrupted_while_another_run_has_the_endpoint_it_touches_nothing(
    platform: FakePlatform,
    run_flow: Callable[..., Any],
    answers: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another run moves traffic to the same deployment: an interrupted run does not wait for it, nor undo it."""

    def interrupt() -> None:
        platform.leases.append("run other")
        platform.record = RolloutRecord(run_id="other", candidate=NEW, traffic_before=((OLD, 100),))
        platform.percents = {OLD: 50, NEW: 50}
        raise KeyboardInterrupt

    answers(approval(), interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_flow("2", **TRAFFIC)
    assert platform.percents == {OLD: 50, NEW: 50}
    assert platform.record is not None
    assert platform.leases == ["run other"]


@pytest.mark.parametrize(
    "given", [{}, {"reason": "fine"}, {"answer": "yes"}, {"answer": ""}, {"answer": "approve", "extra": 1}]
)
def test_form_has_no_default(given: dict[str, Any]) -> None:
    """An answer is approve or refuse, and nothing else, nor nothing, is one."""
    for form in FORMS.values():
        with pytest.raises(ValidationError):
            form.model_validate(given)
        assert form.with_initial_data(description="?").model_json_schema()["required"] == ["answer"]


def test_only_a_refusal_before_traffic_rejects() -> None:
    """An approval rejects nothing, whatever else the form says; before a job there is nothing to reject."""
    assert "reject_version" not in Answer.model_fields
    config = FORMS["traffic"].model_validate({"answer": "approve", "reject_version": True})
    assert not tasks.approval._approval(config).rejects_version


def test_price_of_waiting_is_said_where_it_bills() -> None:
    """On Azure the question before traffic says what both deployments bill by the hour; on this machine, nothing."""
    azure = {"kind": "azure", "subscription_id": "s", "resource_group": "g", "workspace": "w"}
    values = {"name": ENDPOINT, "data": {"source": "x.jsonl"}}
    assert tasks.questions.waiting_costs(PipelineConfig.model_validate(values), 2) == ""
    told = tasks.questions.waiting_costs(PipelineConfig.model_validate({**values, "platform": azure}), 2)
    assert "Both deployments bill while this waits, each 1 x Standard_E4s_v3" in told
    assert "dollars an hour" in told
