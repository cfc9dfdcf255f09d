"""The Azure platform: the port's methods, each handed to the module that knows how.

What happens on the orchestrator's own machine (preparing data, the chat app) goes through `this_machine`.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

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
from tasks.platforms.upkeep import Leftover, LeftoverKind

if TYPE_CHECKING:
    from tasks.config import ChatConfig, ComputeConfig, DataConfig, ModelConfig, PipelineConfig, ServingConfig
    from tasks.platforms.azure.chat import Chat
    from tasks.platforms.azure.client import Workspace
    from tasks.platforms.azure.endpoints import Endpoints
    from tasks.platforms.azure.infrastructure import Infrastructure
    from tasks.platforms.azure.jobs import Jobs
    from tasks.platforms.azure.models import Models
    from tasks.platforms.azure.preparation import Preparation
    from tasks.platforms.local.local_platform import LocalPlatform


class AzurePlatform:
    """The platform of one workspace; see `tasks.platforms.port.Platform` for what each method promises."""

    def __init__(self, workspace: Workspace, this_machine: LocalPlatform) -> None:
        self.workspace = workspace
        self.this_machine = this_machine
        self.poll_seconds = workspace.config.poll_seconds

    def ensure_environment(self, name: str) -> EnvironmentRef:
        return self._infrastructure.environment(name)

    def ensure_compute(self, compute: ComputeConfig) -> ComputeRef:
        return self._infrastructure.compute(compute)

    def find_environment(self, name: str) -> EnvironmentRef:
        return self._infrastructure.environment(name, create=False)

    def find_compute(self, compute: ComputeConfig) -> ComputeRef:
        return self._infrastructure.compute(compute, create=False)

    def find_base_model(self, model: ModelConfig, environment: EnvironmentRef) -> BaseModelRef:
        return self._preparation.base_model(model, environment, create=False)

    def find_data(
        self, data: DataConfig, base: BaseModelRef, environment: EnvironmentRef, max_length: int
    ) -> DataManifest:
        return self._preparation.data(data, base, environment, max_length, create=False)

    def find_models(self, name: str) -> tuple[ModelVersion, ...] | None:
        return self._models.versions(name)

    def find_deployment(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        return self._endpoints.find_deployment(endpoint, model, serving, environment)

    def resolve_base_model(self, model: ModelConfig, environment: EnvironmentRef) -> BaseModelRef:
        return self._preparation.base_model(model, environment)

    def prepare_data(
        self, data: DataConfig, base: BaseModelRef, environment: EnvironmentRef, max_length: int
    ) -> DataManifest:
        return self._preparation.data(data, base, environment, max_length)

    def submit_job(self, spec: JobSpec, run_id: str) -> JobRef:
        return self._jobs.submit(spec, run_id)

    def read_job(self, job: JobRef) -> JobStatus:
        return self._jobs.read(job)

    def find_jobs(self, run: str) -> tuple[JobRef, ...]:
        return self._jobs.running(run)

    def latest_job(self, key: str) -> JobRef | None:
        return self._jobs.latest(key)

    def cancel_job(self, job: JobRef) -> JobStatus:
        self._jobs.cancel(job)
        return self._jobs.read(job)

    def read_job_result(self, job: JobRef) -> dict[str, Any]:
        return self._jobs.result(job)

    def read_events(self, job: JobRef) -> tuple[dict[str, Any], ...]:
        return self._jobs.events(job)

    def register_model(
        self, name: str, job: JobRef, model_location: str, digest: str, gate: str, lineage: str = "{}"
    ) -> ModelVersion:
        return self._models.register(name, job, model_location, digest, {"gate": gate, "lineage": lineage})

    def read_model(self, name: str, version: str) -> ModelVersion:
        return self._models.read(name, version)

    def reject_model(self, version: ModelVersion, reason: str) -> ModelVersion:
        return self._models.reject(version, reason)

    def ensure_endpoint(self, name: str, description: str = "") -> EndpointRef:
        return self._endpoints.ensure(name, description)

    def read_endpoint(self, name: str) -> EndpointStatus | None:
        return self._endpoints.read(name)

    def lease_endpoint(self, name: str, owner: str, wait_seconds: float) -> AbstractContextManager[None]:
        return self._endpoints.lease(name, owner, wait_seconds)

    def deploy(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        return self._endpoints.deploy(endpoint, model, serving, environment)

    def read_deployment(self, endpoint: str, name: str) -> DeploymentStatus:
        return self._endpoints.read_deployment(endpoint, name)

    def delete_deployment(self, endpoint: str, name: str) -> None:
        self._endpoints.delete_deployment(endpoint, name)

    def set_traffic(self, endpoint: str, percents: dict[str, int], reason: str) -> TrafficSplit:
        return self._endpoints.set_traffic(endpoint, percents, reason)

    def record_rollout(self, endpoint: str, record: RolloutRecord | None) -> None:
        self._endpoints.record_rollout(endpoint, record)

    def freeze_endpoint(self, endpoint: str, reason: str) -> None:
        self._endpoints.freeze(endpoint, reason)

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
        return self._endpoints.invoke(
            endpoint,
            messages,
            tools=tools,
            deployment=deployment,
            max_tokens=max_tokens,
            timeout_seconds=timeout_seconds,
        )

    def read_metrics(self, endpoint: str, window_seconds: int) -> tuple[DeploymentMetrics, ...]:
        return self._endpoints.metrics(endpoint, window_seconds)

    def ensure_connection(self, endpoint: EndpointRef) -> ConnectionRef:
        return self._chat.connection(endpoint)

    def ensure_chat(self, connection: ConnectionRef, chat: ChatConfig, environment: EnvironmentRef) -> ChatService:
        return self._chat.ensure(connection, chat, environment, self._endpoints.server(connection.endpoint))

    def read_chat(self, endpoint: str) -> ChatService | None:
        return self.this_machine.read_chat(endpoint)

    def find_leftovers(self, config: PipelineConfig) -> tuple[Leftover, ...]:
        from tasks.platforms.azure.clean_up.leftovers import Leftovers

        return tuple(Leftovers(self.workspace, config).find())

    def remove_leftover(self, leftover: Leftover) -> None:
        from tasks.platforms.azure.clean_up.removal import LeftoverRemoval

        LeftoverRemoval(self.workspace).remove(leftover)
        if leftover.kind == LeftoverKind.ENDPOINT:
            self.this_machine.chat.remove(leftover.location)

    def tracking_url(self) -> str:
        return self.workspace.studio_url("experiments")

    # Opened on first use: a command that only looks at an endpoint needs none of the others.

    @functools.cached_property
    def _infrastructure(self) -> Infrastructure:
        from tasks.platforms.azure.infrastructure import Infrastructure

        return Infrastructure(self.workspace, self.this_machine)

    @functools.cached_property
    def _preparation(self) -> Preparation:
        from tasks.platforms.azure.preparation import Preparation

        return Preparation(self.workspace, self.this_machine)

    @functools.cached_property
    def _jobs(self) -> Jobs:
        from tasks.platforms.azure.jobs import Jobs

        return Jobs(self.workspace)

    @functools.cached_property
    def _models(self) -> Models:
        from tasks.platforms.azure.models import Models

        return Models(self.workspace)

    @functools.cached_property
    def _endpoints(self) -> Endpoints:
        from tasks.platforms.azure.endpoints import Endpoints

        return Endpoints(self.workspace)

    @functools.cached_property
    def _chat(self) -> Chat:
        from tasks.platforms.azure.chat import Chat

        return Chat(self.workspace, self.this_machine)
