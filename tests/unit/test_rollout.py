"""The rollout: a candidate gets traffic only while it answers as evaluated, and any doubt restores what was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from fakes import ENDPOINT, ENVIRONMENT, FakePlatform, broken, model_version, training_result
from rollout_flow import OLD, PLACE, plain, unchanged

import tasks.restore
import tasks.rollout
from tasks.config import RolloutConfig, ServingConfig
from tasks.platforms.errors import ConflictError, Failure, RolloutError, TransientPlatformError
from tasks.platforms.refs import ModelVersion, RolloutRecord

LIMITS = RolloutConfig(hold_seconds=0)


def test_healthy_rollout_moves_traffic_in_steps(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """A healthy candidate gets traffic step by step, the old one keeps the rest, then stays for roll-back."""
    ended = run_flow()
    assert platform.splits == [{"v2-16": 10, OLD: 90}, {"v2-16": 50, OLD: 50}, {"v2-16": 100}]
    assert platform.percents == {OLD: 0, "v2-16": 100}
    assert platform.record is None
    assert ended.report.outcome == "Completed"
    assert ended.report.endpoint.traffic.main == "v2-16"


def test_first_deployment_gets_all_traffic_at_once(run_flow: Callable[..., Any], platform: FakePlatform) -> None:
    """Where nothing serves there is nothing to share traffic with; the probe comes first all the same."""
    platform.deployments.clear()
    platform.percents.clear()
    run_flow()
    assert platform.splits == [{"v2-16": 100}]


def test_failed_first_deployment_leaves_nothing(run_flow: Callable[..., Any], platform: FakePlatform) -> None:
    """A first deployment that fails after it got its traffic is taken away again."""
    platform.deployments.clear()
    platform.percents.clear()

    def interrupt(percents: dict[str, int]) -> None:
        platform.on_set_traffic = lambda percents: None
        raise KeyboardInterrupt

    platform.on_set_traffic = interrupt
    with pytest.raises(KeyboardInterrupt):
        run_flow()
    assert platform.deployments == {}
    assert platform.record is None


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (broken, "failed a probe: Endpoint support answered 503"),
        (lambda question: "  \n", "empty answer to all 6 probes"),
        (lambda question: "something else", "0 of 6 probes"),
        (lambda question: question, "0 of 6 probes"),
    ],
)
def test_failed_probe_restores_traffic(
    platform: FakePlatform, run_flow: Callable[..., Any], answer: Callable[[str], str], said: str
) -> None:
    """A failed probe restores traffic: the candidate never has any, and is taken away."""
    platform.answers["v2-16"] = answer
    with pytest.raises(RolloutError, match=said) as caught:
        run_flow()
    assert "\n" not in str(caught.value)
    assert platform.splits == []
    assert platform.deleted == ["v2-16"]
    unchanged(platform)


def test_deployment_that_does_not_start_is_taken_away(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """A server that does not start, or not in time, is named with its reason and deleted."""
    platform.fails_to_start["v2-16"] = "out of memory"
    with pytest.raises(RolloutError, match="v2-16 on support did not start: out of memory"):
        run_flow()
    unchanged(platform)
    platform.fails_to_start.clear()
    platform.never_ready.add("v2-16")
    with pytest.raises(RolloutError, match=r"not ready within 0 s\. Raise serving\.start_timeout_seconds"):
        run_flow(serving={"start_timeout_seconds": 0.05})
    unchanged(platform)


def test_failed_start_has_its_class_and_what_to_do(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """What the platform knows of a failed start is in the error: the class, and what to do."""
    platform.fails_to_start["v2-16"] = "no machine of that size"
    with pytest.raises(RolloutError, match="Choose a larger size") as caught:
        run_flow()
    assert caught.value.failure == Failure.CAPACITY


def test_candidate_that_cannot_be_deleted_hides_no_error(
    platform: FakePlatform, run_flow: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """When the candidate stays, the run ends with its own error, and the log says what bills and how to end it."""
    platform.answers["v2-16"] = broken
    platform.is_stuck = True
    with pytest.raises(RolloutError, match="failed a probe"):
        run_flow()
    assert "It bills until it is deleted: az delete" in caplog.text
    assert platform.percents == {OLD: 100, "v2-16": 0}
    assert platform.record is None


def test_traffic_that_cannot_be_put_back_is_said_beside_the_cause(
    platform: FakePlatform, run_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both are in the error, and the record of the way back stays for the next run."""
    set_traffic = platform.set_traffic

    def refuses_to_go_back(endpoint: str, percents: dict[str, int], reason: str) -> Any:
        if "restored" in reason:
            raise TransientPlatformError("The endpoint answers 503.")
        return set_traffic(endpoint, percents, reason)

    def breaks(percents: dict[str, int]) -> None:
        platform.answers["v2-16"] = broken

    platform.on_set_traffic = breaks
    monkeypatch.setattr(platform, "set_traffic", refuses_to_go_back)
    with pytest.raises(RolloutError, match=r"v2-16 failed 1 of 1 probes.* could not be put back: The endpoint answ"):
        run_flow()
    assert platform.record is not None
    assert platform.deleted == []


def test_unfinished_deployment_of_a_killed_run_is_taken_away_when_it_fails(
    platform: FakePlatform, run_flow: Callable[..., Any]
) -> None:
    """A run adopts what a killed one began to deploy, and deletes it when it never gets ready."""
    platform.serve("v2-16", "2", 0)
    platform.never_ready.add("v2-16")
    with pytest.raises(RolloutError, match="not ready within 0 s"):
        run_flow(serving={"start_timeout_seconds": 0.05})
    unchanged(platform)


def test_candidate_that_stays_is_told_with_its_cost(
    platform: FakePlatform, run_flow: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A deployment that has served before the run stays without traffic, and the log says what it costs."""
    platform.serve("v2-16", "2", 0)
    platform.history.append("then v2-16=100%")
    platform.answers["v2-16"] = broken
    platform.cost = "It bills by the hour."
    with pytest.raises(RolloutError):
        run_flow()
    assert "Left deployment=v2-16" in caplog.text
    assert "It bills by the hour." in caplog.text


def test_old_deployment_that_cannot_be_retired_fails_no_run(
    platform: FakePlatform, run_flow: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """The rollout is over when traffic has moved; what could not be deleted is told."""
    platform.is_stuck = True
    assert run_flow(rollout={"keep_previous": 0}).report.outcome == "Completed"
    assert f"Could not delete deployment={OLD}" in caplog.text


def test_failing_step_restores_traffic(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """A candidate that breaks at half of the traffic gives it all back and is taken away."""

    def breaks(percents: dict[str, int]) -> None:
        if percents.get("v2-16") == 50:
            platform.answers["v2-16"] = broken

    platform.on_set_traffic = breaks
    with pytest.raises(RolloutError, match=r"v2-16 failed 1 of 1 probes, rollout\.max_error_percent is 0"):
        run_flow()
    assert platform.splits[1:] == [{"v2-16": 50, OLD: 50}, {OLD: 100}]
    unchanged(platform)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), TransientPlatformError("gone")])
def test_cancelled_run_restores_traffic(
    platform: FakePlatform, run_flow: Callable[..., Any], error: BaseException
) -> None:
    """A run that is cancelled, or loses its platform, in the middle of a step restores traffic."""

    def interrupt(percents: dict[str, int]) -> None:
        if percents.get("v2-16") == 50:
            raise error

    platform.on_set_traffic = interrupt
    with pytest.raises(type(error)):
        run_flow()
    assert platform.splits[-1] == {OLD: 100}
    unchanged(platform)


def test_failed_rollout_keeps_a_deployment_that_was_there(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """A candidate that served before the run may be rolled back to, and is not deleted when the rollout fails."""
    platform.serve("v2-16", "2", 0)
    platform.history.append("then v2-16=100%")
    platform.answers["v2-16"] = broken
    with pytest.raises(RolloutError):
        run_flow()
    assert platform.percents == {OLD: 100, "v2-16": 0}
    assert platform.deleted == []


def test_second_model_gets_its_own_deployment(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """A second model gets its own deployment, and the same one again is adopted without touching traffic."""
    run_flow("2")
    assert set(platform.deployments) == {OLD, "v2-16"}
    platform.splits.clear()
    ended = run_flow("2")
    assert set(platform.deployments) == {OLD, "v2-16"}
    assert platform.splits == []
    assert ended.report.outcome == "Completed"


def test_adopted_deployment_says_why(platform: FakePlatform) -> None:
    """A deployment with all of the traffic already is reused, with a reason."""
    before = platform.read_endpoint(ENDPOINT)
    deployment = plain(tasks.rollout.deploy)(PLACE, before, model_version("1"), ServingConfig(), ENVIRONMENT)
    split = plain(tasks.rollout.shift_traffic)(PLACE, deployment, before, LIMITS, training_result())
    assert deployment.origin.reused
    assert platform.record is None
    assert split.origin.reused
    assert split.origin.reason == "v1-16 has all of the traffic already"


def test_rejected_version_is_refused(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """A version that was rejected ends the run Refused, with the reason, before anything is deployed."""
    ended = run_flow(model=model_version("2", rejected="rude answers"))
    assert ended.outcome.name == "Refused"
    assert ended.outcome.is_completed()
    assert ended.report.reason == "version 2 was rejected: rude answers"
    unchanged(platform)


def test_frozen_endpoint_is_left_alone(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """A frozen endpoint ends the run Refused; the version that serves there may be confirmed."""
    platform.frozen = "holiday"
    ended = run_flow("2")
    assert ended.outcome.name == "Refused"
    assert ended.report.reason == "endpoint support is frozen: holiday"
    unchanged(platform)
    assert run_flow("1").report.outcome == "Completed"
    unchanged(platform)


def test_frozen_endpoint_keeps_its_serving_configuration(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """The version that serves is not moved to another deployment while the endpoint is frozen."""
    platform.frozen = "holiday"
    ended = run_flow("1", serving={"max_concurrent_requests": 2})
    assert ended.outcome.name == "Refused"
    assert "frozen: holiday" in ended.report.reason
    unchanged(platform)
    assert platform.splits == []


def test_refused_by_the_gate_deploys_nothing(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """A candidate that the gate refuses is neither registered nor deployed."""
    ended = run_flow(gate_passes=False)
    assert ended.outcome.name == "Refused"
    assert ended.report.model is None
    unchanged(platform)


def test_previous_deployment_is_kept_and_older_ones_retired(
    platform: FakePlatform, run_flow: Callable[..., Any]
) -> None:
    """After a rollout the deployment that served before is kept, and those before it are deleted."""
    run_flow("2")
    run_flow("3")
    assert platform.percents == {"v2-16": 0, "v3-16": 100}
    assert platform.deleted == [OLD]
    run_flow("4", rollout={"keep_previous": 0})
    assert list(platform.deployments) == ["v4-16"]


def test_roll_back_target_is_who_served_last_not_the_highest_version(
    platform: FakePlatform, run_flow: Callable[..., Any]
) -> None:
    """The kept deployment is the one that served just before, even when a higher version idles."""
    platform.serve("v7-16", "7", 0)
    run_flow("2")
    assert platform.percents == {OLD: 0, "v2-16": 100}


def test_two_runs_do_not_change_an_endpoint_at_once(
    platform: FakePlatform, run_flow: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that cannot get the lease changes nothing, and its error names the holder."""
    with (
        platform.lease_endpoint(ENDPOINT, "run other", 0),
        pytest.raises(ConflictError, match="run other"),
    ):
        run_flow()
    unchanged(platform)


def test_killed_rollout_is_undone_by_the_next_run(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """Traffic that a killed run left half-way goes back before the next run looks at the endpoint."""
    platform.serve("v2-16", "2", 0)
    platform.set_traffic(ENDPOINT, {OLD: 50, "v2-16": 50}, "a run that was killed")
    platform.record = RolloutRecord(run_id="dead", candidate="v2-16", traffic_before=((OLD, 100),))
    plain(tasks.rollout.ensure_endpoint)(PLACE, ENDPOINT)
    assert platform.percents == {OLD: 100, "v2-16": 0}
    assert platform.record is None
    assert platform.leases == []


def test_only_its_own_rollout_is_undone_by_a_cancelled_run(platform: FakePlatform) -> None:
    """A run's id limits the undoing to that run's rollout; without a record nothing happens."""
    assert not tasks.restore.undo_recorded_rollout(platform, ENDPOINT)
    platform.record = RolloutRecord(run_id="mine", candidate="v2-16", traffic_before=((OLD, 100),))
    assert not tasks.restore.undo_recorded_rollout(platform, ENDPOINT, "another")
    assert platform.record is not None
    assert tasks.restore.undo_recorded_rollout(platform, ENDPOINT, "mine")
    assert platform.splits == []
    assert platform.record is None


def test_restore_without_a_rollout_changes_nothing(platform: FakePlatform) -> None:
    """An error before anything was deployed restores nothing, since nothing moved."""
    before = platform.read_endpoint(ENDPOINT)
    tasks.restore.restore_traffic(PLACE, before, RuntimeError("early"))
    assert platform.splits == []


def test_probes_are_limited_and_may_differ_a_little(platform: FakePlatform) -> None:
    """As many probes as configured are asked, and the share that must agree is the configuration's."""
    asked: list[str] = []

    def mostly_right(question: str) -> str:
        asked.append(question)
        return "no" if question == "question 1" else question.replace("question", "answer")

    platform.answers[OLD] = mostly_right
    before = platform.read_endpoint(ENDPOINT)
    deployment = plain(tasks.rollout.deploy)(PLACE, before, model_version("1"), ServingConfig(), ENVIRONMENT)
    probe = plain(tasks.rollout.probe_deployment)
    told = probe(PLACE, deployment, training_result(), RolloutConfig(num_probes=5))
    assert asked == [f"question {number}" for number in range(5)]
    assert told.origin.reason == "4 of 5 probes gave the evaluated answer"
    with pytest.raises(RolloutError, match=r"4 of 5 probes, rollout\.min_probe_match asks for 90%"):
        probe(PLACE, deployment, training_result(), RolloutConfig(num_probes=5, min_probe_match=0.9))


def test_probe_asks_with_the_tools_of_the_evaluation(platform: FakePlatform) -> None:
    """A conversation with tools is asked with them: without, the model is given another prompt."""
    tools = [{"type": "function", "function": {"name": "weather"}}]
    platform.samples = [{**sample, "tools": tools} for sample in platform.samples[:1]] + platform.samples[1:2]
    asked: list[Any] = []
    invoke = platform.invoke
    platform.invoke = lambda *args, **kwargs: asked.append(kwargs["tools"]) or invoke(*args, **kwargs)
    before = platform.read_endpoint(ENDPOINT)
    deployment = plain(tasks.rollout.deploy)(PLACE, before, model_version("1"), ServingConfig(), ENVIRONMENT)
    plain(tasks.rollout.probe_deployment)(PLACE, deployment, training_result(), RolloutConfig())
    assert asked == [tools, ()]


def test_without_samples_the_deployment_must_still_answer(platform: FakePlatform, run_flow: Callable[..., Any]) -> None:
    """An evaluation without sample answers does not spare the candidate its probe."""
    platform.samples = []
    platform.answers["v2-16"] = lambda question: ""
    with pytest.raises(RolloutError, match="empty answer"):
        run_flow()
    unchanged(platform)
    platform.answers.clear()
    assert run_flow().report.outcome == "Completed"


@pytest.mark.parametrize(
    ("served", "evaluated", "agree"),
    [
        ("Paris.", "Paris.", True),
        (" Paris.\n", "Paris.", True),
        ("Paris is the capital", "Paris is", True),
        ("x" * 40 + "tail", "x" * 40 + "another tail", True),
        ("x" * 39 + "a", "x" * 39 + "b", False),
        ("London.", "Paris.", False),
        ("Paris.", "", False),
        ("", "", True),
    ],
)
def test_agreement_of_answers(served: str, evaluated: str, agree: bool) -> None:
    """Answers agree when they begin alike for as long as both go on, up to a limit; nothing agrees with none."""
    assert tasks.rollout._agree(served, evaluated) is agree


@pytest.mark.parametrize(
    ("rejected", "frozen", "version", "objects"),
    [
        ("", "", "2", False),
        ("rude", "", "2", True),
        ("rude", "", "1", True),
        ("", "x", "2", True),
        ("", "x", "1", False),
    ],
)
def test_objections(platform: FakePlatform, rejected: str, frozen: str, version: str, objects: bool) -> None:
    """A rejected version, or any change of a frozen endpoint, is objected to."""
    platform.frozen = frozen
    status = platform.read_endpoint(ENDPOINT)
    model: ModelVersion = model_version(version, rejected=rejected)
    assert bool(tasks.rollout.objection_to_traffic(status, model)) is objects
