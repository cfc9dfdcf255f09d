"""The values: what names a job, what they refuse, and that Prefect can keep and return each of them."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from typing import Any

import fakes
import pytest
from fakes import MADE, data_manifest, job_spec, model_version, training_result
from prefect.serializers import CompressedJSONSerializer, JSONSerializer, PickleSerializer
from pydantic import TypeAdapter

from tasks import job_spec as job_spec_module
from tasks.config import ModelConfig, PipelineConfig
from tasks.job_spec import trainer_digest, training_spec
from tasks.platforms import errors, refs, upkeep
from tasks.platforms.refs import JobKind, JobSpec, TrafficSplit
from trainer.config import TrainConfig

ENDED = {"completed", "failed", "cancelled"}


def spec_of(config: PipelineConfig, *, base_digest: str = "b" * 64, data: Any = None) -> JobSpec:
    """The training job that a configuration asks for."""
    whole = job_spec()
    base = replace(whole.model, base=config.model.base, digest=base_digest)
    return training_spec(config, base, data or whole.data, whole.environment, whole.compute)


def configuration(**sections: Any) -> PipelineConfig:
    """A configuration with these sections."""
    return PipelineConfig.model_validate({"name": "support", "data": {"source": "/x.jsonl"}, **sections})


def test_key_names_the_run_and_its_content() -> None:
    """The key is the run's name and a lower-case hex digest, and the same for the same content."""
    key = spec_of(configuration()).key
    assert key == spec_of(configuration()).key
    name, _, digest = key.rpartition("-")
    assert name == "support"
    assert len(digest) == 16
    assert set(digest) <= set("0123456789abcdef")


@pytest.mark.parametrize(
    "changed",
    [
        spec_of(configuration(), base_digest="another model, or another revision of it"),
        spec_of(configuration(train={"learning_rate": 1e-3})),
        spec_of(configuration(train={"seed": 1})),
        spec_of(configuration(), data=data_manifest(digest="one row differs")),
        replace(job_spec(), code_digest="another trainer"),
        replace(job_spec(), environment=replace(fakes.ENVIRONMENT, version="another lock")),
        replace(job_spec(), environment=replace(fakes.ENVIRONMENT, name="training-gpu")),
        replace(job_spec(), compute=replace(job_spec().compute, size="Standard_NC24ads_A100_v4")),
        replace(job_spec(), kind=JobKind.EVALUATION),
        replace(job_spec(), run_name="other"),
    ],
    ids=["model", "learning rate", "seed", "data", "code", "lock", "env", "compute", "kind", "name"],
)
def test_key_changes_with_what_changes_the_result(changed: JobSpec) -> None:
    """Everything that decides a job's result decides its name."""
    assert changed.key not in (spec_of(configuration()).key, job_spec().key)


@pytest.mark.parametrize(
    "sections",
    [
        {"rollout": {"hold_seconds": 77, "steps": [50, 100]}},
        {"chat": {"port": 9000}},
        {"serving": {"request_timeout_seconds": 3}},
        {"gate": {"min_examples": 3}},
        {"model": {"name": "other-name"}},
        {"endpoint": {"name": "other-name"}},
        {"compute": {"max_instances": 4}},
    ],
)
def test_key_does_not_change_with_anything_else(sections: dict[str, Any]) -> None:
    """Rollout, chat, time-outs and names of what comes later do not train again."""
    assert spec_of(configuration(**sections)).key == spec_of(configuration()).key


def test_key_ignores_where_things_lie_and_who_made_them() -> None:
    """Another state folder, or values that were found rather than made, give the same name."""
    spec = job_spec()
    moved = replace(
        spec,
        settings=json.dumps(json.loads(spec.settings), indent=2),
        model=replace(spec.model, location="/elsewhere", origin=refs.Origin(reused=True, reason="found")),
        data=data_manifest(train_file="/elsewhere/train.jsonl", num_rejected=3),
        environment=replace(spec.environment, location="/elsewhere"),
    )
    assert moved.key == spec.key


def test_evaluation_is_named_by_its_test_set_alone() -> None:
    """New training data does not evaluate the champion again; another test set does."""
    spec = job_spec(kind=JobKind.EVALUATION)
    assert replace(spec, data=data_manifest(digest="more training data")).key == spec.key
    assert replace(spec, data=data_manifest(test_sha256="another")).key != spec.key


def test_trainer_digest_follows_its_source(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One changed byte in any of the trainer's source files is another digest; other files do not count."""
    package = tmp_path / "trainer"
    (package / "data").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "data" / "shapes.py").write_text("A = 1\n")
    monkeypatch.setattr(job_spec_module.trainer, "__file__", str(package / "__init__.py"))
    before = trainer_digest()
    assert sorted(before) == ["__init__.py", "data/shapes.py"]
    (package / "notes.txt").write_text("x")
    assert trainer_digest() == before
    (package / "data" / "shapes.py").write_text("A = 2\n")
    assert trainer_digest() != before


@pytest.mark.parametrize(
    ("percents", "refused"),
    [
        ((), False),
        ((("v1", 100),), False),
        ((("v1", 90), ("v2", 10)), False),
        ((("v1", 0), ("v2", 0)), False),
        ((("v1", 99),), True),
        ((("v1", 60), ("v2", 60)), True),
        ((("v1", 150), ("v2", -50)), True),
    ],
)
def test_traffic_adds_up(percents: tuple[tuple[str, int], ...], refused: bool) -> None:
    """Traffic is 0 or 100 percent in all, each share between the two."""
    if refused:
        with pytest.raises(ValueError, match="percent"):
            TrafficSplit(endpoint="support", percents=percents, origin=MADE)
    else:
        TrafficSplit(endpoint="support", percents=percents, origin=MADE)


def test_main_deployment_has_the_most_traffic() -> None:
    """The main deployment is the one with the most traffic; there is none without traffic."""

    def main(*percents: tuple[str, int]) -> str:
        return TrafficSplit(endpoint="support", percents=percents, origin=MADE).main

    assert main(("v1", 90), ("v2", 10)) == "v1"
    assert main(("v1", 10), ("v2", 90)) == "v2"
    assert main(("v1", 0)) == main() == ""


@pytest.mark.parametrize("changes", [{"num_train": 0}, {"num_test": 0}])
def test_manifest_without_data_is_refused(changes: dict[str, int]) -> None:
    """There is no manifest of nothing to train on or to test on."""
    with pytest.raises(ValueError, match="must be positive, got 0"):
        data_manifest(**changes)


def test_values_are_equal_whatever_their_origin() -> None:
    """How a value came to be is no part of its identity."""
    found = refs.Origin(reused=True, reason="found")
    assert replace(model_version("1"), origin=found) == model_version("1")
    with pytest.raises(dataclasses.FrozenInstanceError):
        model_version("1").version = "2"  # type: ignore[misc]


def examples() -> list[Any]:
    """One of each value that passes between tasks, and of those inside them."""
    status = refs.DeploymentStatus(name="v1-a", model_version="1", state="ready", percent=100)
    split = TrafficSplit(endpoint="support", percents=(("v1-a", 100),), origin=MADE)
    record = refs.RolloutRecord(run_id="r", candidate="v2-b", traffic_before=(("v1-a", 100),))
    spec, result = job_spec(), training_result()
    removal = upkeep.Removal(kind="endpoint", name="support", location="/e/support", machines=("Standard_E4s_v3",))
    remainder = upkeep.Remainder(kind="models", name="support", reason="they show what was served")
    return [
        MADE,
        spec,
        spec.data,
        spec.environment,
        spec.compute,
        spec.model,
        result,
        result.job,
        result.base,
        model_version("3", rejected="rüde"),
        refs.JobStatus(state=refs.JobState.RUNNING, step=3, log_tail=("a", "b")),
        refs.GateReport(
            metric="loss",
            passed=True,
            reason="better",
            base=3.0,
            candidate=1.0,
            champion=None,
            champion_version="",
            improvement_low=2.0,
            champion_worse_high=None,
            num_examples=20,
            model_digest="m",
            origin=MADE,
        ),
        refs.EndpointRef(name="support", url="http://127.0.0.1:8000/support", origin=MADE),
        refs.DeploymentRef(endpoint="support", name="v1-a", model_name="m", model_version="1", origin=MADE),
        split,
        record,
        status,
        refs.EndpointStatus(
            name="support", url="", deployments=(status,), traffic=split, rollout=record, history=("a",)
        ),
        refs.DeploymentMetrics(deployment="v1-a", num_requests=1, num_errors=0, p95_seconds=None),
        refs.Answer(text="yes", deployment="v1-a", model_version="1", seconds=0.1),
        refs.ConnectionRef(name="phiflow", endpoint="support", url="http://x", origin=MADE),
        refs.ChatService(url="http://127.0.0.1:8080", endpoint="support", origin=MADE),
        upkeep.Check(name="quota", outcome=upkeep.Outcome.WARN, found="0 of 24", fix="ask"),
        upkeep.ResourceChange(action="create", kind="key vault", name="phi", location="/subscriptions/s"),
        upkeep.Leftover(kind=upkeep.LeftoverKind.JOB, name="job", reason="old", location="/jobs/job"),
        removal,
        remainder,
        upkeep.TearDown(scope=upkeep.Scope.ALL, removals=(removal,), remainders=(remainder,)),
    ]


def test_examples_are_complete() -> None:
    """Every value of the port has an example here."""
    values = {kind for kind in (*vars(refs).values(), *vars(upkeep).values()) if dataclasses.is_dataclass(kind)}
    assert values == {type(example) for example in examples()}


@pytest.mark.parametrize("serializer", [PickleSerializer(), JSONSerializer(), CompressedJSONSerializer()])
@pytest.mark.parametrize("value", examples(), ids=lambda value: type(value).__name__)
def test_values_survive_prefect(value: Any, serializer: Any) -> None:
    """A value that Prefect has kept comes back equal, its origin included, and as its own type."""
    back = serializer.loads(serializer.dumps(value))
    assert type(back) is type(value)
    assert back == value
    assert dataclasses.asdict(back) == dataclasses.asdict(value)


@pytest.mark.parametrize("value", examples(), ids=lambda value: type(value).__name__)
def test_values_survive_json(value: Any) -> None:
    """A value becomes JSON and is built from it again, tuples as tuples."""
    adapter = TypeAdapter(type(value))
    back = adapter.validate_json(adapter.dump_json(value))
    assert back == value
    assert dataclasses.asdict(back) == dataclasses.asdict(value)


def test_configuration_survives_json() -> None:
    """A configuration goes to a worker as JSON and comes back equal, the trainer's part included."""
    config = configuration(train={"learning_rate": 5e-6}, rollout={"steps": [20, 100]})
    assert PipelineConfig.model_validate_json(config.model_dump_json()) == config
    assert PipelineConfig.model_validate(config.model_dump(mode="json")) == config
    assert isinstance(config.train, TrainConfig)
    assert config.model == ModelConfig()


@pytest.mark.parametrize(
    "kind",
    [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.PhiflowError)],
    ids=lambda kind: kind.__name__,
)
def test_errors_survive_prefect(kind: type[errors.PhiflowError]) -> None:
    """An error that ended a task comes back with its message, its fix, its detail and its exit code."""
    serializer = PickleSerializer()
    back = serializer.loads(serializer.dumps(kind("it broke", fix="mend it", detail=("line 1",))))
    assert type(back) is kind
    assert (back.message, back.fix, back.detail) == ("it broke", "mend it", ("line 1",))
    assert str(back) == "it broke mend it"
    assert back.exit_code in (2, 3, 4)
    assert back.retryable == (kind is errors.TransientPlatformError)


def test_ended_states() -> None:
    """A job has ended when it completed, failed or was cancelled."""
    assert {str(state) for state in refs.JobState if state.ended} == ENDED
