"""The port: what a platform must be able to do, and what every method promises.

Common to all methods:

- `ensure_`, `submit_`, `register_`, `deploy` look for the named thing first and adopt it; calling them
  twice, or from two runners at once, makes one thing. The value's `origin` says which happened and why.
- `read_` changes nothing.
- Nothing blocks until a job or a deployment is ready: begin, then poll `read_`.
- Failures are the errors of `tasks.platforms.errors`; only `TransientPlatformError` is worth a retry.
- Keys and tokens never leave an adapter.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from tasks.platforms.refs import (
    Answer,
    BaseModelRef,
    ChatService,
    ComputeRef,
    ConnectionRef,
    DataManifest,
    DeploymentMetrics,
    DeploymentRef,
    DeploymentStatus,
    EndpointRef,
    EndpointStatus,
    EnvironmentRef,
    JobRef,
    JobSpec,
    JobStatus,
    ModelVersion,
    RolloutRecord,
    TrafficSplit,
)
from tasks.platforms.upkeep import Leftover

if TYPE_CHECKING:
    from tasks.config import ChatConfig, ComputeConfig, DataConfig, ModelConfig, PipelineConfig, ServingConfig


class Platform(Protocol):
    """A place where a run happens: this machine, or an Azure Machine Learning workspace.

    Attributes:
        poll_seconds: how often it is worth looking at a job or a deployment.
    """

    poll_seconds: float

    # Infrastructure
    def ensure_environment(self, name: str) -> EnvironmentRef:
        """Build the environment from `environments/<name>/` unless that content is built already."""

    def ensure_compute(self, compute: ComputeConfig) -> ComputeRef:
        """Have a place for jobs; it costs nothing while no job runs."""

    def find_environment(self, name: str) -> EnvironmentRef:
        """What `ensure_environment` would return, with nothing made that others could see; for a plan."""

    def find_compute(self, compute: ComputeConfig) -> ComputeRef:
        """What `ensure_compute` would return, with nothing made; for a plan."""

    def find_base_model(self, model: ModelConfig, environment: EnvironmentRef) -> BaseModelRef:
        """What `resolve_base_model` would return, with nothing uploaded; for a plan."""

    def find_data(
        self, data: DataConfig, base: BaseModelRef, environment: EnvironmentRef, max_length: int
    ) -> DataManifest:
        """What `prepare_data` would return, with nothing uploaded; for a plan."""

    def find_models(self, name: str) -> tuple[ModelVersion, ...] | None:
        """The registered versions, oldest first; None where the registry would have to be started to say."""

    def find_deployment(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        """What `deploy` would return, with nothing begun; for a plan."""

    # Data and base model
    def resolve_base_model(self, model: ModelConfig, environment: EnvironmentRef) -> BaseModelRef:
        """Pin the base model to its content; ConfigError when there is no such model."""

    def prepare_data(
        self, data: DataConfig, base: BaseModelRef, environment: EnvironmentRef, max_length: int
    ) -> DataManifest:
        """Read, validate and split the data; DataError lists what was rejected when it is too much."""

    # Jobs
    def submit_job(self, spec: JobSpec, run_id: str) -> JobRef:
        """Start the job, or adopt the attempt that runs or has completed.

        A failed or cancelled attempt is followed by the next, which starts from its checkpoints.
        """

    def read_job(self, job: JobRef) -> JobStatus: ...

    def find_jobs(self, run: str) -> tuple[JobRef, ...]:
        """Jobs that have not ended, of a run by its id or of all runs with a configuration's name."""

    def latest_job(self, key: str) -> JobRef | None:
        """The last attempt under a key, in any state."""

    def cancel_job(self, job: JobRef) -> JobStatus:
        """Stop the job with a checkpoint; an ended job is left as it is."""

    def read_job_result(self, job: JobRef) -> dict[str, Any]:
        """`result.json` of a completed job, with `model_location` made reachable for this platform."""

    def read_events(self, job: JobRef) -> tuple[dict[str, Any], ...]:
        """The job's events so far, oldest first."""

    # Model registry
    def register_model(
        self, name: str, job: JobRef, model_location: str, digest: str, gate: str, lineage: str = "{}"
    ) -> ModelVersion:
        """Register the job's model as the next version, or adopt the version with that digest."""

    def read_model(self, name: str, version: str) -> ModelVersion:
        """NotFoundError when there is no such version."""

    def reject_model(self, version: ModelVersion, reason: str) -> ModelVersion:
        """Mark the version so that no run gives it traffic again."""

    # Endpoint
    def ensure_endpoint(self, name: str, description: str = "") -> EndpointRef:
        """Have the endpoint; the description is for people and changes none that exists."""

    def read_endpoint(self, name: str) -> EndpointStatus | None:
        """None when there is no such endpoint."""

    def lease_endpoint(self, name: str, owner: str, wait_seconds: float) -> AbstractContextManager[None]:
        """Exclusive right to change the endpoint; ConflictError names the holder after the wait."""

    def deploy(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        """Begin a deployment with no traffic, or adopt the one with that content."""

    def read_deployment(self, endpoint: str, name: str) -> DeploymentStatus:
        """State is `starting`, `ready` or `failed`, the latter with the reason in `error`."""

    def delete_deployment(self, endpoint: str, name: str) -> None:
        """Remove the deployment; ConflictError while it has traffic; nothing when there is none."""

    def set_traffic(self, endpoint: str, percents: dict[str, int], reason: str) -> TrafficSplit:
        """Route as told from the next request on; requests in flight finish where they are."""

    def record_rollout(self, endpoint: str, record: RolloutRecord | None) -> None:
        """Keep, or clear, how to undo the rollout in progress."""

    def freeze_endpoint(self, endpoint: str, reason: str) -> None:
        """Keep runs from changing the endpoint; an empty reason thaws it."""

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
        """Ask the endpoint, or one deployment of it, greedily; TransientPlatformError when it fails."""

    def read_metrics(self, endpoint: str, window_seconds: int) -> tuple[DeploymentMetrics, ...]: ...

    # Chat
    def ensure_connection(self, endpoint: EndpointRef) -> ConnectionRef: ...

    def ensure_chat(self, connection: ConnectionRef, chat: ChatConfig, environment: EnvironmentRef) -> ChatService:
        """Serve the chat app, or adopt or refresh the one that runs; returns once it answers."""

    def read_chat(self, endpoint: str) -> ChatService | None: ...

    # What nobody uses
    def find_leftovers(self, config: PipelineConfig) -> tuple[Leftover, ...]:
        """What phiflow made and nobody uses, by the configuration's retention; never what it did not make.

        Every job that has not ended is among it: only the caller knows which of its `runs` are alive.
        """

    def remove_leftover(self, leftover: Leftover) -> None:
        """Begin its deletion; nothing when it is gone. ConflictError when it is in use again."""

    # Where people look
    def tracking_url(self) -> str:
        """The MLflow tracking server's address."""
