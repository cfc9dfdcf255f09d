"""What a plan says of each step, from what is there and what cannot be looked up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
import pytest
from estimates import here, on_azure, prepared
from fakes import FakePlatform

from flows import survey as survey_module
from flows.plan import Plan, make_plan
from flows.plan_steps import PlanStep
from flows.show_plan import show_plan
from tasks.config import PipelineConfig
from tasks.lineage import lineage_of
from tasks.platforms.errors import (
    ConfigError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    PhiflowError,
    TransientPlatformError,
)
from tasks.platforms.refs import (
    BaseModelRef,
    ChatService,
    ComputeRef,
    DataManifest,
    DeploymentRef,
    EnvironmentRef,
    JobRef,
    JobState,
    JobStatus,
    ModelVersion,
    Origin,
)

REUSED = Origin(reused=True, reason="found")
MADE = Origin(reused=False, reason="new")
BASE = BaseModelRef(base="builtin/tiny-phi3", revision="", digest="b" * 64, location="", origin=REUSED)


class LookedAt(FakePlatform):
    """A platform that a plan looks at; `fails` gives the error of a method, and nothing else may be called."""

    def __init__(self, data: DataManifest) -> None:
        super().__init__()
        self.data = data
        self.fails: dict[str, PhiflowError] = {}
        self.status: JobStatus | None = None
        self.versions: tuple[ModelVersion, ...] | None = ()
        self.is_deployed = False
        self.chat: ChatService | None = None
        self.has_endpoint = False

    def look(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]

    def find_environment(self, name: str) -> EnvironmentRef:
        self.look("find_environment")
        return EnvironmentRef(name=name, version="e" * 16, location=f"azureml:{name}:e", origin=MADE)

    def find_compute(self, compute: Any) -> ComputeRef:
        self.look("find_compute")
        return ComputeRef(name="cluster", size=compute.size, max_instances=1, origin=REUSED)

    def find_base_model(self, model: Any, environment: EnvironmentRef) -> BaseModelRef:
        self.look("find_base_model")
        return BASE

    def find_data(self, data: Any, base: BaseModelRef, environment: EnvironmentRef, length: int) -> DataManifest:
        self.look("find_data")
        return self.data

    def latest_job(self, key: str) -> JobRef | None:
        return replace(fakes.job_ref(), name=key, key=key) if self.status else None

    def read_job(self, job: JobRef) -> JobStatus:
        assert self.status is not None
        return self.status

    def read_job_result(self, job: JobRef) -> dict[str, Any]:
        return {"model_digest": "2" * 64}

    def find_models(self, name: str) -> tuple[ModelVersion, ...] | None:
        return self.versions

    def find_deployment(self, endpoint: str, model: ModelVersion, serving: Any, environment: Any) -> DeploymentRef:
        origin = REUSED if self.is_deployed else MADE
        return DeploymentRef(
            endpoint=endpoint, name=f"v{model.version}-abc", model_name="m", model_version=model.version, origin=origin
        )

    def read_endpoint(self, name: str) -> Any:
        return super().read_endpoint(name) if self.has_endpoint else None

    def read_chat(self, endpoint: str) -> ChatService | None:
        return self.chat


@pytest.fixture
def platform(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LookedAt:
    """The place that every configuration connects to."""
    tokens = {"tokenizer": "t", "mean": 40.0, "p50": 40, "p95": 60, "max": 80, "truncated_share": 0.0}
    found = LookedAt(prepared(tmp_path / "data", [160] * 133, 43, tokens))
    monkeypatch.setattr(survey_module, "connect", lambda config: found)
    monkeypatch.setattr(survey_module, "require_place", lambda config: found.look("require_place"))
    return found


def steps(plan: Plan) -> dict[str, PlanStep]:
    """The steps by name; of the environments the first."""
    return {step.step: step for step in reversed(plan.steps)}


def planned(config: PipelineConfig) -> dict[str, PlanStep]:
    """The steps of a configuration's plan."""
    return steps(make_plan(config, {}))


def serve(platform: LookedAt, version: str, name: str = "") -> None:
    """Have an endpoint that gives this version its traffic."""
    platform.has_endpoint = True
    platform.serve(name or f"v{version}-abc", version, 100)


def test_first_run_creates_everything(platform: LookedAt) -> None:
    """On an empty place every step says that it makes something, under the name it will have."""
    told = planned(on_azure())
    made = {step for step, one in told.items() if one.action == "create"}
    assert made == {"environment", "data", "job", "endpoint", "model", "deployment", "traffic", "chat app"}
    assert told["model"].name == "support version 1"
    assert told["deployment"].name == "v1-<digest>"
    assert told["job"].name.startswith("support-")
    assert told["comparison"].action == "nothing"
    assert (told["compute"].name, told["compute"].action) == ("cluster (Standard_NC24ads_A100_v4)", "reuse")


def test_second_run_adopts_everything(platform: LookedAt) -> None:
    """With the job completed, its model registered, deployed and serving, nothing is made."""
    platform.status = JobStatus(state=JobState.COMPLETED)
    platform.versions = (fakes.model_version("1"), fakes.model_version("2"))
    platform.is_deployed = True
    platform.chat = ChatService(url="http://127.0.0.1:8080", endpoint="support", origin=REUSED)
    serve(platform, "2")
    told = planned(on_azure())
    assert {step: told[step].action for step in ("job", "model", "deployment", "traffic", "chat app")} == {
        "job": "reuse",
        "model": "adopt",
        "deployment": "adopt",
        "traffic": "nothing",
        "chat app": "adopt",
    }
    assert told["model"].name == "support version 2"
    assert told["comparison"].reason == "the candidate is the version now serving"


def test_next_version_changes_the_traffic(platform: LookedAt) -> None:
    """With another version serving, the new one is compared with it and takes its traffic in the configured steps."""
    platform.versions = (fakes.model_version("1"),)
    serve(platform, "1")
    told = planned(on_azure(rollout={"steps": [25, 100], "hold_seconds": 60}))
    assert (told["traffic"].action, told["traffic"].name) == ("change", "25 % -> 100 %")
    assert "v1-abc is kept at 0 % for roll-back" in told["traffic"].reason
    assert told["comparison"].name == "of version 1"
    assert told["model"].name == "support version 2"
    assert told["endpoint"].action == "reuse"


@pytest.mark.parametrize(
    ("state", "action", "name"),
    [
        (JobState.RUNNING, "adopt", ""),
        (JobState.QUEUED, "adopt", ""),
        (JobState.FAILED, "create", "-a2"),
        (JobState.CANCELLED, "create", "-a2"),
        (JobState.COMPLETED, "reuse", ""),
    ],
)
def test_job_is_adopted_or_followed(platform: LookedAt, state: JobState, action: str, name: str) -> None:
    """A job that runs or completed is adopted; one that failed is followed by the next attempt."""
    platform.status = JobStatus(state=state)
    told = planned(here())["job"]
    assert told.action == action
    assert told.name.endswith(name)


def test_adopted_job_is_not_paid_again(platform: LookedAt) -> None:
    """The plan of a run that adopts its job has no training in its time and money."""
    platform.status = JobStatus(state=JobState.RUNNING)
    assert "train" not in {stage.name for stage in make_plan(on_azure(), {}).estimate.stages}


def test_plan_starts_where_the_run_would(platform: LookedAt) -> None:
    """With start_from: champion the plan names the version that serves as the base, and why."""
    platform.versions = (fakes.model_version("2", lineage=lineage_of(on_azure().model, BASE)),)
    serve(platform, "2")
    model = {"base": on_azure().model.base, "start_from": "champion"}
    base = planned(on_azure(model=model))["base model"]
    assert base.name == "support:2"
    assert base.reason == "version 2, which serves, was trained on other data or with other settings"
    platform.versions = None
    job = planned(on_azure(model=model))["job"]
    assert job.action == "not known"


def test_frozen_endpoint_and_rejected_version_get_no_traffic(platform: LookedAt) -> None:
    """A freeze, and a version that a person rejected, end the plan before traffic, with the reason."""
    serve(platform, "1")
    platform.frozen = "audit"
    assert planned(here())["traffic"].name == "the endpoint is frozen: audit"
    platform.frozen = ""
    platform.status = JobStatus(state=JobState.COMPLETED)
    platform.versions = (fakes.model_version("1"), fakes.model_version("2", rejected="it lied"))
    assert planned(here())["traffic"].reason == "it lied"


def test_approvals_are_steps(platform: LookedAt) -> None:
    """Where the run would wait for a person is in the plan, with how long and what happens then."""
    told = [step for step in make_plan(on_azure(approve=["submit", "traffic"]), {}).steps if step.step == "approval"]
    assert [step.name for step in told] == ["before the job is submitted", "before the new version takes traffic"]
    assert told[0].reason == "waits up to 24 h for a person, then refuses"


@pytest.mark.parametrize(
    "error",
    [NotFoundError("No workspace."), PermissionDeniedError("Nobody is signed in."), TransientPlatformError("No net.")],
    ids=lambda error: type(error).__name__,
)
def test_plan_needs_no_workspace(platform: LookedAt, error: PhiflowError) -> None:
    """Before there is a workspace, or a way to it, the plan says what it could not look up, and still counts."""
    platform.fails["require_place"] = error
    plan = make_plan(on_azure(), {})
    assert plan.found.not_looked_up == {"platform": f"{error} A workspace that is not there yet is made by: phiflow up"}
    told = steps(plan)
    assert {told[step].action for step in ("compute", "job", "endpoint", "traffic")} == {"not known"}
    assert plan.estimate.dollars is not None and not plan.estimate.work.is_stand_in  # type: ignore[union-attr]


def test_plan_needs_no_hub(platform: LookedAt) -> None:
    """Without the hub: memory, and the time of a thousand conversations, and why the data was not read."""
    platform.fails["find_base_model"] = TransientPlatformError("The hub did not answer.")
    platform.fails["find_data"] = TransientPlatformError("The hub did not answer about the data.")
    plan = make_plan(on_azure(), {})
    assert plan.found.not_looked_up["data"] == "The hub did not answer about the data."
    assert plan.estimate.memory is not None and plan.estimate.memory.fits == "yes"
    assert plan.per_thousand is not None
    document = plan.document()
    assert document["data"] is None
    assert document["per_thousand_conversations"]["seconds"]["low"] > 0


@pytest.mark.parametrize("error", [ConflictError("Another size."), ConfigError("No such model.")], ids=str)
def test_mistake_ends_the_plan(platform: LookedAt, error: PhiflowError) -> None:
    """What would end the run ends the plan: a cluster that differs, a model that there is not."""
    platform.fails["find_compute"] = error
    with pytest.raises(type(error)):
        make_plan(on_azure(), {})


def test_registry_that_does_not_run_is_not_started(platform: LookedAt) -> None:
    """On this machine the next version's number is not told when that would start the registry."""
    platform.versions = None
    assert "the registry does not run now" in planned(here())["model"].reason


def test_output_has_what_bills_first(platform: LookedAt, capsys: pytest.CaptureFixture[str]) -> None:
    """In the terminal: what bills afterwards, then the run's own cost, the refusal of the cap, the steps, the sums."""
    plan = make_plan(on_azure(cost={"max_run": 0.01}), {"name": "test"})
    show_plan(plan)
    text = capsys.readouterr().out
    wanted = ["Afterwards: ", "This run, once: ", "cost.max_run is 0.01", "Steps", "Work", "Memory: It fits", "Assumed"]
    places = [text.index(part) for part in wanted]
    assert places == sorted(places)
    assert text.lstrip().startswith("Afterwards: 0.25 dollars an hour")
    assert "name = 'support'  (test)" in text


def test_document_says_the_same(platform: LookedAt) -> None:
    """The JSON has the steps, the estimate and the cap's answer, and is JSON."""
    told = json.loads(json.dumps(make_plan(on_azure(cost={"max_run": 0.01}, train={"packing": False}), {}).document()))
    assert {step["step"] for step in told["steps"]} >= {"job", "deployment", "traffic", "chat app"}
    assert told["estimate"]["dollars"]["high"] > 0.01
    assert told["cap"]["refuses"].startswith("The run may cost")
    assert told["estimate"]["work"]["num_steps"] == {"low": 102, "high": 102}


def test_prices_are_not_asked_for_this_machine(platform: LookedAt, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine nothing costs, so --refresh-prices asks nobody, and says so."""
    monkeypatch.setenv("PHIFLOW_PRICES_URL", "http://127.0.0.1:9")
    assert "nothing on this machine costs" in make_plan(here(), {}, refresh_prices=True).refreshed
