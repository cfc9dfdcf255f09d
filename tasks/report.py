"""Stage: what a run did, as a page for people (a Prefect artifact) and as one document for programs."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

from prefect.artifacts import create_image_artifact, create_link_artifact, create_markdown_artifact
from prefect.cache_policies import NO_CACHE

from tasks.config import PlatformConfig
from tasks.costs import read_spent
from tasks.estimate.actual import Spent, spent_document, spent_table
from tasks.estimate.documents import estimate_document
from tasks.estimate.estimate import RunEstimate
from tasks.estimate.text import estimate_markdown
from tasks.evaluation import summary
from tasks.platforms.connect import connect
from tasks.platforms.refs import (
    BaseModelRef,
    ChatService,
    DataManifest,
    EndpointStatus,
    GateReport,
    ModelVersion,
    TrainingResult,
)
from tasks.report_documents import data_document, endpoint_document, model_document
from tasks.step import step
from tasks.training import PAGES

_CURVE_WIDTH, _CURVE_HEIGHT, _MARGIN = 640, 240, 40


@dataclass(frozen=True, slots=True, kw_only=True)
class RunReport:
    """How a run ended; what it never reached is None."""

    base_model: BaseModelRef
    data: DataManifest
    result: TrainingResult | None = None
    gate: GateReport | None = None
    tracking_url: str = ""
    outcome: str = ""
    reason: str = ""
    model: ModelVersion | None = None
    endpoint: EndpointStatus | None = None
    chat: ChatService | None = None
    estimate: RunEstimate | None = None


def tracking_url(place: PlatformConfig) -> str:
    """Where MLflow shows the jobs and models."""
    return connect(place).tracking_url()


@step(cache_policy=NO_CACHE)
def publish_report(place: PlatformConfig, report: RunReport) -> None:
    """Put the report, the loss curve and the links into the Prefect UI."""
    details = connect(place).read_job_result(report.result.job) if report.result else {}
    spent = spent_of(place, report)
    create_markdown_artifact(markdown(report, details, spent), key="report", description=report.reason)
    if details:
        curve = svg_data_uri(details["loss_curve"])
        create_image_artifact(curve, key="loss-curve", description="Training loss by step")
        create_link_artifact(report.tracking_url, link_text=PAGES[place.kind], key="mlflow")
    if report.chat:
        create_link_artifact(report.chat.url, link_text="Chat app", key="chat")


def spent_of(place: PlatformConfig, report: RunReport) -> Spent | None:
    """What the run's training job took beside what was estimated; None where there is no job, or no estimate."""
    return read_spent(place, report.estimate, report.result) if report.result and report.estimate else None


def markdown(report: RunReport, details: dict[str, Any], spent: Spent | None = None) -> str:
    """The report as a page."""
    trained = (
        f"`{report.base_model.base}` on {report.data.num_train} conversations, tested on {report.data.num_test} "
        f"({report.data.num_rejected} rejected), data `{report.data.digest[:12]}`"
    )
    lines = [f"# {report.outcome}", report.reason, "## What was trained on what"]
    if report.result is None:
        lines.append(f"Nothing: no job was submitted. It would have been {trained}.")
        return "\n\n".join([*lines, *(["## Estimate", estimate_markdown(report.estimate)] if report.estimate else [])])
    lines += [f"{trained}, job [{report.result.job.name}]({report.result.job.url}).", comparison(report)]
    lines.append(f"![Training loss by step]({svg_data_uri(details['loss_curve'])})")
    if report.model:
        lines += ["## Model", f"`{report.model.name}` version {report.model.version}, `{report.model.digest[:12]}`"]
    if report.endpoint:
        lines += ["## Traffic", *(f"- {line}" for line in report.endpoint.history[-10:])]
    if spent:
        lines += ["## Estimated and actual", spent_table(spent)]
    return "\n\n".join([*_join_tables(lines), sample_answers(details)])


def comparison(report: RunReport) -> str:
    """Before and after, and what the gate said, in Markdown."""
    assert report.result and report.gate
    base, candidate = report.result.base, report.result.candidate
    champion = "" if report.gate.champion is None else f"{report.gate.champion:.4f}"
    lines = [
        "## Before and after",
        "| | base | candidate | now serving |",
        "|---|---|---|---|",
        f"| loss | {base.loss:.4f} | {candidate.loss:.4f} | {champion} |",
        f"| perplexity | {base.perplexity:.2f} | {candidate.perplexity:.2f} | |",
        f"| token accuracy | {base.token_accuracy:.1%} | {candidate.token_accuracy:.1%} | |",
        f"| word for word | {base.exact_match:.1%} | {candidate.exact_match:.1%} | |",
        "## Gate",
        f"{'Passed' if report.gate.passed else 'Refused'}: {report.gate.reason}.",
    ]
    return "\n\n".join(_join_tables(lines))


def sample_answers(details: dict[str, Any]) -> str:
    """What base and candidate answered to some of the test set's questions, in Markdown."""
    lines = ["## Sample answers"]
    for sample in details["samples"]:
        lines += [f"**{_cell(sample['question'])}**", f"- before: {_cell(sample['base'])}"]
        lines += [f"- after: {_cell(sample['answer'])}", f"- expected: {_cell(sample['expected'])}"]
    return "\n\n".join(_join_tables(lines))


def _cell(text: str) -> str:
    """Text of a model or a user, made harmless in Markdown."""
    flat = " ".join(str(text).split())[:300]
    return "".join("\\" + char if char in "\\`*_{}[]<>()#+-!|" else char for char in flat)


def _join_tables(lines: list[str]) -> list[str]:
    joined: list[str] = []
    for line in lines:
        table = line.startswith(("|", "- "))
        if joined and table and joined[-1].startswith(("|", "- ")):
            joined[-1] += "\n" + line
        else:
            joined.append(line)
    return joined


def svg_data_uri(points: list[list[float]]) -> str:
    """Draw [step, loss] points as an SVG line in a data URI."""
    body = ""
    if points:
        steps, losses = [p[0] for p in points], [p[1] for p in points]
        span = max(1, max(steps) - min(steps))
        top, height = max(*losses, 1e-9), _CURVE_HEIGHT - 2 * _MARGIN
        path = " ".join(
            f"{_MARGIN + (_CURVE_WIDTH - 2 * _MARGIN) * (s - min(steps)) / span:.1f},"
            f"{_CURVE_HEIGHT - _MARGIN - height * loss / top:.1f}"
            for s, loss in points
        )
        floor = _CURVE_HEIGHT - _MARGIN
        body = (
            f'<polyline fill="none" stroke="#1860f2" stroke-width="2" points="{path}"/>'
            f'<line x1="{_MARGIN}" y1="{floor}" x2="{_CURVE_WIDTH - _MARGIN}" y2="{floor}" stroke="#888"/>'
            f'<line x1="{_MARGIN}" y1="{_MARGIN}" x2="{_MARGIN}" y2="{floor}" stroke="#888"/>'
            f'<text x="4" y="{_MARGIN}" font-size="12">{top:.2f}</text><text x="22" y="{floor}" font-size="12">0</text>'
            f'<text x="{_CURVE_WIDTH - 2 * _MARGIN}" y="{floor + 18}" font-size="12">step {max(steps)}</text>'
        )
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_CURVE_WIDTH}" height="{_CURVE_HEIGHT}" '
        f'font-family="sans-serif"><rect width="100%" height="100%" fill="white"/>{body}</svg>'
    )
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def document(report: RunReport, spent: Spent | None = None) -> dict[str, Any]:
    """What `phiflow run --json` says beside the run and its steps."""
    result, gate = report.result, report.gate
    job = result and {
        "name": result.job.name,
        "state": "completed",
        "attempt": result.job.attempt,
        "url": result.job.url,
    }
    scores = (("base", result.base), ("candidate", result.candidate)) if result else ()
    return {
        "data": data_document(report.data),
        "job": job,
        "gate": summary(gate) if gate else None,
        "scores": {
            label: {"loss": s.loss, "token_accuracy": s.token_accuracy, "exact_match": s.exact_match}
            for label, s in scores
        },
        "model": model_document(report.model),
        "endpoint": endpoint_document(report.endpoint),
        "chat": {"url": report.chat.url} if report.chat else None,
        "mlflow": {"url": report.tracking_url} if report.tracking_url else None,
        "estimate": estimate_document(report.estimate) if report.estimate else None,
        "spent": spent_document(spent) if spent else None,
    }
