"""The local platform: the port's methods, each handed to the module that knows how."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.errors import ConfigError, NotFoundError
from tasks.platforms.local import environments
from tasks.platforms.local.chat import Chat
from tasks.platforms.local.endpoints import Endpoints
from tasks.platforms.local.jobs import Jobs
from tasks.platforms.local.leftovers import Leftovers
from tasks.platforms.local.models import Models
from tasks.platforms.local.preflight import registered_version
from tasks.platforms.local.preparation import Preparation
from tasks.platforms.local.removal import LeftoverRemoval
from tasks.platforms.local.scoring import Scoring
from tasks.platforms.local.services import Services
from tasks.platforms.local.state import Home, project_folder
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
    JobState,
    JobStatus,
    ModelVersion,
    Origin,
    RolloutRecord,
    TrafficSplit,
)
from tasks.platforms.upkeep import Leftover

if TYPE_CHECKING:
    from tasks.config import ChatConfig, ComputeConfig, DataConfig, ModelConfig, PipelineConfig, ServingConfig

_log = logging.getLogger(__name__)
TRACKING_ENVIRONMENT = "training"  # the one with the whole of MLflow


class LocalPlatform:
    """The platform of one state folder; see `tasks.platforms.port.Platform` for what each method promises."""

    poll_seconds = 0.5

    def __init__(self, home: Home) -> None:
        self.home = home
        self.services = Services(home)
        self.models = Models(home, self.tracking_url)
        self.jobs = Jobs(home, self.models.start_tracking)
        self.preparation = Preparation(home)
        self.endpoints = Endpoints(home, self.services)
        self._scoring = Scoring(home, self.services, self.endpoints)
        self.chat = Chat(home, self.services)

    def ensure_environment(self, name: str) -> EnvironmentRef:
        built = environments.ensure_environment(self.home.root, project_folder("environments", name), log=_log.info)
        return EnvironmentRef(
            name=name,
            version=built.digest,
            location=str(built.path),
            origin=Origin(reused=built.reused, reason=built.reason),
        )

    def ensure_compute(self, compute: ComputeConfig) -> ComputeRef:
        reason = f"this machine runs {compute.max_instances} job(s) at a time"
        return ComputeRef(
            name=compute.name or "this-machine",
            size="local",
            max_instances=compute.max_instances,
            origin=Origin(reused=True, reason=reason),
        )

    def find_environment(self, name: str) -> EnvironmentRef:
        return self.ensure_environment(name)  # preparing data for a plan needs it built

    def find_compute(self, compute: ComputeConfig) -> ComputeRef:
        return self.ensure_compute(compute)

    def find_base_model(self, model: ModelConfig, environment: EnvironmentRef) -> BaseModelRef:
        return self.resolve_base_model(model, environment)  # what is built stays on this machine

    def find_data(
        self, data: DataConfig, base: BaseModelRef, environment: EnvironmentRef, max_length: int
    ) -> DataManifest:
        return self.prepare_data(data, base, environment, max_length)

    def find_models(self, name: str) -> tuple[ModelVersion, ...] | None:
        return self.models.versions(name) if self.services.is_mlflow_running() else None

    def find_deployment(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        return self.endpoints.find_deployment(endpoint, model, serving, environment)

    def resolve_base_model(self, model: ModelConfig, environment: EnvironmentRef) -> BaseModelRef:
        if found := registered_version(model.base):
            return self._registered(model.base, *found)
        return self.preparation.base_model(model, environment)

    def _registered(self, base: str, name: str, version: str) -> BaseModelRef:
        try:
            model = self.models.read(name, version)
        except NotFoundError as error:
            raise ConfigError(f"model.base {base}: {error.message}", fix="Check model.base.") from error
        origin = Origin(reused=True, reason="a registered version")
        inside = Path(model.location, "model")  # of MLflow's folder; data is counted with the tokenizer there
        location = str(inside) if (inside / "config.json").is_file() else model.location
        return BaseModelRef(base=base, revision="", digest=model.digest, location=location, origin=origin)

    def prepare_data(
        self, data: DataConfig, base: BaseModelRef, environment: EnvironmentRef, max_length: int
    ) -> DataManifest:
        return self.preparation.data(data, base, environment, max_length)

    def submit_job(self, spec: JobSpec, run_id: str) -> JobRef:
        return self.jobs.submit(spec, run_id)

    def read_job(self, job: JobRef) -> JobStatus:
        status = self.jobs.read(job)
        if status.state.ended and status.state != JobState.COMPLETED:  # a completed job closed its run itself
            self.models.end_tracking(self.jobs.mlflow_run(job), status.state)
        return status

    def find_jobs(self, run: str) -> tuple[JobRef, ...]:
        return self.jobs.running(run)

    def latest_job(self, key: str) -> JobRef | None:
        return self.jobs.latest(key)

    def cancel_job(self, job: JobRef) -> JobStatus:
        self.jobs.cancel(job, "the user")
        return self.read_job(job)

    def stop_jobs(self) -> tuple[str, ...]:
        """Stop every job of this state folder, without needing MLflow."""
        running = self.jobs.running()
        for job in running:
            self.jobs.cancel(job, "phiflow stop")
        return tuple(job.name for job in running)

    def read_job_result(self, job: JobRef) -> dict[str, Any]:
        return self.jobs.result(job)

    def read_events(self, job: JobRef) -> tuple[dict[str, Any], ...]:
        return self.jobs.events(job)

    def register_model(
        self, name: str, job: JobRef, model_location: str, digest: str, gate: str, lineage: str = "{}"
    ) -> ModelVersion:
        return self.models.register(
            name, job, self.jobs.mlflow_run(job), model_location, digest, {"gate": gate, "lineage": lineage}
        )

    def read_model(self, name: str, version: str) -> ModelVersion:
        return self.models.read(name, version)

    def reject_model(self, version: ModelVersion, reason: str) -> ModelVersion:
        return self.models.reject(version, reason)

    def ensure_endpoint(self, name: str, description: str = "") -> EndpointRef:
        return self.endpoints.ensure(name)

    def read_endpoint(self, name: str) -> EndpointStatus | None:
        return self.endpoints.read(name)

    def lease_endpoint(self, name: str, owner: str, wait_seconds: float) -> AbstractContextManager[None]:
        return self.endpoints.lease(name, owner, wait_seconds)

    def deploy(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        return self.endpoints.deploy(endpoint, model, serving, environment)

    def read_deployment(self, endpoint: str, name: str) -> DeploymentStatus:
        return self.endpoints.read_deployment(endpoint, name)

    def delete_deployment(self, endpoint: str, name: str) -> None:
        self.endpoints.delete_deployment(endpoint, name)

    def set_traffic(self, endpoint: str, percents: dict[str, int], reason: str) -> TrafficSplit:
        return self.endpoints.set_traffic(endpoint, percents, reason)

    def record_rollout(self, endpoint: str, record: RolloutRecord | None) -> None:
        self.endpoints.record_rollout(endpoint, record)

    def freeze_endpoint(self, endpoint: str, reason: str) -> None:
        self.endpoints.freeze(endpoint, reason)

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
        return self._scoring.invoke(
            endpoint,
            messages,
            tools=tools,
            deployment=deployment,
            max_tokens=max_tokens,
            timeout_seconds=timeout_seconds,
        )

    def read_metrics(self, endpoint: str, window_seconds: int) -> tuple[DeploymentMetrics, ...]:
        return self._scoring.metrics(endpoint, window_seconds)

    def ensure_connection(self, endpoint: EndpointRef) -> ConnectionRef:
        origin = Origin(reused=True, reason="the endpoint's key is a file of this user alone")
        return ConnectionRef(name="phiflow_endpoint", endpoint=endpoint.name, url=endpoint.url, origin=origin)

    def ensure_chat(self, connection: ConnectionRef, chat: ChatConfig, environment: EnvironmentRef) -> ChatService:
        variables = {"PHIFLOW_ENDPOINT_SERVER": self._scoring.server(connection.endpoint)}
        return self.chat.ensure(connection, chat, environment, variables=variables)

    def read_chat(self, endpoint: str) -> ChatService | None:
        return self.chat.read(endpoint)

    def find_leftovers(self, config: PipelineConfig) -> tuple[Leftover, ...]:
        return tuple(Leftovers(self).find(config))

    def remove_leftover(self, leftover: Leftover) -> None:
        LeftoverRemoval(self).remove(leftover)

    @functools.cache  # noqa: B019  (one platform lives as long as its command)
    def tracking_url(self) -> str:
        environment = self.ensure_environment(TRACKING_ENVIRONMENT)
        return self.services.mlflow(Path(environment.location) / "bin" / "python")
