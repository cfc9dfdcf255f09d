"""What a run would do and what it would cost; prepares the data on this machine, and only looks at the rest."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from flows.plan_steps import PlanStep, plan_steps
from flows.survey import Survey, survey
from tasks.config import PipelineConfig
from tasks.estimate.cap import require_within_cap
from tasks.estimate.documents import estimate_document
from tasks.estimate.estimate import RunEstimate, estimate_run, per_thousand
from tasks.estimate.stages import Stage
from tasks.platforms.connect import connect, region
from tasks.platforms.errors import ConfigError, GateRefusedError, NotFoundError, PermissionDeniedError
from tasks.platforms.refs import JobState, Origin
from tasks.report_documents import data_document, endpoint_document


def prepare(config: PipelineConfig) -> dict[str, Any]:
    """Prepare the data of a configuration and say where it is."""
    platform = connect(config.platform)
    training = platform.find_environment(config.environment.training)
    base = platform.resolve_base_model(config.model, training)
    data = platform.prepare_data(config.data, base, training, config.train.max_length)
    return data_document(data)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run of a configuration would do.

    Args:
        settings: every value of the configuration with its origin, by dotted key.
        refreshed: where refreshed prices were kept, or why none were asked for; empty when nobody wanted them.
    """

    config: PipelineConfig
    settings: dict[str, dict[str, Any]]
    found: Survey
    estimate: RunEstimate
    steps: list[PlanStep]
    refreshed: str = ""

    @property
    def refusal(self) -> str:
        """What the cost cap would say to this run, or an empty string."""
        try:
            require_within_cap(self.config, self.estimate)
        except GateRefusedError as error:
            return str(error)
        return ""

    @property
    def per_thousand(self) -> Stage | None:
        """Training on a thousand conversations, where the data could not be read."""
        work = self.estimate.work
        return per_thousand(self.config, self.estimate) if work and work.is_stand_in else None

    def document(self) -> dict[str, Any]:
        """The plan for programs."""
        config, found, thousand = self.config, self.found, self.per_thousand
        return {
            "config": self.settings,
            "data": data_document(found.data) if found.data else None,
            "base_model": _base_document(config, found),
            "environments": [_found(ref.name, ref.location, ref.origin) for ref in found.environments.values()],
            "compute": _found(found.compute.name, found.compute.size, found.compute.origin) if found.compute else None,
            "job": {"key": found.job_key, "action": _job_action(found)},
            "endpoint": endpoint_document(found.endpoint) or {"name": config.endpoint_name},
            "steps": [asdict(step) for step in self.steps],
            "not_looked_up": found.not_looked_up,
            "estimate": estimate_document(self.estimate),
            "per_thousand_conversations": asdict(thousand) if thousand else None,
            "cap": {"max_run": config.cost.max_run, "refuses": self.refusal},
            "refreshed_prices": self.refreshed,
        }


def make_plan(config: PipelineConfig, origins: dict[str, str], *, refresh_prices: bool = False) -> Plan:
    """Say step by step what a run would create and what it would reuse, by name, and what that costs."""
    refreshed = _refresh(config) if refresh_prices else ""
    found = survey(config)
    values = config.model_dump(mode="json")
    return Plan(
        config=config,
        settings={key: {"value": _at(values, key), "origin": origin} for key, origin in sorted(origins.items())},
        found=found,
        estimate=_estimate(config, found),
        steps=plan_steps(config, found),
        refreshed=refreshed,
    )


def _estimate(config: PipelineConfig, found: Survey) -> RunEstimate:
    images = [not ref.origin.reused for ref in found.environments.values() if ref.location.startswith("azureml:")]
    new = sum(images) if images else None
    return estimate_run(config, found.base, found.data, job_exists=found.job_exists, num_new_images=new)


def _refresh(config: PipelineConfig) -> str:
    from tasks.estimate.retail_prices import refresh_prices

    if not config.is_remote:
        return "nothing on this machine costs, so no price was asked for"
    try:
        where = region(config)
    except (NotFoundError, PermissionDeniedError) as error:
        raise ConfigError(
            f"The region to ask prices of is not known: {error.message}",
            fix="Set platform.location, for example --set platform.location=westeurope",
        ) from error
    return str(refresh_prices(config, where))


def _job_action(found: Survey) -> str:
    job, status = found.job, found.job_status
    if not found.job_key:
        return "not known, before base model and data are"
    if job is None or status is None:
        return f"submit job {found.job_key}: no job has this content"
    if status.state == JobState.COMPLETED:
        return f"reuse job {job.name}: it has completed with the same content"
    if not status.state.ended:
        return f"adopt job {job.name}: it is {status.state}"
    return f"submit attempt {job.attempt + 1} of job {found.job_key}: attempt {job.attempt} {status.state}"


def _base_document(config: PipelineConfig, found: Survey) -> dict[str, Any]:
    base = found.base
    if base is None:
        return {"base": config.model.base, "revision": config.model.revision, "digest": ""}
    return {"base": base.base, "revision": base.revision, "digest": base.digest}


def _found(name: str, what: str, origin: Origin) -> dict[str, Any]:
    """One thing that a run would create, or use as it is."""
    action = "use" if origin.reused else "create"
    return {"name": name, "what": what, "action": action, "reason": origin.reason}


def _at(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
