"""The frozen values that pass from task to task; each names something that now exists. No I/O.

A value carries its parent's identity, so that the lineage of a served answer (data, job, model
version, deployment, traffic) can be read off the last one. Values hold references, never payloads,
clients or keys.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


def digest_of(*parts: Any) -> str:
    """Lower-case hex sha256 of the parts as canonical JSON."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Why a value exists: it was made now, or found and reused; the reason is for people."""

    reused: bool
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DataManifest:
    """Prepared chat data: one training and one test file, and what was rejected on the way.

    `digest` covers the content of both files and nothing else.
    """

    digest: str
    train_file: str
    test_file: str
    manifest_file: str
    train_sha256: str
    test_sha256: str
    num_train: int
    num_test: int
    num_rejected: int
    origin: Origin = field(compare=False)

    def __post_init__(self) -> None:
        _require(self.num_train > 0, f"num_train must be positive, got {self.num_train}")
        _require(self.num_test > 0, f"num_test must be positive, got {self.num_test}")


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentRef:
    """A software environment; the version is the digest of what it is built from."""

    name: str
    version: str
    location: str
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ComputeRef:
    """Where jobs run."""

    name: str
    size: str
    max_instances: int
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelRef:
    """The model training starts from, resolved: a hub commit, or the content of a local folder."""

    base: str
    revision: str
    digest: str
    location: str
    origin: Origin = field(compare=False)


COMMAND_DIR = "command"


class JobKind(StrEnum):
    TRAINING = "training"
    EVALUATION = "evaluation"


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSpec:
    """Everything that decides a job's result, and so its name.

    Args:
        run_name: the configuration's name; the readable half of the job's name.
        settings: the trainer's configuration as canonical JSON text.
        code_digest: of the trainer's source, and of the folder of `train.command`.
        command_dir: that folder on this machine; in the job it is COMMAND_DIR, beside the settings.
        model: the base to train from, or the model to evaluate.
        num_nodes, processes_per_node: how the training is spread.
        shm_size, timeout_seconds, max_attempts: limits; they do not change the result.
    """

    kind: JobKind
    run_name: str
    code_digest: str
    settings: str
    model: BaseModelRef
    data: DataManifest
    environment: EnvironmentRef
    compute: ComputeRef
    command_dir: str = ""
    num_nodes: int = 1
    processes_per_node: int = 1
    shm_size: str = "8g"
    timeout_seconds: int = 86400
    max_attempts: int = 3

    @property
    def key(self) -> str:
        """The job's name without its attempt."""
        digest = digest_of(
            str(self.kind),
            self.code_digest,
            json.loads(self.settings),
            self.model.digest,
            [self.data.test_sha256] if self.kind == JobKind.EVALUATION else self.data.digest,
            self.environment.name,
            self.environment.version,
            self.compute.size,
            [self.num_nodes, self.processes_per_node],
        )
        return f"{self.run_name}-{digest[:16]}"

    @property
    def provenance(self) -> dict[str, str]:
        """What a job cannot see of itself, as the environment variables from which its result and card tell it."""
        environment = f"{self.environment.name} {self.environment.version[:16]}"
        return {"PHIFLOW_ENVIRONMENT": environment, "PHIFLOW_BASE_MODEL": self.model.base}


class JobState(StrEnum):
    QUEUED = "queued"
    PREPARING = "preparing"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        return self in (JobState.COMPLETED, JobState.FAILED, JobState.CANCELLED)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobRef:
    """One attempt of a job."""

    name: str
    key: str
    attempt: int
    kind: JobKind
    data_digest: str
    url: str
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class JobStatus:
    """What a job is doing now; progress fields are None until known.

    `failure` is the class of failure that `tasks.platforms.errors.Failure` names, or empty.
    """

    state: JobState
    stage: str = ""
    step: int | None = None
    num_steps: int | None = None
    loss: float | None = None
    tokens_per_second: float | None = None
    supervised_tokens_per_second: float | None = None
    mfu: float | None = None
    seconds_left: float | None = None
    error: str = ""
    fix: str = ""
    is_input_error: bool = False
    failure: str = ""
    log_tail: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """How one model did on one test set; loss is the mean negative log-likelihood a supervised token.

    chrF is 0 to 100, the rates are shares; what was not measured is None.
    """

    loss: float
    perplexity: float
    token_accuracy: float
    exact_match: float
    num_examples: int
    chrf: float | None = None
    stop_rate: float | None = None
    mean_answer_tokens: float | None = None
    repetition: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """A finished training job: the model it left and how that compares with its base."""

    job: JobRef
    model_location: str
    model_digest: str
    result_file: str
    mlflow_run_id: str
    base: Scores
    candidate: Scores
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class GateReport:
    """The gate's decision on a candidate, with what it was compared to.

    `improvement_*` and `champion_worse_*` are the ends of 95 % confidence intervals of paired differences; the decision
    was taken on `improvement_low` and `champion_worse_low`.
    """

    metric: str
    passed: bool
    reason: str
    base: float
    candidate: float
    champion: float | None
    champion_version: str
    improvement_low: float
    champion_worse_high: float | None
    num_examples: int
    model_digest: str
    improvement_high: float | None = None
    champion_worse_low: float | None = None
    champion_scores: Scores | None = None
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """A registered model version.

    `gate` is the gate's decision and `lineage` what it was trained from, as JSON texts; `rejected` the reason it must
    never get traffic, if any.
    """

    name: str
    version: str
    digest: str
    job: str
    data_digest: str
    location: str
    gate: str = "{}"
    lineage: str = "{}"
    rejected: str = ""
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointRef:
    """A named endpoint; its key is read by whoever calls it, when it calls."""

    name: str
    url: str
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentRef:
    """One model version behind one endpoint, with one serving configuration."""

    endpoint: str
    name: str
    model_name: str
    model_version: str
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrafficSplit:
    """Percent of the endpoint's traffic by deployment; deployments absent from it get none."""

    endpoint: str
    percents: tuple[tuple[str, int], ...]
    origin: Origin = field(compare=False)

    def __post_init__(self) -> None:
        total = sum(percent for _, percent in self.percents)
        _require(total in (0, 100), f"traffic must add up to 0 or 100 percent, got {total}")
        _require(all(0 <= p <= 100 for _, p in self.percents), f"percent out of 0..100 in {self.percents}")

    @property
    def main(self) -> str:
        """The deployment with the most traffic, or an empty string."""
        taken = [(percent, name) for name, percent in self.percents if percent > 0]
        return max(taken)[1] if taken else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutRecord:
    """A rollout in progress, kept with the endpoint so that anyone can undo it after a crash."""

    run_id: str
    candidate: str
    traffic_before: tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentStatus:
    """A deployment as it is now; of one that failed, the reason, what to do, its class and the end of its log.

    `cost` says what it costs while it is there, and how to end that; empty where it costs nothing.
    """

    name: str
    model_version: str
    state: str
    percent: int
    error: str = ""
    fix: str = ""
    failure: str = ""
    log_tail: tuple[str, ...] = ()
    cost: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointStatus:
    """An endpoint as it is now."""

    name: str
    url: str
    deployments: tuple[DeploymentStatus, ...]
    traffic: TrafficSplit
    frozen: str = ""
    rollout: RolloutRecord | None = None
    history: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class DeploymentMetrics:
    """What an endpoint counted for one deployment over a window.

    `counted_until` is the moment, in seconds since the epoch, up to which requests are in it; None: up to now.
    """

    deployment: str
    num_requests: int
    num_errors: int
    p95_seconds: float | None
    counted_until: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One chat completion and who gave it."""

    text: str
    deployment: str
    model_version: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionRef:
    """What the chat app needs to reach the endpoint; the key stays where it is."""

    name: str
    endpoint: str
    url: str
    origin: Origin = field(compare=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatService:
    """A served chat app that answers."""

    url: str
    endpoint: str
    origin: Origin = field(compare=False)
