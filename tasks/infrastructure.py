"""Stage: what a run needs before it can work: environments, compute, the base model."""

from __future__ import annotations

from tasks.config import ComputeConfig, ModelConfig, PlatformConfig
from tasks.platforms.connect import connect
from tasks.platforms.refs import BaseModelRef, ComputeRef, EnvironmentRef
from tasks.step import step


@step(task_run_name="ensure_environment-{name}")
def ensure_environment(place: PlatformConfig, name: str) -> EnvironmentRef:
    """Have the environment built."""
    return connect(place).ensure_environment(name)


@step()
def ensure_compute(place: PlatformConfig, compute: ComputeConfig) -> ComputeRef:
    """Have a place where jobs run."""
    return connect(place).ensure_compute(compute)


@step()
def resolve_base_model(place: PlatformConfig, model: ModelConfig, environment: EnvironmentRef) -> BaseModelRef:
    """Pin the base model to its content."""
    return connect(place).resolve_base_model(model, environment)
