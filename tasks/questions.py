"""What a person is asked before a job and before traffic, and whether what was approved is still what would happen."""

from __future__ import annotations

from prefect.cache_policies import NO_CACHE

from tasks.approval import await_approval
from tasks.config import PipelineConfig, PlatformConfig
from tasks.estimate.estimate import RunEstimate
from tasks.estimate.prices import hourly_cost, load_prices
from tasks.estimate.text import estimate_markdown
from tasks.lease import EndpointLease
from tasks.platforms.connect import connect
from tasks.platforms.errors import GateRefusedError
from tasks.platforms.refs import DeploymentRef, EndpointStatus, JobSpec, ModelVersion
from tasks.report import RunReport, comparison, sample_answers
from tasks.rollout import objection_to_traffic, record_rollout
from tasks.step import log, step
from tasks.training import adoptable_job

_AGAIN = "Run the same command again."


def approve_submission(config: PipelineConfig, spec: JobSpec, estimate: RunEstimate) -> None:
    """Ask before the training job is submitted; one that runs or has completed is adopted, and nobody is asked.

    The attempts that follow when the platform interrupts the job belong to what was approved.

    Raises:
        GateRefusedError: who refused, and why.
    """
    if "submit" not in config.approve:
        return
    if job := adoptable_job(connect(config.platform), spec):
        log().info("Nobody is asked about job=%s: it is there already", job.name)
        return
    question = (
        f"## Submit training job {spec.key}?\n\n"
        f"`{spec.model.base}` on {spec.data.num_train} conversations, tested on {spec.data.num_test}, "
        f"on {spec.num_nodes} node(s) of {spec.compute.size}, for at most {spec.timeout_seconds / 3600:.1f} h, "
        f"and up to {spec.max_attempts} attempts when the platform interrupts it.\n\n{estimate_markdown(estimate)}"
    )
    approval = await_approval("submit", question, config.approval)
    approval.require(f"Job {spec.key} was not submitted")


def approve_traffic(
    config: PipelineConfig,
    lease: EndpointLease,
    before: EndpointStatus,
    deployment: DeploymentRef,
    report: RunReport,
) -> EndpointStatus:
    """Ask before the deployment gets traffic, and return the endpoint as it is after the answer.

    Others may change the endpoint meanwhile: who takes a version back in a hurry must not wait for an answer.

    Raises:
        GateRefusedError: who refused, and why; or what changed meanwhile, so that the answer is to another question.
    """
    if "traffic" not in config.approve or _shares(before) == {deployment.name: 100}:
        return before
    model = report.model
    assert model
    question = _traffic_question(config, before, deployment, report)
    try:
        with lease.lent():
            approval = await_approval("traffic", question, config.approval)
    finally:
        if lease.is_held:
            _record_again(config.platform, before.name, deployment.name)
    if approval.rejects_version:
        connect(config.platform).reject_model(model, f"{approval.by}: {approval.reason or 'refused'}")
    rejected = " and was rejected" if approval.rejects_version else ""
    approval.require(f"Version {model.version} got no traffic{rejected}")
    return require_unchanged(config.platform, before, deployment, model)


def _record_again(place: PlatformConfig, endpoint: str, deployment: str) -> None:
    """Note a rollout that has not moved traffic yet, since others could change the endpoint and its notes."""
    platform = connect(place)
    now = platform.read_endpoint(endpoint)
    if now and any(d.name == deployment and not d.percent for d in now.deployments):
        record_rollout(platform, now, deployment)


@step(cache_policy=NO_CACHE)
def require_unchanged(
    place: PlatformConfig, before: EndpointStatus, deployment: DeploymentRef, model: ModelVersion
) -> EndpointStatus:
    """The endpoint as it is after others could change it.

    Raises:
        GateRefusedError: it is not as it was, or the version or the deployment may not get traffic any more.
    """
    platform = connect(place)
    now = platform.read_endpoint(before.name)
    if now is None:
        raise GateRefusedError(f"Endpoint {before.name} was deleted while the run waited.", fix=_AGAIN)
    if objection := objection_to_traffic(now, platform.read_model(model.name, model.version)):
        raise GateRefusedError(f"{objection[0].upper()}{objection[1:]}.")
    if _shares(now) not in (_shares(before), {deployment.name: 100}):
        raise GateRefusedError(
            f"The traffic of {now.name} was changed while the run waited, from {_shares(before)} to {_shares(now)}.",
            fix=f"{_AGAIN} It compares with the version that serves then.",
        )
    candidate = next((d for d in now.deployments if d.name == deployment.name), None)
    if candidate is None or candidate.state != "ready":
        found = f"is {candidate.state}" if candidate else "was deleted"
        raise GateRefusedError(f"Deployment {deployment.name} {found} since it was shown for approval.", fix=_AGAIN)
    return now


def _shares(status: EndpointStatus) -> dict[str, int]:
    return {name: percent for name, percent in status.traffic.percents if percent}


def _traffic_question(
    config: PipelineConfig, before: EndpointStatus, deployment: DeploymentRef, report: RunReport
) -> str:
    assert report.result
    serving = next((d for d in before.deployments if d.name == before.traffic.main), None)
    instead = f", which version {serving.model_version} has now" if serving else ", where nothing serves yet"
    details = connect(config.platform).read_job_result(report.result.job)
    steps = f"in steps of {', '.join(map(str, config.rollout.steps))} %" if serving else "at once"
    lines = [
        f"## Give version {deployment.model_version} the traffic of {before.name}{instead}?",
        f"It is deployed as `{deployment.name}`, answers as it was evaluated, and gets the traffic {steps}.",
        waiting_costs(config, num_deployments=2 if serving else 1),
        comparison(report),
        sample_answers(details),
    ]
    return "\n\n".join(line for line in lines if line)


def waiting_costs(config: PipelineConfig, num_deployments: int) -> str:
    """What the deployments bill while a person is waited for; empty on this machine."""
    if not config.is_remote:
        return ""
    serving = config.serving
    nodes = f"{serving.instance_count} x {serving.instance_type}"
    price = hourly_cost(serving.instance_type, serving.instance_count, prices=load_prices(config))
    dollars = f", {price:.2f} dollars an hour" if price is not None else ""
    both = "Both deployments bill while this waits, each" if num_deployments > 1 else "It bills while this waits,"
    return f"{both} {nodes}{dollars}."
