"""What is there already of what a run would use: looked up by name, with nothing made that bills.

What cannot be looked up is told and left out, so that a plan needs no workspace and no hub. A mistake in the
configuration, or a thing that differs from it, ends the plan as it would end the run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from tasks.config import LocalPlatformConfig, PipelineConfig
from tasks.job_spec import training_spec
from tasks.lineage import choose_start, serving_version
from tasks.platforms.connect import connect, require_place
from tasks.platforms.errors import (
    EnvironmentBuildError,
    NotFoundError,
    PermissionDeniedError,
    TransientPlatformError,
)
from tasks.platforms.port import Platform
from tasks.platforms.refs import (
    BaseModelRef,
    ChatService,
    ComputeRef,
    DataManifest,
    DeploymentRef,
    EndpointStatus,
    EnvironmentRef,
    JobRef,
    JobSpec,
    JobState,
    JobStatus,
    ModelVersion,
    Origin,
)

T = TypeVar("T")
# What is not there yet, or not reached from here, is no reason to end a plan.
_NOT_REACHED = (NotFoundError, PermissionDeniedError, TransientPlatformError, EnvironmentBuildError)


@dataclass(kw_only=True)
class Survey:
    """What was found; None of what is not there, and `not_looked_up` names what nobody could look up, and why."""

    environments: dict[str, EnvironmentRef] = field(default_factory=dict)
    compute: ComputeRef | None = None
    base: BaseModelRef | None = None
    data: DataManifest | None = None
    job_key: str = ""
    job: JobRef | None = None
    job_status: JobStatus | None = None
    model: ModelVersion | None = None
    num_versions: int | None = None
    endpoint: EndpointStatus | None = None
    deployment: DeploymentRef | None = None
    chat: ChatService | None = None
    not_looked_up: dict[str, str] = field(default_factory=dict)

    def look(self, what: str, find: Callable[[], T]) -> T | None:
        """What `find` finds; None, and a reason, when it cannot be looked up from here."""
        try:
            return find()
        except _NOT_REACHED as error:
            self.not_looked_up[what] = str(error)
            return None

    @property
    def is_reached(self) -> bool:
        """Whether the place where the run would be is there and can be looked at."""
        return "platform" not in self.not_looked_up

    @property
    def job_exists(self) -> bool:
        """Whether a run would adopt a training job."""
        status = self.job_status
        return status is not None and (status.state == JobState.COMPLETED or not status.state.ended)


def survey(config: PipelineConfig) -> Survey:
    """Look for everything that a run of the configuration would make or use."""
    found = Survey()
    platform = connect(config.platform)
    found.look("platform", lambda: require_place(config))
    if not found.is_reached:  # the rest is asked of this machine alone
        _look_here(config, found)
        found.not_looked_up["platform"] += " A workspace that is not there yet is made by: phiflow up"
        return found
    found.compute = found.look("compute", lambda: platform.find_compute(config.compute))
    _look_at_inputs(config, platform, found)
    _look_at_job(config, platform, found)
    _look_at_endpoint(config, platform, found)
    return found


def _look_here(config: PipelineConfig, found: Survey) -> None:
    """Base model and data, as far as this machine can say without the workspace."""
    here = connect(LocalPlatformConfig(home=config.platform.home))
    training = found.look(config.environment.training, lambda: here.find_environment(config.environment.training))
    if training is not None:
        _look_at_data(config, here, training, found)
    found.chat = found.look("chat app", lambda: here.read_chat(config.endpoint_name))


def _look_at_inputs(config: PipelineConfig, platform: Platform, found: Survey) -> None:
    names = [config.environment.training, config.serving_environment]
    # On this machine looking builds, and so only what preparing the data needs is looked at.
    for name in dict.fromkeys(names if config.is_remote else names[:1]):
        if (environment := found.look(name, lambda name=name: platform.find_environment(name))) is not None:  # type: ignore[misc]
            found.environments[name] = environment
    if config.environment.training in found.environments:
        _look_at_data(config, platform, found.environments[config.environment.training], found)


def _look_at_data(config: PipelineConfig, platform: Platform, training: EnvironmentRef, found: Survey) -> None:
    found.base = found.look("base model", lambda: platform.find_base_model(config.model, training))
    base, length = found.base, config.train.max_length
    if base is None:
        # Without the tokenizer the data can still be read and split; its tokens are told by its characters.
        reason = Origin(reused=False, reason="not resolved")
        base = BaseModelRef(base=config.model.base, revision="", digest="unresolved", location="", origin=reason)
        platform = connect(LocalPlatformConfig(home=config.platform.home))
        training = platform.find_environment(config.environment.training)
    found.data = found.look("data", lambda: platform.find_data(config.data, base, training, length))


def _look_at_job(config: PipelineConfig, platform: Platform, found: Survey) -> None:
    training = found.environments.get(config.environment.training)
    if found.base is None or found.data is None or training is None or found.compute is None:
        return
    start = _start(config, platform, found, lambda base: _spec(config, found, training, base))
    if start is None:
        return
    spec = _spec(config, found, training, start)
    found.job_key = spec.key
    found.job = found.look("job", lambda: platform.latest_job(spec.key))
    job = found.job
    if job is not None:
        found.job_status = found.look("job", lambda: platform.read_job(job))
    _look_at_model(config, platform, found)


def _spec(config: PipelineConfig, found: Survey, training: EnvironmentRef, base: BaseModelRef) -> JobSpec:
    assert found.data is not None and found.compute is not None
    return training_spec(config, base, found.data, training, found.compute)


def _start(
    config: PipelineConfig, platform: Platform, found: Survey, spec_from: Callable[[BaseModelRef], JobSpec]
) -> BaseModelRef | None:
    """What training would start from; None where that cannot be told without starting the registry."""
    base = found.base
    if config.model.start_from == "base" or base is None:
        return base
    status = found.look("endpoint", lambda: platform.read_endpoint(config.endpoint_name))
    serving = serving_version(status)
    versions = found.look("model versions", lambda: platform.find_models(config.model_name)) if serving else ()
    if versions is None:
        found.not_looked_up["job"] = "the registry does not run now, so the version that serves is not known"
        return None
    champion = next((version for version in versions if version.version == serving), None)
    found.base = choose_start(config.model, base, champion, spec_from)
    return found.base


def _look_at_model(config: PipelineConfig, platform: Platform, found: Survey) -> None:
    versions = found.look("model versions", lambda: platform.find_models(config.model_name))
    if versions is None:
        return
    found.num_versions = max((int(version.version) for version in versions), default=0)
    job, status = found.job, found.job_status
    if job is None or status is None or status.state != JobState.COMPLETED:
        return
    result = found.look("job", lambda: platform.read_job_result(job))
    digest = result["model_digest"] if result else ""
    found.model = next((version for version in versions if version.digest == digest), None)


def _look_at_endpoint(config: PipelineConfig, platform: Platform, found: Survey) -> None:
    name, model = config.endpoint_name, found.model
    found.endpoint = found.look("endpoint", lambda: platform.read_endpoint(name))
    found.chat = found.look("chat app", lambda: platform.read_chat(name))
    environment = found.environments.get(config.serving_environment)
    if not config.is_remote and model is not None:
        environment = found.look("serving", lambda: platform.find_environment(config.serving_environment))
    if model is not None and environment is not None and found.endpoint is not None:
        serving = environment
        found.deployment = found.look(
            "deployment", lambda: platform.find_deployment(name, model, config.serving, serving)
        )
