"""Stage: the gate. Is the candidate better than its base, and not worse than the version now serving?

Decided on the paired difference of the metric that the report shows, with a 95 % confidence interval, so that noise
decides nothing; `trainer.paired` has the method.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tasks.config import GateConfig, PlatformConfig
from tasks.evaluation_job import evaluation_spec
from tasks.job_wait import finish_job
from tasks.platforms.connect import connect
from tasks.platforms.errors import NotFoundError
from tasks.platforms.port import Platform
from tasks.platforms.refs import EndpointRef, GateReport, JobSpec, ModelVersion, Origin, TrainingResult
from tasks.step import log, step
from tasks.training import scores_of
from trainer.paired import Paired, compare

Rows = list[dict[str, Any]]
_NAMES = {"loss": "loss", "exact_match": "exact match", "chrf": "chrF"}
_DIGITS = {"loss": 4, "exact_match": 3, "chrf": 2}


@step(cache_policy=NO_CACHE)
def read_champion(place: PlatformConfig, endpoint: EndpointRef, model: str) -> ModelVersion | None:
    """The model version that has the endpoint's traffic now, if any."""
    return champion_of(connect(place), endpoint.name, model)


def champion_of(platform: Platform, endpoint: str, model: str) -> ModelVersion | None:
    """The registered version that has an endpoint's traffic; None without an endpoint, traffic or registration."""
    status = platform.read_endpoint(endpoint)
    serving = status and next((d for d in status.deployments if d.name == status.traffic.main), None)
    if not serving:
        return None
    try:
        return platform.read_model(model, serving.model_version)
    except NotFoundError:
        log().warning("Version %s serves but is not in the registry", serving.model_version)
        return None


@step()
def compare_with_champion(
    place: PlatformConfig,
    trained: JobSpec,
    result: TrainingResult,
    champion: ModelVersion | None,
    gate: GateConfig,
) -> GateReport:
    """Evaluate the champion on this run's test set and decide."""
    platform = connect(place)
    rows = platform.read_job_result(result.job)["per_example"]
    if champion is None or champion.digest == result.model_digest:
        return decide(gate, result, rows, None, champion)
    if champion.digest == trained.model.digest:  # what was trained from is scored already
        return replace(decide(gate, result, rows, rows["base"], champion), champion_scores=result.base)
    log().info("Evaluating version=%s on this test set", champion.version)
    job = finish_job(platform, evaluation_spec(trained, champion), str(flow_run.id))
    scored = platform.read_job_result(job)
    report = decide(gate, result, rows, scored["per_example"], champion)
    return replace(report, champion_scores=scores_of(scored["metrics"]))


def decide(
    gate: GateConfig,
    result: TrainingResult,
    rows: dict[str, Rows],
    champion: Rows | None,
    serving: ModelVersion | None,
) -> GateReport:
    """Compare scores of the same conversations in the same order.

    Args:
        rows: `per_example` of the result, of base and candidate.
        champion: the serving version's; None when nothing serves, or the candidate does.
    """
    gain = compare(gate.metric, rows["candidate"], rows["base"])
    lead = compare(gate.metric, rows["candidate"], champion) if champion is not None else None
    version = serving.version if serving else "?"
    problems = _problems(gate, gain, lead, version)
    same = serving is not None and champion is None
    reason = "; ".join(problems) or _praise(gate.metric, gain, lead, version, same)
    return GateReport(
        metric=gate.metric,
        passed=not problems,
        reason=reason,
        base=gain.other,
        candidate=gain.value,
        champion=lead.other if lead else (gain.value if same else None),
        champion_version=serving.version if serving else "",
        improvement_low=gain.low,
        improvement_high=gain.high,
        champion_worse_low=-lead.high if lead else None,
        champion_worse_high=-lead.low if lead else None,
        num_examples=gain.num_examples,
        model_digest=result.model_digest,
        champion_scores=result.candidate if same else None,
        origin=Origin(reused=same, reason="the candidate is the version now serving" if same else reason),
    )


def _problems(gate: GateConfig, gain: Paired, lead: Paired | None, version: str) -> list[str]:
    """Everything that speaks against the candidate."""
    problems, name = [], _NAMES[gate.metric]
    if gain.num_examples < gate.min_examples:
        scored = "examples" if gate.metric == "loss" else "answered examples"
        problems.append(
            f"the test set has {gain.num_examples} {scored}, gate.min_examples asks for {gate.min_examples}"
        )
    if not math.isfinite(gain.value):
        problems.append(f"the candidate's {name} is not a number")
    elif not gain.low > gate.min_improvement:
        problems.append(
            f"{name} {_shown(gate.metric, gain.value)} is not better than the base's "
            f"{_shown(gate.metric, gain.other)} by more than {gate.min_improvement:g} "
            f"(improvement at least {_shown(gate.metric, gain.low)}, 95 % interval)"
        )
    # Refused when it is surely worse than the tolerance allows: noise alone must not block every night.
    if lead and math.isnan(lead.high):
        problems.append(f"the scores of version {version} cannot be compared: not numbers")
    elif lead and -lead.high > gate.champion_tolerance:
        problems.append(
            f"worse than version {version} now serving by at least {_shown(gate.metric, -lead.high)}, "
            f"gate.champion_tolerance is {gate.champion_tolerance:g}"
        )
    return problems


def _praise(metric: str, gain: Paired, lead: Paired | None, version: str, same: bool) -> str:
    beats = "beats" if gain.improvement > 0 else "is as near as asked to"
    value, base = _shown(metric, gain.value), _shown(metric, gain.other)
    better = f"{_NAMES[metric]} {value} {beats} the base's {base}"
    if same:
        return f"{better}; it is the version now serving"
    if lead is None:
        return f"{better}; nothing serves yet"
    return f"{better} and is not worse than version {version}'s {_shown(metric, lead.other)}"


def _shown(metric: str, value: float) -> str:
    return f"{value:.{_DIGITS[metric]}f}"


def summary(report: GateReport) -> dict[str, Any]:
    """The gate as it goes into a JSON document."""
    return {
        "metric": report.metric,
        "base": report.base,
        "candidate": report.candidate,
        "champion": report.champion,
        "champion_version": report.champion_version,
        "passed": report.passed,
        "reason": report.reason,
        "improvement_low": _finite(report.improvement_low),
        "improvement_high": _finite(report.improvement_high),
        "num_examples": report.num_examples,
    }


def _finite(value: float | None) -> float | None:
    """A number that JSON has; what is not sure at all has none."""
    return value if value is not None and math.isfinite(value) else None
