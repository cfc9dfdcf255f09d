"""Jobs in a workspace of the emulator, through the real SDK: submitted once, followed, ended, tried again.

A stand-in is run in the trainer's place: what the service makes of a job is tested here, not the training.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest

from tasks.config import AzurePlatformConfig, ComputeConfig
from tasks.platforms.connect import connect
from tasks.platforms.errors import ConflictError, Failure, PermissionDeniedError, PhiflowError
from tasks.platforms.refs import (
    BaseModelRef,
    DataManifest,
    EnvironmentRef,
    JobKind,
    JobRef,
    JobSpec,
    JobState,
    JobStatus,
)
from tests.contract.conftest import emulator_process, reached
from tests.contract.places import MADE

PROGRESS = {"event": "progress", "step": 3, "num_steps": 10, "loss": 1.5, "tokens_per_second": 90.0, "seconds_left": 7}
RESULT = {"metrics": {}, "model_digest": "d"}


def writes(**files: Any) -> str:
    """A command that writes files of JSON: into the result's folder, or events into the log folder."""
    lines = []
    for name, value in files.items():
        target = "logs/events.jsonl" if name == "events" else f"${{{{outputs.result}}}}/{name}.json"
        entries = value if isinstance(value, list) else [value]
        text = "\n".join(json.dumps(entry) for entry in entries)
        lines.append(f"mkdir -p logs && cat > {target} <<'END'\n{text}\nEND")
    return "\n".join(lines)


class Service:
    """The emulator and the platform that reaches it."""

    def __init__(self, process: Any, home: str) -> None:
        self.process = process
        self.config = AzurePlatformConfig(
            subscription_id=os.environ["AZURE_SUBSCRIPTION_ID"],
            resource_group=os.environ["AZURE_RESOURCE_GROUP"],
            workspace=os.environ["AZURE_ML_WORKSPACE"],
            poll_seconds=0.1,
            home=home,
        )
        self.platform = connect(self.config)
        self.compute = self.platform.ensure_compute(ComputeConfig(size="Standard_E4s_v3", max_instances=4))

    def runs(self, command: str, **more: Any) -> None:
        """Have the next job run a command in the trainer's place."""
        self.process.add_scenario("failed", match={"kind": "job"}, command=command, **more)

    def ended(self, job: JobRef, seconds: float = 40) -> JobStatus:
        """The status of a job once it has ended."""
        return self.until(job, lambda status: status.state.ended, seconds)

    def until(self, job: JobRef, holds: Callable[[JobStatus], bool], seconds: float = 40) -> JobStatus:
        """The first status for which something holds."""
        deadline = time.monotonic() + seconds
        while not holds(status := self.platform.read_job(job)):
            assert time.monotonic() < deadline, status
            time.sleep(0.1)
        return status


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One emulator for all tests of the module."""
    pytest.importorskip("azure.ai.ml", reason="the packages for Azure are not installed")
    from azure.ai.ml.entities import Environment

    folder = tmp_path_factory.mktemp("azure-jobs")
    with emulator_process(folder) as process, reached(process.env):
        service = Service(process, str(folder / "home"))
        workspace: Any = service.platform.workspace  # type: ignore[attr-defined]
        image = "mcr.microsoft.com/azureml/openmpi5.0-ubuntu24.04:20260901.v1"
        workspace.ml.environments.create_or_update(Environment(name="stand-in", version="1", image=image))
        for name in ("train", "test"):
            workspace.storage.write(f"phiflow/data/d/{name}.jsonl", b"{}\n")
        yield service


@pytest.fixture
def spec(service: Service, request: pytest.FixtureRequest) -> JobSpec:
    """A training job of this test's own."""
    uri = service.platform.workspace.storage.uri  # type: ignore[attr-defined]
    manifest = DataManifest(
        digest=request.node.name,
        train_file=uri("phiflow/data/d/train.jsonl"),
        test_file=uri("phiflow/data/d/test.jsonl"),
        manifest_file="manifest.json",
        train_sha256="a",
        test_sha256=request.node.name,
        num_train=1,
        num_test=1,
        num_rejected=0,
        origin=MADE,
    )
    return JobSpec(
        kind=JobKind.TRAINING,
        run_name="support",
        code_digest="c",
        settings="{}",
        model=BaseModelRef(base="org/model", revision="abc", digest="m", location="org/model", origin=MADE),
        data=manifest,
        environment=EnvironmentRef(name="stand-in", version="1", location="azureml:stand-in:1", origin=MADE),
        compute=service.compute,
    )


def test_job_is_followed_to_its_result(service: Service, spec: JobSpec) -> None:
    """Queue and preparation are told as such, then the trainer's progress; result and model lie in the storage."""
    ended = f"{writes(result=RESULT)}\necho m > ${{{{outputs.model}}}}/MLmodel"
    command = f"{writes(events=[{'event': 'stage', 'name': 'training'}, PROGRESS])}\nsleep 2\n{ended}"
    service.runs(command, seconds={"Queued": 0.6, "Preparing": 0.6})
    job = service.platform.submit_job(spec, "run-1")
    assert not job.origin.reused
    assert "runs/" in job.url
    seen: list[JobStatus] = []

    def has_ended(status: JobStatus) -> bool:
        seen.append(status)
        return status.state.ended

    final = service.until(job, has_ended)
    assert final.state == JobState.COMPLETED, final
    told = [(status.state, status.stage) for status in seen]
    assert any(state == JobState.QUEUED and "node of cluster" in stage for state, stage in told), told
    assert any(state == JobState.PREPARING and "image" in stage for state, stage in told), told
    (training, *_) = [status for status in seen if status.stage == "training"]
    assert (training.step, training.num_steps, training.loss, training.seconds_left) == (3, 10, 1.5, 7)
    result = service.platform.read_job_result(job)
    assert result["model_location"].endswith(f"/paths/phiflow/jobs/{job.name}/model")
    assert service.platform.read_events(job)[-1] == PROGRESS
    again = service.platform.submit_job(spec, "run-2")
    assert (again, again.origin.reused) == (job, True)
    assert service.platform.latest_job(spec.key) == job
    assert service.platform.find_jobs("run-1") == ()


def test_two_at_once_submit_one_job(service: Service, spec: JobSpec) -> None:
    """Two runners that submit the same at the same time have one job, which both find as theirs."""
    service.process.reset()
    service.runs("sleep 60")
    with ThreadPoolExecutor(2) as pool:
        jobs = list(pool.map(lambda run: connect(service.config).submit_job(spec, run), ("run-a", "run-b")))
    assert jobs[0] == jobs[1]
    assert sorted(job.origin.reused for job in jobs) == [False, True]
    assert service.process.count("PUT W/jobs/{name}") == 1
    for run in ("run-a", "run-b", "support"):
        assert jobs[0].name in {job.name for job in service.platform.find_jobs(run)}
    service.platform.cancel_job(jobs[0])
    assert service.ended(jobs[0]).state == JobState.CANCELLED


def test_lost_answer_is_adopted(service: Service, spec: JobSpec) -> None:
    """A submission whose answer is lost made a job, and no second one is made."""
    service.process.reset()
    service.runs("sleep 60")
    service.process.add_scenario("lost", match={"method": "PUT", "path": "/jobs/", "times": 1})
    job = service.platform.submit_job(spec, "run-1")
    assert (job.attempt, job.name) == (1, spec.key)
    assert service.platform.submit_job(spec, "run-1").name == job.name
    created = [e for e in service.process.exchanges(path="/jobs/", method="PUT")["exchanges"] if e["status"] == 201]
    assert len(created) <= 1
    service.platform.cancel_job(job)
    service.ended(job)


@pytest.mark.slow
@pytest.mark.parametrize("status", [429, 500, 503])
def test_passing_fault_makes_one_job(service: Service, spec: JobSpec, status: int) -> None:
    """A submission that the service refuses for a moment is made once, without anybody's doing."""
    service.process.reset()
    service.runs("sleep 60")
    match = {"method": "PUT", "path": "/jobs/", "times": 1}
    service.process.add_scenario("status", match=match, status=status, headers={"Retry-After": "1"})
    job = service.platform.submit_job(spec, "run-1")
    created = [e for e in service.process.exchanges(path="/jobs/", method="PUT")["exchanges"] if e["status"] == 201]
    assert (len(created), job.attempt) == (1, 1)
    service.platform.cancel_job(job)
    service.ended(job)


@pytest.mark.slow
@pytest.mark.parametrize(("status", "kind"), [(409, ConflictError), (403, PermissionDeniedError)])
def test_refusal_is_one_line_and_no_job(service: Service, spec: JobSpec, status: int, kind: type[PhiflowError]) -> None:
    """A submission that is refused names the job and leaves none; the same again submits attempt 1."""
    service.process.reset()
    match = {"method": "PUT", "path": "/jobs/", "times": 1}
    service.process.add_scenario("status", match=match, status=status)
    with pytest.raises(kind, match=spec.key):
        service.platform.submit_job(spec, "run-1")
    assert service.platform.latest_job(spec.key) is None
    service.runs("sleep 60")
    job = service.platform.submit_job(spec, "run-1")
    assert job.attempt == 1
    service.platform.cancel_job(job)
    service.ended(job)


def test_cancelled_and_failed_attempts_are_followed_by_the_next(service: Service, spec: JobSpec) -> None:
    """After a cancelled job comes attempt 2, after a failed one attempt 3, from the last checkpoint."""
    checkpoint = "mkdir -p ${{outputs.checkpoints}}/checkpoint-20 && echo x > ${{outputs.checkpoints}}/checkpoint-20/x"
    service.runs(f"{checkpoint}\nsleep 60")
    first = service.platform.submit_job(spec, "run-1")
    service.until(first, lambda status: status.state == JobState.RUNNING)
    service.platform.cancel_job(first)
    assert service.ended(first).error == "cancelled by phiflow"
    service.runs("echo 'RuntimeError: CUDA out of memory.'; exit 1")
    second = service.platform.submit_job(spec, "run-1")
    assert (second.attempt, second.name) == (2, f"{spec.key}-a2")
    assert "checkpoint step 20" in second.origin.reason
    status = service.ended(second)
    assert (status.state, status.failure) == (JobState.FAILED, Failure.USER_CODE)
    assert "exit code 1" in status.error
    assert any("CUDA out of memory" in line for line in status.log_tail)
    service.runs("sleep 60")
    third = service.platform.submit_job(spec, "run-1")
    assert third.attempt == 3
    assert service.platform.latest_job(spec.key) == third
    service.platform.cancel_job(third)
    service.ended(third)


def test_preemption_may_be_tried_again(service: Service, spec: JobSpec) -> None:
    """A job whose node is taken failed, in a class of its own that says that the next attempt may go through."""
    service.process.add_scenario("preempted", match={"kind": "job"}, after={"seconds": 0.2}, command="sleep 60")
    status = service.ended(service.platform.submit_job(spec, "run-1"))
    assert (status.state, status.failure) == (JobState.FAILED, Failure.PREEMPTION)
    assert Failure(status.failure).retryable
    assert "checkpoint" in status.fix


@pytest.mark.slow
def test_image_that_cannot_be_built(service: Service, spec: JobSpec) -> None:
    """A failed image build is told with the last lines of the build's own log."""
    service.process.add_scenario("image_build_failed", match={"kind": "job"})
    status = service.ended(service.platform.submit_job(spec, "run-1"))
    assert status.failure == Failure.IMAGE_BUILD
    assert any("torch==99.0" in line for line in status.log_tail)


def test_trainer_says_best_why_it_failed(service: Service, spec: JobSpec) -> None:
    """The trainer's own error is the cause, and a wrong configuration is told as the user's to correct."""
    said = {"kind": "configuration", "message": "max_length is 0.", "fix": "Set train.max_length.", "retryable": False}
    service.runs(f"{writes(error=said)}\nexit 2")
    status = service.ended(service.platform.submit_job(spec, "run-1"))
    assert (status.error, status.fix, status.is_input_error) == ("max_length is 0.", "Set train.max_length.", True)


@pytest.mark.slow
def test_missing_data_is_told_as_such(service: Service, spec: JobSpec) -> None:
    """An input that is no longer there is a failure of the data."""
    gone = replace(spec.data, train_file=spec.data.train_file.replace("train.jsonl", "gone.jsonl"))
    status = service.ended(service.platform.submit_job(replace(spec, data=gone), "run-1"))
    assert status.failure == Failure.DATA
    assert "gone.jsonl" in status.error


def test_evaluation_has_a_result_and_no_model(service: Service, spec: JobSpec) -> None:
    """An evaluation is a job without training data, whose model is an input."""
    workspace: Any = service.platform.workspace  # type: ignore[attr-defined]
    workspace.storage.write("phiflow/jobs/other/model/MLmodel", b"m")
    model = replace(spec.model, location=workspace.storage.uri("phiflow/jobs/other/model"), revision="")
    service.runs(writes(result={"per_example": [1.0]}))
    job = service.platform.submit_job(replace(spec, kind=JobKind.EVALUATION, model=model), "run-1")
    assert service.ended(job).state == JobState.COMPLETED
    assert service.platform.read_job_result(job)["per_example"] == [1.0]
