"""One YAML file is one run: its sections, their limits and defaults, as frozen pydantic models.

`tasks.config_files` reads YAML, applies `--set` overrides and turns mistakes into one line.
"""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Discriminator,
    Field,
    PlainSerializer,
    Tag,
    model_validator,
)

from tasks.config_data import DataConfig
from tasks.config_data import SourceConfig as SourceConfig
from tasks.config_section import Name, OptionalName, Section
from tasks.platforms.refs import digest_of
from trainer.config import TrainConfig


class LocalPlatformConfig(Section):
    """This machine."""

    kind: Literal["local"] = "local"
    home: str = Field("", description="State folder; empty: PHIFLOW_HOME, or .phiflow in the working directory.")


class AzureIdentityConfig(Section):
    """The user-assigned managed identity that the cluster and the endpoint act as."""

    resource_id: str = Field("", description="/subscriptions/.../userAssignedIdentities/NAME; empty: the system's own.")
    client_id: str = Field("", description="Told to jobs and deployments, which choose their identity by it.")


class AzureResourcesConfig(Section):
    """What `phiflow up` makes around the workspace; a resource id here is used as it is, and never made or deleted."""

    storage_account: str = Field("", description="Resource id of an existing one; empty: made.")
    key_vault: str = Field("", description="Resource id of an existing one; empty: made.")
    log_analytics: str = Field("", description="Resource id of an existing workspace; empty: made.")
    application_insights: str = Field("", description="Resource id of an existing one; empty: made.")
    container_registry: str = Field("", description="Resource id of an existing one; empty: made.")
    identity_roles: Literal["least", "contributor"] = Field(
        "least", description="What the identity may do; contributor: everything in the resource group, too."
    )
    engineer: str = Field("", description="Object id of who runs phiflow, given Contributor on the resource group.")
    chat_history: bool = Field(False, description="Also an Azure Cosmos DB account (Table) for the chat app's history.")
    monthly_budget: float = Field(0, ge=0, description="Mails a warning at this many dollars a month; 0: none.")
    budget_contact: str = Field("", description="The address that is warned.")

    @model_validator(mode="after")
    def _a_budget_warns_somebody(self) -> AzureResourcesConfig:
        if self.monthly_budget and not self.budget_contact:
            raise ValueError("budget_contact is empty, but monthly_budget is set; say whom it warns")
        return self


class AzurePlatformConfig(Section):
    """An Azure Machine Learning workspace."""

    kind: Literal["azure"] = "azure"
    subscription_id: str = Field(description="Empty or left out: AZURE_SUBSCRIPTION_ID.")
    resource_group: str = Field(description="Empty or left out: AZURE_RESOURCE_GROUP.")
    workspace: str = Field(description="Empty or left out: AZURE_ML_WORKSPACE.")
    location: str = Field("", description="Region of the cluster; empty: the workspace's.")
    credential: Literal["default", "cli", "device-code", "managed-identity", "environment", "workload-identity"] = (
        Field("default", description="How this process signs in; default tries them in azure-identity's order.")
    )
    tenant_id: str = Field("", description="The tenant to sign in to; empty: the credential's own.")
    identity: AzureIdentityConfig = AzureIdentityConfig()
    resources: AzureResourcesConfig = AzureResourcesConfig()
    poll_seconds: float = Field(15, gt=0, le=600, description="How often jobs and deployments are looked at.")
    hub_token_secret: str = Field(
        "", description="Secret of the workspace's key vault with the hub token that jobs read; never the token."
    )
    home: str = Field("", description="State folder of what runs on this machine: prepared data, the chat app.")

    @model_validator(mode="before")
    @classmethod
    def _coordinates_may_come_from_the_environment(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return values | {
            key: os.environ.get(name, "") for key, name in WORKSPACE_VARIABLES.items() if not values.get(key)
        }

    @model_validator(mode="after")
    def _names_a_workspace(self) -> AzurePlatformConfig:
        for key in ("subscription_id", "resource_group", "workspace"):
            if not getattr(self, key):
                raise ValueError(f"platform.{key} is empty; set it, or the variable {WORKSPACE_VARIABLES[key]}")
        return self


# Where the coordinates of the workspace come from when the configuration leaves them out.
WORKSPACE_VARIABLES = {
    "subscription_id": "AZURE_SUBSCRIPTION_ID",
    "resource_group": "AZURE_RESOURCE_GROUP",
    "workspace": "AZURE_ML_WORKSPACE",
}


def _kind(value: Any) -> str:
    kind = value.get("kind", "local") if isinstance(value, dict) else getattr(value, "kind", "local")
    return str(kind)


PlatformConfig = Annotated[
    Annotated[LocalPlatformConfig, Tag("local")] | Annotated[AzurePlatformConfig, Tag("azure")], Discriminator(_kind)
]


class ModelConfig(Section):
    """The base model and the name the result is registered under."""

    base: str = Field(
        "builtin/tiny-phi3", min_length=1, description="A hub id, a folder, models:/NAME/VERSION, or builtin/tiny-phi3."
    )
    revision: str = Field(
        "", description="The hub model's commit, tag or branch; for a folder, a label that names its state."
    )
    start_from: Literal["base", "champion"] = Field(
        "base", description="champion: train on from the version that serves; from the base while none does."
    )
    name: OptionalName = Field("", description="The registered model's name; empty: the run's name.")


class EnvironmentConfig(Section):
    """Which folders of environments/ the parts run in."""

    training: str = Field("training", pattern=r"^[a-z][a-z0-9-]*$")
    serving: str = Field("serving-cpu", pattern=r"^[a-z][a-z0-9-]*$")
    chat: str = Field("promptflow", pattern=r"^[a-z][a-z0-9-]*$")


class ComputeConfig(Section):
    """Where jobs run; on this machine only `max_instances` and `max_attempts` mean something."""

    name: OptionalName = Field("", description="The cluster; empty: this machine, or a name from the size.")
    size: str = Field("", description="Azure's name of the virtual machine, such as Standard_NC24ads_A100_v4.")
    tier: Literal["dedicated", "low_priority"] = "dedicated"
    min_instances: int = Field(0, ge=0, le=64, description="Nodes kept, and paid for, when nothing runs.")
    max_instances: int = Field(1, ge=1, le=64, description="Jobs, or nodes of a cluster, at the same time.")
    idle_seconds: int = Field(300, ge=60, le=86400, description="An idle node goes after this.")
    public_ip: bool = True
    num_nodes: int = Field(1, ge=1, le=64, description="Nodes one training job uses.")
    processes_per_node: int = Field(1, ge=1, le=16, description="Processes of a training job on a node, one a GPU.")
    shm_size: str = Field("8g", pattern=r"^\d+[bkmg]$", description="Shared memory of the job's container.")
    timeout_seconds: int = Field(86400, ge=60, le=2592000, description="A job is ended after this.")
    max_attempts: int = Field(3, ge=1, le=20, description="Attempts at a job that the platform interrupts, in one run.")


class GateConfig(Section):
    """What a candidate must show before it is registered."""

    metric: Literal["loss", "chrf", "exact_match"] = Field(
        "loss",
        description="loss: nats a token; chrf: 0 to 100, and exact_match: 0 to 1, of num_eval_generations answers.",
    )
    min_improvement: float = Field(
        0.01,
        description="How much better than its base, in the metric, the candidate must be; negative: may be worse.",
    )
    champion_tolerance: float = Field(
        0.05, ge=0, description="How much worse than the version now serving, in the metric, the candidate may be."
    )
    min_examples: int = Field(10, ge=2, description="Test examples needed to decide anything.")


class EndpointConfig(Section):
    """The endpoint."""

    name: OptionalName = Field("", description="Empty: the run's name; on Azure with a few letters of the workspace's.")
    description: str = Field("", description="For people, in Azure's studio.")


class ProbeConfig(Section):
    """How the service asks a deployment whether it is well."""

    initial_delay_seconds: int = Field(ge=1, le=3600)
    period_seconds: int = Field(ge=1, le=3600)
    timeout_seconds: int = Field(5, ge=1, le=600)
    failure_threshold: int = Field(30, ge=1, le=1000)
    success_threshold: int = Field(1, ge=1, le=100)


class ServingConfig(Section):
    """How one deployment serves its model; instances, queue and probes are the platform's own on this machine."""

    server: Literal["openai", "mlflow"] = Field(
        "openai", description="openai: our model server; mlflow: the model as MLflow packaged it, without code."
    )
    instance_type: str = Field("Standard_E4s_v3", min_length=1, description="Azure's name of the virtual machine.")
    instance_count: int = Field(1, ge=1, le=64)
    max_concurrent_requests: int = Field(16, ge=1, le=1024, description="For each instance.")
    request_timeout_seconds: float = Field(180, gt=0, le=3600)
    queue_wait_seconds: float = Field(120, gt=0, le=3600)
    start_timeout_seconds: float = Field(300, gt=0, le=7200)
    # A model may load for minutes: ready is asked often and long, alive late and seldom.
    liveness: ProbeConfig = ProbeConfig(initial_delay_seconds=500, period_seconds=100)
    readiness: ProbeConfig = ProbeConfig(initial_delay_seconds=10, period_seconds=10, failure_threshold=180)
    environment_variables: dict[str, str] = Field({}, description="For the model server; no secrets.")


class RolloutConfig(Section):
    """How traffic moves to a new deployment, and what moves it back."""

    steps: tuple[Annotated[int, Field(ge=1, le=100)], ...] = Field(
        (10, 50, 100), description="Percentages for the new deployment, rising, ending in 100."
    )
    hold_seconds: float = Field(10, ge=0, description="How long each step is watched.")
    max_error_percent: float = Field(0.0, ge=0, le=100)
    max_latency_ratio: float = Field(3.0, gt=0, description="The new deployment's p95 latency over the old one's.")
    max_latency_seconds: float = Field(60, gt=0, description="p95 latency that is too slow in any case.")
    num_probes: int = Field(6, ge=1, le=100, description="Questions asked before any traffic.")
    min_probe_match: float = Field(
        0.8, ge=0, le=1, description="Share of served probe answers that must equal the evaluated ones."
    )
    keep_previous: int = Field(1, ge=0, le=5, description="Deployments kept at 0 % for roll-back.")

    @model_validator(mode="after")
    def _steps_rise_to_100(self) -> RolloutConfig:
        rising = all(a < b for a, b in zip(self.steps, self.steps[1:], strict=False))
        if not self.steps or self.steps[-1] != 100 or not rising:
            raise ValueError(f"steps must rise and end in 100, got {list(self.steps)}")
        return self


class ChatConfig(Section):
    """The chat app in front of the endpoint."""

    port: int = Field(0, ge=0, le=65535, description="0: 8080 when free, else another, remembered.")
    system_prompt: str = ""
    max_tokens: int | None = Field(None, ge=1, le=32768, description="Longest answer; empty: the server's own limit.")
    temperature: float = Field(0.0, ge=0, le=2)
    request_timeout_seconds: float = Field(120, gt=0, le=3600)


class CostConfig(Section):
    """What a run may cost, and by which prices; nothing on this machine costs."""

    max_run: float | None = Field(
        None, gt=0, description="Dollars; a run that may cost more is refused before its job is submitted."
    )
    prices: str = Field("", description="A price table instead of the shipped one; `phiflow plan --refresh-prices`.")


class ApprovalConfig(Section):
    """How a run waits for a person, at the places that `approve` names."""

    timeout_seconds: int = Field(86400, ge=1, le=2592000)
    default: Literal["refuse", "approve"] = Field("refuse", description="The answer when nobody gave one in time.")


class RetentionConfig(Section):
    """What `phiflow sweep` may find unused; what serves, may be rolled back to, or shows a rejection always stays."""

    soak_hours: float = Field(24, ge=0, description="A deployment without traffic, and not kept, stays this long.")
    endpoint_hours: float = Field(0, ge=0, description="An endpoint's time to live; 0: it stays.")
    checkpoint_hours: float = Field(168, ge=0, description="Checkpoints stay this long after a job without a model.")
    job_hours: float = Field(2, ge=0, description="A job goes on this long after the last run that wants it.")
    keep_last: int = Field(5, ge=1, le=1000, description="Versions kept of model, data and each environment.")


def _train(value: Any) -> Any:
    return TrainConfig.from_dict(value) if isinstance(value, dict) else value


Train = Annotated[TrainConfig, BeforeValidator(_train), PlainSerializer(lambda value: value.to_dict())]


class PipelineConfig(Section):
    """Everything a run needs to know."""

    name: Name = Field(description="Names the run, the endpoint and the model unless they are set.")
    platform: PlatformConfig = LocalPlatformConfig()
    data: DataConfig
    model: ModelConfig = ModelConfig()
    environment: EnvironmentConfig = EnvironmentConfig()
    compute: ComputeConfig = ComputeConfig()
    train: Train = Field(default_factory=TrainConfig)
    gate: GateConfig = GateConfig()
    endpoint: EndpointConfig = EndpointConfig()
    serving: ServingConfig = ServingConfig()
    rollout: RolloutConfig = RolloutConfig()
    chat: ChatConfig = ChatConfig()
    approve: tuple[Literal["submit", "traffic"], ...] = Field(
        (), description="Where a run waits for a person: before it spends, before the new version takes traffic."
    )
    approval: ApprovalConfig = ApprovalConfig()
    cost: CostConfig = CostConfig()
    retention: RetentionConfig = RetentionConfig()

    @model_validator(mode="after")
    def _the_gate_has_enough_to_decide_on(self) -> PipelineConfig:
        answers = self.train.num_eval_generations
        if self.gate.metric != "loss" and answers < self.gate.min_examples:
            raise ValueError(
                f"gate.metric is {self.gate.metric}, but train.num_eval_generations is {answers} and "
                f"gate.min_examples {self.gate.min_examples}; raise train.num_eval_generations"
            )
        return self

    @property
    def endpoint_name(self) -> str:
        """The endpoint's name; on Azure one that nobody else in the region has, where none is given."""
        if self.endpoint.name or self.platform.kind == "local":
            return self.endpoint.name or self.name
        place = (self.platform.subscription_id, self.platform.resource_group, self.platform.workspace)
        return f"{self.name[:25].rstrip('-')}-{digest_of(*map(str.lower, place))[:6]}"

    @property
    def is_remote(self) -> bool:
        """Whether jobs and endpoint are somewhere else, where they bill."""
        return self.platform.kind != "local"

    @property
    def model_name(self) -> str:
        return self.model.name or self.name

    @property
    def serving_environment(self) -> str:
        """The environment that serves: without our code, a model is served where it was packaged."""
        return self.environment.training if self.serving.server == "mlflow" else self.environment.serving
