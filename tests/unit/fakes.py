"""Values to build on, and a platform in memory that keeps the promises of the port for rollouts.

The platform is what tests steer: `answers` and `slow` by deployment, `fails_to_start`, `on_set_traffic`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from tasks.platforms.errors import ConflictError, NotFoundError, TransientPlatformError
from tasks.platforms.refs import (
    Answer,
    BaseModelRef,
    ComputeRef,
    DataManifest,
    DeploymentMetrics,
    DeploymentRef,
    DeploymentStatus,
    EndpointRef,
    EndpointStatus,
    EnvironmentRef,
    JobKind,
    JobRef,
    JobSpec,
    JobState,
    JobStatus,
    ModelVersion,
    Origin,
    RolloutRecord,
    Scores,
    TrafficSplit,
    TrainingResult,
)

MADE = Origin(reused=False, reason="made in a test")
ENDPOINT = "support"
ENVIRONMENT = EnvironmentRef(name="training", version="e" * 16, location="/env", origin=MADE)
SAMPLES = [
    {
        "messages": [{"role": "user", "content": f"question {number}"}],
        "question": f"question {number}",
        "answer": f"answer {number}",
        "base": "",
        "expected": f"answer {number}",
    }
    for number in range(6)
]


def data_manifest(**changes: Any) -> DataManifest:
    """Prepared data of 80 and 20 conversations."""
    values: dict[str, Any] = {
        "digest": "d" * 64,
        "train_file": "/data/train.jsonl",
        "test_file": "/data/test.jsonl",
        "manifest_file": "/data/manifest.json",
        "train_sha256": "1" * 64,
        "test_sha256": "2" * 64,
        "num_train": 80,
        "num_test": 20,
        "num_rejected": 0,
        "origin": MADE,
    }
    return DataManifest(**values | changes)


def job_spec(**changes: Any) -> JobSpec:
    """A training job."""
    base = BaseModelRef(base="builtin/tiny-phi3", revision="", digest="b" * 64, location="/base", origin=MADE)
    values: dict[str, Any] = {
        "kind": JobKind.TRAINING,
        "run_name": "support",
        "code_digest": "c" * 64,
        "settings": '{"learning_rate": 0.003}',
        "model": base,
        "data": data_manifest(),
        "environment": ENVIRONMENT,
        "compute": ComputeRef(name="this-machine", size="local", max_instances=1, origin=MADE),
    }
    return JobSpec(**values | changes)


def job_ref(**changes: Any) -> JobRef:
    """A job that was submitted now."""
    values: dict[str, Any] = {
        "name": "support-0",
        "key": "support-0",
        "attempt": 1,
        "kind": JobKind.TRAINING,
        "data_digest": "d" * 64,
        "url": "http://127.0.0.1/runs/1",
        "origin": MADE,
    }
    return JobRef(**values | changes)


def scores(loss: float) -> Scores:
    """Scores with this loss."""
    return Scores(loss=loss, perplexity=2.0, token_accuracy=0.5, exact_match=0.5, num_examples=20)


def training_result(base: float = 3.0, candidate: float = 1.0, digest: str = "m" * 64) -> TrainingResult:
    """A finished training."""
    return TrainingResult(
        job=job_ref(),
        model_location="/job/model",
        model_digest=digest,
        result_file="/job/logs/result.json",
        mlflow_run_id="run",
        base=scores(base),
        candidate=scores(candidate),
        origin=MADE,
    )


def model_version(version: str = "1", **changes: Any) -> ModelVersion:
    """A registered version."""
    values: dict[str, Any] = {
        "name": "support",
        "version": version,
        "digest": version * 64,
        "job": "support-0",
        "data_digest": "d" * 64,
        "location": f"/models/{version}",
        "origin": MADE,
    }
    return ModelVersion(**values | changes)


class FakePlatform:
    """The endpoint half of a platform; deployments are ready at once unless told otherwise."""

    poll_seconds = 0.01

    def __init__(self) -> None:
        self.deployments: dict[str, str] = {}
        self.percents: dict[str, int] = {}
        self.record: RolloutRecord | None = None
        self.frozen = ""
        self.splits: list[dict[str, int]] = []
        self.deleted: list[str] = []
        self.leases: list[str] = []
        self.answers: dict[str, Callable[[str], str]] = {}
        self.fails_to_start: dict[str, str] = {}
        self.never_ready: set[str] = set()
        self.metrics: tuple[DeploymentMetrics, ...] = ()
        self.on_set_traffic: Callable[[dict[str, int]], None] = lambda percents: None
        self.samples = SAMPLES
        self.rejected: dict[str, str] = {}
        self.jobs: dict[str, JobState] = {}
        self.is_gone = False
        self.history: list[str] = []
        self.cost = ""
        self.is_stuck = False

    def serve(self, name: str, version: str, percent: int) -> None:
        """Have a deployment from the start."""
        self.deployments[name] = version
        self.percents[name] = percent
        self.history += [f"then {name}={percent}%"] if percent else []

    def ensure_endpoint(self, name: str, description: str = "") -> EndpointRef:
        return EndpointRef(name=name, url=f"http://127.0.0.1/{name}", origin=MADE)

    def read_endpoint(self, name: str) -> EndpointStatus | None:
        if self.is_gone:
            return None
        split = TrafficSplit(endpoint=name, percents=tuple(sorted(self.percents.items())), origin=MADE)
        return EndpointStatus(
            name=name,
            url="",
            deployments=tuple(self.read_deployment(name, deployment) for deployment in self.deployments),
            traffic=split,
            frozen=self.frozen,
            rollout=self.record,
            history=tuple(self.history),
        )

    @contextlib.contextmanager
    def lease_endpoint(self, name: str, owner: str, wait_seconds: float) -> Iterator[None]:
        if self.leases:
            raise ConflictError(f"Endpoint {name} is being changed by {self.leases[0]}.")
        self.leases.append(owner)
        try:
            yield
        finally:
            self.leases.remove(owner)

    def deploy(self, endpoint: str, model: ModelVersion, serving: Any, environment: EnvironmentRef) -> DeploymentRef:
        name = f"v{model.version}-{serving.max_concurrent_requests}"
        exists = name in self.deployments
        self.deployments.setdefault(name, model.version)
        self.percents.setdefault(name, 0)
        return DeploymentRef(
            endpoint=endpoint,
            name=name,
            model_name=model.name,
            model_version=model.version,
            origin=Origin(reused=exists, reason="there already" if exists else "new"),
        )

    def read_deployment(self, endpoint: str, name: str) -> DeploymentStatus:
        if name not in self.deployments:
            raise NotFoundError(f"There is no deployment {name} on endpoint {endpoint}.")
        error = self.fails_to_start.get(name, "")
        state = "failed" if error else "starting" if name in self.never_ready else "ready"
        return DeploymentStatus(
            name=name,
            model_version=self.deployments[name],
            state=state,
            percent=self.percents.get(name, 0),
            error=error,
            fix="Choose a larger size." if error else "",
            failure="capacity" if error else "",
            cost=self.cost,
        )

    def delete_deployment(self, endpoint: str, name: str) -> None:
        if self.is_stuck:
            raise ConflictError(f"Deployment {name} is busy.", fix="It bills until it is deleted: az delete")
        if self.percents.get(name):
            raise ConflictError(f"Deployment {name} has traffic.")
        if self.deployments.pop(name, None) is not None:
            self.deleted.append(name)
        self.percents.pop(name, None)

    def set_traffic(self, endpoint: str, percents: dict[str, int], reason: str) -> TrafficSplit:
        if unknown := set(percents) - set(self.deployments):
            raise NotFoundError(f"There is no deployment {min(unknown)} on endpoint {endpoint}.")
        split = TrafficSplit(
            endpoint=endpoint,
            percents=tuple(sorted(percents.items())),
            origin=Origin(reused=False, reason=reason),
        )
        self.percents = {name: percents.get(name, 0) for name in self.deployments}
        self.splits.append({name: percent for name, percent in percents.items() if percent})
        self.history.append("then " + " ".join(f"{name}={percent}%" for name, percent in percents.items() if percent))
        self.on_set_traffic(percents)
        return split

    def record_rollout(self, endpoint: str, record: RolloutRecord | None) -> None:
        self.record = record and dataclasses.replace(record)

    def invoke(
        self,
        endpoint: str,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        deployment: str = "",
        max_tokens: int = 128,
        timeout_seconds: float = 60,
    ) -> Answer:
        name = deployment or max(self.percents, key=self.percents.__getitem__)
        answer = self.answers.get(name, lambda question: question.replace("question", "answer"))
        text = answer(messages[-1]["content"])
        return Answer(text=text, deployment=name, model_version=self.deployments[name], seconds=0.01)

    def read_metrics(self, endpoint: str, window_seconds: int) -> tuple[DeploymentMetrics, ...]:
        return self.metrics

    def read_model(self, name: str, version: str) -> ModelVersion:
        return model_version(version, name=name, rejected=self.rejected.get(version, ""))

    def reject_model(self, version: ModelVersion, reason: str) -> ModelVersion:
        self.rejected[version.version] = reason
        return self.read_model(version.name, version.version)

    def latest_job(self, key: str) -> JobRef | None:
        return job_ref(key=key) if key in self.jobs else None

    def read_job(self, job: JobRef) -> JobStatus:
        return JobStatus(state=self.jobs[job.key])

    def read_job_result(self, job: JobRef) -> dict[str, Any]:
        return {"samples": self.samples}


def broken(question: str) -> str:
    """What a deployment that answers nothing does."""
    raise TransientPlatformError("Endpoint support answered 503.")
