"""One YAML file is one run: its sections, their limits and defaults, as frozen pydantic models.

`tasks.config_files` reads YAML, applies `--set` overrides and turns mistakes into one line.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from trainer.config import TrainConfig

NAME = r"^[a-z][a-z0-9-]{1,30}[a-z0-9]$"
Name = Annotated[str, Field(pattern=NAME)]
OptionalName = Annotated[str, Field(pattern=NAME[:-1] + r"$|^$")]


class Section(BaseModel):
    """Frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _true_is_no_number(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError(f"{str(value).lower()} is neither a number nor text")
        return value


class LocalPlatformConfig(Section):
    """This machine."""

    kind: Literal["local"] = "local"
    home: str = Field("", description="State folder; empty: PHIFLOW_HOME, or .phiflow in the working directory.")


PlatformConfig = LocalPlatformConfig


class DataConfig(Section):
    """Where the chats come from and how they are split."""

    source: str = Field(min_length=1, description="A file (JSONL, JSON, CSV, Parquet) or a Hugging Face id.")
    config: str = Field("", description="The hub data set's configuration.")
    split: str = Field("train", description="The hub data set's split, slices allowed: train_sft[:1%].")
    revision: str = Field("", description="The hub data set's commit, tag or branch.")
    shape: Literal["auto", "messages", "sharegpt", "alpaca", "prompt-completion"] = "auto"
    group_by: str = Field("", description="Records with the same value of this key stay on one side.")
    test_share: float = Field(0.2, gt=0, lt=1)
    test_source: str = Field("", description="A fixed test set instead of a share of the source.")
    seed: int = Field(0, ge=0)
    max_rejected_share: float = Field(0.0, ge=0, le=1)


class ModelConfig(Section):
    """The base model and the name the result is registered under."""

    base: str = Field("builtin/tiny-phi3", min_length=1, description="A hub id, a local folder, or builtin/tiny-phi3.")
    revision: str = Field(
        "", description="The hub model's commit, tag or branch; for a folder, a label that names its state."
    )
    name: OptionalName = Field("", description="The registered model's name; empty: the run's name.")


class EnvironmentConfig(Section):
    """Which folders of environments/ the parts run in."""

    training: str = Field("training", pattern=r"^[a-z][a-z0-9-]*$")
    serving: str = Field("serving-cpu", pattern=r"^[a-z][a-z0-9-]*$")
    chat: str = Field("promptflow", pattern=r"^[a-z][a-z0-9-]*$")


class ComputeConfig(Section):
    """Where jobs run."""

    name: OptionalName = Field("", description="Empty: this machine.")
    max_instances: int = Field(1, ge=1, le=64, description="Jobs that may run at the same time.")


class GateConfig(Section):
    """What a candidate must show before it is registered."""

    metric: Literal["loss"] = "loss"
    min_improvement: float = Field(
        0.01, ge=0, description="Nats a token that the candidate must be better than its base by."
    )
    champion_tolerance: float = Field(
        0.05, ge=0, description="Nats a token that the candidate may be worse than the version now serving."
    )
    min_examples: int = Field(10, ge=2, description="Test examples needed to decide anything.")


class EndpointConfig(Section):
    """The endpoint's name."""

    name: OptionalName = Field("", description="Empty: the run's name.")


class ServingConfig(Section):
    """How one deployment serves its model."""

    server: Literal["openai"] = "openai"
    instance_count: Literal[1] = 1
    max_concurrent_requests: int = Field(16, ge=1, le=1024)
    request_timeout_seconds: float = Field(180, gt=0, le=3600)
    start_timeout_seconds: float = Field(300, gt=0, le=7200)


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

    @property
    def endpoint_name(self) -> str:
        return self.endpoint.name or self.name

    @property
    def model_name(self) -> str:
        return self.model.name or self.name
