"""The whole system on one page: chat data in, a served chat app out.

Every step looks for what it would make, by the name of its content, and adopts it; so the flow may be
killed at any line and run again, and a run in which nothing changed ends in seconds.
"""

from __future__ import annotations

from dataclasses import replace

from prefect import flow
from prefect.states import Completed, State

from flows.hooks import cancel_what_the_run_started
from flows.runs import begin_run
from tasks.chat import publish_connection, serve_chat
from tasks.config import PipelineConfig, PlatformConfig
from tasks.config_files import with_absolute_paths
from tasks.costs import estimate_costs
from tasks.data import prepare_data
from tasks.estimate.cap import require_within_cap
from tasks.evaluation import compare_with_champion, read_champion
from tasks.infrastructure import (
    ensure_compute,
    ensure_environment,
    resolve_base_model,
)
from tasks.job_spec import training_spec
from tasks.lease import endpoint_lease
from tasks.platforms.errors import GateRefusedError
from tasks.questions import approve_submission, approve_traffic
from tasks.registry import register_model
from tasks.report import RunReport, publish_report, tracking_url
from tasks.restore import restore_traffic
from tasks.rollout import (
    deploy,
    ensure_endpoint,
    objection_to_traffic,
    probe_deployment,
    read_traffic,
    retire_deployments,
    shift_traffic,
)
from tasks.start import start_from_champion
from tasks.training import failed_attempt, finish_training, submit_training


@flow(
    name="fine-tune-and-deploy",
    flow_run_name="{config.name}",
    persist_result=True,
    on_cancellation=[cancel_what_the_run_started],
)
def fine_tune_and_deploy(config: PipelineConfig) -> RunReport | State[RunReport]:
    """Fine-tune a model on chat data and serve it, if it is better, without losing a request."""
    begin_run(config)
    config = with_absolute_paths(config)
    place = config.platform
    training = ensure_environment(place, config.environment.training)
    compute = ensure_compute(place, config.compute)
    base = resolve_base_model(place, config.model, training)
    data = prepare_data(place, config.data, base, training, config.train.max_length)
    if config.model.start_from == "champion":
        base = start_from_champion(config, base, data, training, compute)
    spec = training_spec(config, base, data, training, compute)
    estimate = estimate_costs(config, spec)
    report = RunReport(base_model=base, data=data, estimate=estimate)
    try:
        require_within_cap(config, estimate)
        approve_submission(config, spec, estimate)
    except GateRefusedError as error:
        return refuse(place, report, str(error))
    job = submit_training(place, spec, failed_attempt(place, spec))
    serving = ensure_environment(place, config.serving_environment)
    promptflow = ensure_environment(place, config.environment.chat)
    result = finish_training(place, spec, job)
    endpoint = ensure_endpoint(place, config.endpoint_name, config.endpoint.description)
    champion = read_champion(place, endpoint, config.model_name)
    gate = compare_with_champion(place, spec, result, champion, config.gate)
    report = replace(report, result=result, gate=gate, tracking_url=tracking_url(place))
    if not gate.passed:
        return refuse(place, report, gate.reason)
    model = register_model(config, spec, result, gate)
    report = replace(report, model=model)
    with endpoint_lease(place, endpoint) as lease:
        before = read_traffic(place, endpoint)
        if objection := objection_to_traffic(before, model):
            return refuse(place, replace(report, endpoint=before), objection)
        try:
            deployment = deploy(place, before, model, config.serving, serving)
            probe_deployment(place, deployment, result, config.rollout)
            before = approve_traffic(config, lease, before, deployment, report)
            traffic = shift_traffic(place, deployment, before, config.rollout, result)
        except BaseException as error:
            restore_traffic(place, before, error)
            if isinstance(error, GateRefusedError):
                return refuse(place, replace(report, endpoint=before), str(error))
            raise
        after = retire_deployments(place, traffic, before, config.rollout)
    connection = publish_connection(place, endpoint)
    chat = serve_chat(place, connection, config.chat, promptflow)
    report = replace(report, endpoint=after, chat=chat, outcome="Completed", reason=gate.reason)
    publish_report(place, report)
    return report


def refuse(place: PlatformConfig, report: RunReport, reason: str) -> State[RunReport]:
    """End the run as Completed, named Refused: somebody said no, and nothing is broken."""
    report = replace(report, outcome="Refused", reason=reason)
    publish_report(place, report)
    return Completed(name="Refused", message=reason, data=report)
