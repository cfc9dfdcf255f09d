"""Stage: the gate. Is the candidate better than its base, and not worse than the version now serving?

Decided on paired differences, example by example, with a 95 % confidence interval of their mean (normal
approximation with the sample's standard error), so that noise decides nothing.
"""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import replace
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from tasks.config import GateConfig, PlatformConfig
from tasks.job_spec import trainer_digest
from tasks.job_wait import finish_job
from tasks.platforms.connect import connect
from tasks.platforms.errors import NotFoundError
from tasks.platforms.refs import (
    BaseModelRef,
    EndpointRef,
    GateReport,
    JobKind,
    JobSpec,
    ModelVersion,
    Origin,
    TrainingResult,
)
from tasks.step import log, step

_EVALUATION_KEYS = ("max_length", "per_device_eval_batch_size", "num_eval_generations", "max_new_tokens_eval")
_EVALUATION_CODE = ("evaluate.py", "chat_template.py", "chats.py", "encoding.py", "model.py")
_Z95 = 1.96


@step(cache_policy=NO_CACHE)
def read_champion(place: PlatformConfig, endpoint: EndpointRef, model: str) -> ModelVersion | None:
    """The model version that has the endpoint's traffic now, if any."""
    platform = connect(place)
    status = platform.read_endpoint(endpoint.name)
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
    details = platform.read_job_result(result.job)
    base = [example["loss"] for example in details["per_example"]["base"]]
    candidate = [example["loss"] for example in details["per_example"]["candidate"]]
    if champion is None or champion.digest == result.model_digest:
        return decide(gate, result, base, candidate, None, champion)
    log().info("Evaluating version=%s on this test set", champion.version)
    job = finish_job(platform, _evaluation_spec(trained, champion), str(flow_run.id))
    scores = platform.read_job_result(job)["per_example"]
    return decide(gate, result, base, candidate, [example["loss"] for example in scores], champion)


def _evaluation_spec(trained: JobSpec, champion: ModelVersion) -> JobSpec:
    """What was trained says on which test set, and where; only what changes a score is in the name."""
    settings = {key: value for key, value in json.loads(trained.settings).items() if key in _EVALUATION_KEYS}
    code = {path: digest for path, digest in trainer_digest().items() if path in _EVALUATION_CODE}
    model = BaseModelRef(
        base=f"{champion.name}:{champion.version}",
        revision="",
        digest=champion.digest,
        location=champion.location,
        origin=champion.origin,
    )
    return replace(
        trained,
        kind=JobKind.EVALUATION,
        code_digest=json.dumps(code, sort_keys=True),
        settings=json.dumps(settings, sort_keys=True),
        model=model,
        num_nodes=1,
        processes_per_node=1,
    )


def decide(
    gate: GateConfig,
    result: TrainingResult,
    base: list[float],
    candidate: list[float],
    champion: list[float] | None,
    serving: ModelVersion | None,
) -> GateReport:
    """Compare per-example losses; lower is better, every list is in the test set's order."""
    low, _ = interval([b - c for b, c in zip(base, candidate, strict=True)])
    worse_low, worse_high = (
        interval([c - h for c, h in zip(candidate, champion, strict=True)]) if champion else (None, None)
    )
    problems = []
    if len(candidate) < gate.min_examples:
        problems.append(f"the test set has {len(candidate)} examples, gate.min_examples asks for {gate.min_examples}")
    if not all(map(math.isfinite, candidate)):
        problems.append("the candidate's loss is not a number")
    elif not low > gate.min_improvement:
        problems.append(
            f"loss {result.candidate.loss:.4f} is not better than the base's {result.base.loss:.4f} by more than "
            f"{gate.min_improvement:g} (improvement at least {low:.4f}, 95 % interval)"
        )
    # Refused when it is surely worse than the tolerance allows: noise alone must not block every night.
    if worse_low is not None and math.isnan(worse_low):
        problems.append(f"the losses of version {serving.version if serving else '?'} cannot be compared: not numbers")
    elif worse_low is not None and worse_low > gate.champion_tolerance:
        problems.append(
            f"worse than version {serving.version if serving else '?'} now serving by at least {worse_low:.4f}, "
            f"gate.champion_tolerance is {gate.champion_tolerance:g}"
        )
    passed = not problems
    same = serving is not None and champion is None
    reason = "; ".join(problems) or _praise(result, champion, serving, same)
    return GateReport(
        metric=gate.metric,
        passed=passed,
        reason=reason,
        base=result.base.loss,
        candidate=result.candidate.loss,
        champion=statistics.fmean(champion) if champion else (result.candidate.loss if same else None),
        champion_version=serving.version if serving else "",
        improvement_low=low,
        champion_worse_high=worse_high,
        num_examples=len(candidate),
        model_digest=result.model_digest,
        origin=Origin(reused=same, reason="the candidate is the version now serving" if same else reason),
    )


def _praise(result: TrainingResult, champion: list[float] | None, serving: ModelVersion | None, same: bool) -> str:
    beats = "beats" if result.candidate.loss < result.base.loss else "is as near as asked to"
    better = f"loss {result.candidate.loss:.4f} {beats} the base's {result.base.loss:.4f}"
    if same:
        return f"{better}; it is the version now serving"
    if champion is None or serving is None:
        return f"{better}; nothing serves yet"
    return f"{better} and is not worse than version {serving.version}'s {statistics.fmean(champion):.4f}"


def interval(differences: list[float]) -> tuple[float, float]:
    """The ends of the 95 % confidence interval of the mean; not numbers when a difference is none."""
    if not all(map(math.isfinite, differences)):
        return math.nan, math.nan
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return -math.inf, math.inf
    half = _Z95 * statistics.stdev(differences) / math.sqrt(len(differences))
    return mean - half, mean + half


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
        "num_examples": report.num_examples,
    }
