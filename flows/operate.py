"""The commands that look at what serves, and change it by hand."""

from __future__ import annotations

import json
import os
from typing import Any

from flows.billing import what_bills
from flows.command import open_configuration
from tasks.config import PipelineConfig
from tasks.platforms.connect import connect, local_services, stop_local_jobs, tracking_uri
from tasks.platforms.errors import ConfigError, NotFoundError
from tasks.platforms.refs import ModelVersion


def read_status(config: PipelineConfig) -> dict[str, Any]:
    """Gate, model, endpoint, chat and MLflow as they are now."""
    from tasks.report_documents import endpoint_document, model_document

    services = local_services(config.platform.home)
    if not services.revive() and not config.is_remote:
        nothing = dict.fromkeys(("gate", "model", "endpoint", "chat", "mlflow"))
        return {**nothing, "jobs": [], "history": [], "services": services.table()}
    platform = connect(config.platform)
    endpoint = platform.read_endpoint(config.endpoint_name)
    model: ModelVersion | None = None
    if endpoint and endpoint.traffic.main:
        serving = next(d for d in endpoint.deployments if d.name == endpoint.traffic.main)
        model = platform.read_model(config.model_name, serving.model_version)
    chat = platform.read_chat(config.endpoint_name)
    return {
        "jobs": [job.name for job in platform.find_jobs(config.name)],
        "gate": json.loads(model.gate) if model else None,
        "model": model_document(model),
        "endpoint": endpoint_document(endpoint),
        "chat": {"url": chat.url} if chat else None,
        "mlflow": {"url": platform.tracking_url()} if endpoint else None,
        "history": list(endpoint.history) if endpoint else [],
        "services": services.table(),
    }


def ask(config: PipelineConfig, question: str, max_tokens: int) -> dict[str, Any]:
    """One question to the endpoint, as the chat app would ask it."""
    _require_running(config)
    platform = connect(config.platform)
    if platform.read_endpoint(config.endpoint_name) is None:
        raise NotFoundError(f"There is no endpoint {config.endpoint_name}.", fix="Run the pipeline first: phiflow run")
    system = [{"role": "system", "content": config.chat.system_prompt}] if config.chat.system_prompt else []
    messages = [*system, {"role": "user", "content": question}]
    answer = platform.invoke(
        config.endpoint_name, messages, max_tokens=max_tokens, timeout_seconds=config.chat.request_timeout_seconds
    )
    return {
        "question": question,
        "answer": answer.text,
        "deployment": answer.deployment,
        "model_version": answer.model_version,
        "seconds": round(answer.seconds, 3),
    }


def _require_running(config: PipelineConfig) -> None:
    if not local_services(config.platform.home).revive() and not config.is_remote:
        raise NotFoundError(
            f"Nothing serves in {local_services(config.platform.home).home}.", fix="Start it with: phiflow run"
        )


def cancel_everything(config: PipelineConfig) -> list[str]:
    """Cancel the configuration's runs, and the jobs that a dead run left."""
    from flows.run_command import point_at_prefect

    point_at_prefect(config)
    from flows.runs import cancel_runs

    lines = [f"Asked run {run_id} to stop." for run_id in cancel_runs(config.name)]
    platform = connect(config.platform)
    for job in platform.find_jobs(config.name):
        status = platform.cancel_job(job)
        lines.append(f"Job {job.name} is {status.state}; the next run starts from its last checkpoint.")
    return lines or [f"Nothing of {config.name} runs."]


def roll_back_endpoint(config: PipelineConfig, reason: str, to_version: str) -> dict[str, Any]:
    """Roll back and return the endpoint as it is then."""
    from tasks.report_documents import endpoint_document
    from tasks.roll_back import roll_back

    _require_running(config)
    roll_back(config, reason, to_version)
    return endpoint_document(connect(config.platform).read_endpoint(config.endpoint_name)) or {}


def freeze_endpoint(config: PipelineConfig, reason: str) -> str:
    """Freeze, or with an empty reason thaw."""
    connect(config.platform).freeze_endpoint(config.endpoint_name, reason)
    return f"Endpoint {config.endpoint_name} is {'frozen: ' + reason if reason else 'no longer frozen'}."


def stop_everything() -> list[str]:
    """End jobs and services of this state folder."""
    services = local_services()
    num_runs = services.interrupt_runs()
    lines = [f"Interrupted {num_runs} run(s)."] if num_runs else []
    lines += [f"Stopped job {name}; the next run continues it from its last checkpoint." for name in stop_local_jobs()]
    names = services.stop()
    return [*lines, f"Stopped {', '.join(names) if names else 'nothing: no service is defined'}.", *_still_billed()]


def _still_billed() -> list[str]:
    """What the configuration last run here may have left running elsewhere."""
    try:
        return what_bills(open_configuration(None)[0])
    except ConfigError:  # it was changed or moved since, or its workspace is no longer named
        return []


def exports(config: PipelineConfig) -> dict[str, str]:
    """Where the user's own Prefect and MLflow commands should look; starts the Prefect server."""
    services = local_services(config.platform.home)
    prefect = {} if os.environ.get("PREFECT_API_URL") else services.prefect_environment()
    return {"PHIFLOW_HOME": str(services.home), **prefect, "MLFLOW_TRACKING_URI": tracking_uri(config.platform)}
