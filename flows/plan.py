"""What a run would do: prepares the data, which costs next to nothing, and only looks at the rest."""

from __future__ import annotations

from typing import Any

from tasks.config import PipelineConfig
from tasks.platforms.connect import connect
from tasks.platforms.refs import JobState, Origin
from tasks.report_documents import data_document, endpoint_document


def prepare(config: PipelineConfig) -> dict[str, Any]:
    """Prepare the data of a configuration and say where it is."""
    platform = connect(config.platform)
    training = platform.find_environment(config.environment.training)
    base = platform.resolve_base_model(config.model, training)
    data = platform.prepare_data(config.data, base, training, config.train.max_length)
    return data_document(data)


def make_plan(config: PipelineConfig, origins: dict[str, str]) -> dict[str, Any]:
    """Say step by step what a run would create and what it would reuse, by name."""
    from tasks.training import training_spec

    platform = connect(config.platform)
    names = (config.environment.training, config.serving_environment, config.environment.chat)
    # Here a plan builds what preparing the data needs; elsewhere it only looks.
    environments = [platform.find_environment(name) for name in (names if config.is_remote else names[:1])]
    training = environments[0]
    compute = platform.find_compute(config.compute)
    base = platform.resolve_base_model(config.model, training)
    data = platform.prepare_data(config.data, base, training, config.train.max_length)
    spec = training_spec(config, base, data, training, compute)
    job = platform.latest_job(spec.key)
    status = platform.read_job(job) if job else None
    if job is None or status is None:
        action = f"submit job {spec.key}: no job has this content"
    elif status.state == JobState.COMPLETED:
        action = f"reuse job {job.name}: it has completed with the same content"
    elif not status.state.ended:
        action = f"adopt job {job.name}: it is {status.state}"
    else:
        action = f"submit attempt {job.attempt + 1} of job {spec.key}: attempt {job.attempt} {status.state}"
    values = config.model_dump(mode="json")
    return {
        "config": {key: {"value": _at(values, key), "origin": origin} for key, origin in sorted(origins.items())},
        "data": data_document(data),
        "base_model": {"base": base.base, "revision": base.revision, "digest": base.digest},
        "environments": [_found(ref.name, ref.location, ref.origin) for ref in environments],
        "compute": _found(compute.name, compute.size, compute.origin),
        "job": {"key": spec.key, "action": action},
        "endpoint": endpoint_document(platform.read_endpoint(config.endpoint_name)) or {"name": config.endpoint_name},
    }


def _found(name: str, what: str, origin: Origin) -> dict[str, Any]:
    """One thing that a run would create, or use as it is."""
    action = "use" if origin.reused else "create"
    return {"name": name, "what": what, "action": action, "reason": origin.reason}


def _at(values: Any, dotted: str) -> Any:
    for part in dotted.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
