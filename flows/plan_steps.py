"""What a run would do, step by step, from what is there: create, reuse, change, adopt, or not known."""

from __future__ import annotations

from dataclasses import dataclass

from flows.survey import Survey
from tasks.config import PipelineConfig
from tasks.lineage import serving_version
from tasks.platforms.refs import JobState, Origin

CREATE, REUSE, CHANGE, ADOPT, UNKNOWN, NOTHING = "create", "reuse", "change", "adopt", "not known", "nothing"


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanStep:
    """One step of the flow: what it acts on, and why in that way."""

    step: str
    action: str
    name: str
    reason: str


def plan_steps(config: PipelineConfig, found: Survey) -> list[PlanStep]:
    """Every step of the flow in its order."""
    return [
        *_environments(config, found),
        _compute(config, found),
        *_inputs(config, found),
        _job(config, found),
        *_approval(config, "submit"),
        _endpoint(config, found),
        _comparison(config, found),
        _registration(config, found),
        _deployment(config, found),
        *_approval(config, "traffic"),
        _traffic(config, found),
        _chat(config, found),
    ]


def _step(step: str, action: str, name: str, reason: str) -> PlanStep:
    return PlanStep(step=step, action=action, name=name, reason=reason)


def _of(step: str, name: str, origin: Origin) -> PlanStep:
    return _step(step, REUSE if origin.reused else CREATE, name, origin.reason)


def _why_not(found: Survey, *names: str) -> str:
    for name in (*names, "platform"):
        if name in found.not_looked_up:
            return "it could not be looked up"
    return "it depends on what could not be looked up"


def _environments(config: PipelineConfig, found: Survey) -> list[PlanStep]:
    told = []
    names = (config.environment.training, config.serving_environment, config.environment.chat)
    for name in dict.fromkeys(names):
        environment = found.environments.get(name)
        if environment is not None:
            label = f"{name} {environment.version[:16]}"
            told.append(_of("environment", label, environment.origin))
        elif name in found.not_looked_up or (config.is_remote and name != config.environment.chat):
            told.append(_step("environment", UNKNOWN, name, _why_not(found, name)))
        else:
            told.append(_step("environment", f"{CREATE} or {REUSE}", name, "built on this machine unless it is"))
    return told


def _compute(config: PipelineConfig, found: Survey) -> PlanStep:
    if found.compute is None:
        return _step("compute", UNKNOWN, config.compute.name or config.compute.size, _why_not(found, "compute"))
    size = f" ({found.compute.size})" if config.is_remote else ""
    return _of("compute", f"{found.compute.name}{size}", found.compute.origin)


def _inputs(config: PipelineConfig, found: Survey) -> list[PlanStep]:
    base, data = found.base, found.data
    label = base.base if base is not None else config.model.base
    label += f" at {base.revision[:12]}" if base is not None and base.revision else ""
    told = [
        _step("base model", UNKNOWN, label, _why_not(found, "base model"))
        if base is None
        else _of("base model", label, base.origin)
    ]
    if data is None:
        return [*told, _step("data", UNKNOWN, config.data.label, _why_not(found, "data"))]
    name = f"{data.digest[:12]}: {data.num_train:,} to train, {data.num_test:,} to test"
    return [*told, _of("data", name, data.origin)]


def _job(config: PipelineConfig, found: Survey) -> PlanStep:
    job, status = found.job, found.job_status
    if not found.job_key:
        return _step("job", UNKNOWN, f"{config.name}-...", "its name comes from base model, data and environment")
    if job is None or status is None:
        if "job" in found.not_looked_up:
            return _step("job", UNKNOWN, found.job_key, _why_not(found, "job"))
        return _step("job", CREATE, found.job_key, "no job has this content")
    if status.state == JobState.COMPLETED:
        return _step("job", REUSE, job.name, "it has completed with the same content")
    if not status.state.ended:
        return _step("job", ADOPT, job.name, f"it is {status.state}")
    attempt = job.attempt
    return _step("job", CREATE, f"{job.key}-a{attempt + 1}", f"attempt {attempt} {status.state}; it goes on from there")


def _approval(config: PipelineConfig, place: str) -> list[PlanStep]:
    if place not in config.approve:
        return []
    hours = config.approval.timeout_seconds / 3600
    what = {"submit": "before the job is submitted", "traffic": "before the new version takes traffic"}[place]
    reason = f"waits up to {hours:g} h for a person, then {config.approval.default}s"
    return [_step("approval", "ask", what, reason)]


def _comparison(config: PipelineConfig, found: Survey) -> PlanStep:
    if "endpoint" in found.not_looked_up or not found.is_reached:
        return _step("comparison", UNKNOWN, "with the version now serving", _why_not(found, "endpoint"))
    serving = serving_version(found.endpoint)
    if not serving:
        return _step("comparison", NOTHING, "with the base model alone", "no version serves yet")
    if found.model is not None and found.model.version == serving:
        return _step("comparison", NOTHING, f"version {serving}", "the candidate is the version now serving")
    return _step("comparison", f"{CREATE} or {REUSE}", f"of version {serving}", "scored by a job on this test set")


def _registration(config: PipelineConfig, found: Survey) -> PlanStep:
    name = config.model_name
    if found.model is not None:
        return _step("model", ADOPT, f"{name} version {found.model.version}", "it has the same content")
    if found.num_versions is None:
        reason = _why_not(found, "model versions") if config.is_remote else "the registry does not run now"
        return _step("model", CREATE, f"{name}, its next version", f"if the gate passes; its number: {reason}")
    return _step("model", CREATE, f"{name} version {found.num_versions + 1}", "if the gate passes")


def _endpoint(config: PipelineConfig, found: Survey) -> PlanStep:
    name = config.endpoint_name
    if found.endpoint is not None:
        return _step(
            "endpoint", REUSE, name, f"frozen: {found.endpoint.frozen}" if found.endpoint.frozen else "it is there"
        )
    if "endpoint" in found.not_looked_up or not found.is_reached:
        return _step("endpoint", UNKNOWN, name, _why_not(found, "endpoint"))
    return _step("endpoint", CREATE, name, "there is no endpoint of that name")


def _deployment(config: PipelineConfig, found: Survey) -> PlanStep:
    size = f"{config.serving.instance_count} x {config.serving.instance_type}" if config.is_remote else "a process here"
    if found.deployment is not None:
        action = ADOPT if found.deployment.origin.reused else CREATE
        return _step("deployment", action, found.deployment.name, f"{found.deployment.origin.reason}; {size}")
    version = found.num_versions + 1 if found.num_versions is not None and found.model is None else "<version>"
    version = found.model.version if found.model else version
    return _step("deployment", CREATE, f"v{version}-<digest>", f"named by the model that is trained; {size}")


def _traffic(config: PipelineConfig, found: Survey) -> PlanStep:
    steps = " -> ".join(f"{percent} %" for percent in config.rollout.steps)
    endpoint, deployment = found.endpoint, found.deployment
    if endpoint and endpoint.frozen:
        return _step("traffic", NOTHING, f"the endpoint is frozen: {endpoint.frozen}", "the run ends Refused before it")
    if found.model is not None and found.model.rejected:
        return _step("traffic", NOTHING, f"version {found.model.version} was rejected", found.model.rejected)
    if endpoint and deployment and endpoint.traffic.main == deployment.name:
        return _step("traffic", NOTHING, f"{deployment.name} has it", "the same version serves already")
    if "endpoint" in found.not_looked_up or not found.is_reached:
        return _step("traffic", UNKNOWN, steps, "at once to the first deployment, step by step to the next")
    main = endpoint.traffic.main if endpoint else ""
    if not main:
        return _step("traffic", CREATE, "100 %", "to the first deployment, once it answers the probes")
    kept = config.rollout.keep_previous
    after = f"{main} is kept at 0 % for roll-back" if kept else f"{main} is deleted after"
    return _step("traffic", CHANGE, steps, f"each step held {config.rollout.hold_seconds:g} s and watched; {after}")


def _chat(config: PipelineConfig, found: Survey) -> PlanStep:
    if found.chat is not None:
        return _step("chat app", ADOPT, found.chat.url, "it serves, and is refreshed if its settings changed")
    if "chat app" in found.not_looked_up:
        return _step("chat app", UNKNOWN, f"chat-{config.endpoint_name}", _why_not(found, "chat app"))
    return _step("chat app", CREATE, f"of {config.endpoint_name}, on this machine", "none serves")
