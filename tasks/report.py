"""Stage: what a run did, as a page for people (a Prefect artifact) and as one document for programs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
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
from tasks.report_scores import curves_uri, interval_lines, scores_document, scores_table
from tasks.step import step
from tasks.training import PAGES


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
        create_image_artifact(curves_uri(details), key="loss-curve", description="The training by step")
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
    lines.append(f"![The training by step]({curves_uri(details)})")
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
    decided = f"{'Passed' if report.gate.passed else 'Refused'}: {report.gate.reason}."
    lines = ["## Before and after", *scores_table(report.result, report.gate), "## Gate", decided]
    return "\n\n".join(_join_tables([*lines, *interval_lines(report.gate)]))


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


def curves_file(result: TrainingResult | None) -> str:
    """Where the picture of the curves lies on this machine; on Azure it is among the job's logs in the studio."""
    path = Path(result.result_file).with_name("curves.png") if result else None
    return str(path) if path and path.is_file() else ""


def document(report: RunReport, spent: Spent | None = None) -> dict[str, Any]:
    """What `phiflow run --json` says beside the run and its steps."""
    result, gate = report.result, report.gate
    job = result and {
        "name": result.job.name,
        "state": "completed",
        "attempt": result.job.attempt,
        "url": result.job.url,
    }
    return {
        "data": data_document(report.data),
        "job": job,
        "gate": summary(gate) if gate else None,
        "scores": scores_document(result),
        "curves": curves_file(result),
        "model": model_document(report.model),
        "endpoint": endpoint_document(report.endpoint),
        "chat": {"url": report.chat.url} if report.chat else None,
        "mlflow": {"url": report.tracking_url} if report.tracking_url else None,
        "estimate": estimate_document(report.estimate) if report.estimate else None,
        "spent": spent_document(spent) if spent else None,
    }
