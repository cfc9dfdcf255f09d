"""What a training job took, beside what was estimated of it; from its result and its events."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tasks.estimate.ranges import Range, count_text, dollars, seconds_text

if TYPE_CHECKING:
    from tasks.estimate.estimate import RunEstimate


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One thing that was estimated and then seen; None where one of the two is not known."""

    name: str
    estimated: Range | None
    actual: float | None

    @property
    def label(self) -> str:
        """The name for people, who see the unit at the number."""
        return self.name.removesuffix(" seconds").removesuffix(" dollars")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What a run's training job took.

    Args:
        adopted: the job was there already, and this run spent nothing on it.
        resumed_from_step: an interrupted attempt did the steps up to there; the numbers are of those after it.
    """

    adopted: bool
    comparisons: tuple[Comparison, ...]
    resumed_from_step: int | None = None


def compare(estimate: RunEstimate, result: dict[str, Any], events: Iterable[dict[str, Any]], *, adopted: bool) -> Spent:
    """Put the job's own numbers beside the estimate.

    Args:
        result: the job's `result.json`.
        adopted: the job was there before this run.
    """
    train, work = result.get("train") or {}, estimate.work
    known = work if work and not work.is_stand_in else None
    tokens = steps = None
    if known:
        steps, epochs = known.num_steps, known.num_epochs
        tokens = Range(low=known.tokens.low * epochs.low, high=known.tokens.high * epochs.high)
    seconds = _seconds(events)
    hourly = estimate.job_dollars_an_hour
    spent = None if hourly is None or seconds is None else seconds * hourly / 3600
    return Spent(
        adopted=adopted,
        comparisons=(
            Comparison(name="tokens", estimated=tokens, actual=train.get("num_tokens")),
            Comparison(name="steps", estimated=steps, actual=train.get("num_steps")),
            Comparison(name="training seconds", estimated=_of(estimate, "train"), actual=train.get("seconds")),
            Comparison(name="job seconds", estimated=estimate.job_seconds, actual=seconds),
            Comparison(name="job dollars", estimated=estimate.job_dollars, actual=spent),
        ),
        resumed_from_step=train.get("resumed_from_step"),
    )


def spent_document(spent: Spent) -> dict[str, Any]:
    """For JSON: what was estimated and what it took, by name; and a line for each, for people."""
    return {
        "adopted": spent.adopted,
        "resumed_from_step": spent.resumed_from_step,
        **{
            one.name.replace(" ", "_"): {
                "estimated": asdict(one.estimated) if one.estimated else None,
                "actual": one.actual,
            }
            for one in spent.comparisons
        },
        "lines": spent_lines(spent),
    }


def spent_lines(spent: Spent) -> list[str]:
    """A line for each thing that was estimated: what it took, and what was thought."""
    if spent.adopted:
        return ["nothing for the training job: it was adopted"]
    lines = []
    if spent.resumed_from_step:
        lines.append(f"An earlier attempt did the first {spent.resumed_from_step} steps; what follows is the rest.")
    return [
        *lines,
        *(
            f"{one.label}: {_shown(one, one.actual)}, estimated {_shown(one, one.estimated)}"
            for one in spent.comparisons
        ),
    ]


def spent_table(spent: Spent) -> str:
    """The same as a table in Markdown."""
    rows = [f"| {one.label} | {_shown(one, one.estimated)} | {_shown(one, one.actual)} |" for one in spent.comparisons]
    head = "The job was adopted, and this run spent nothing on it; when it ran it took:\n\n" if spent.adopted else ""
    return "\n".join([f"{head}| | estimated | actual |", "|---|---|---|", *rows])


def _shown(one: Comparison, value: Range | float | None) -> str:
    if value is None:
        return "not known"
    if one.name.endswith("seconds"):
        return seconds_text(value)
    return dollars(value) if one.name.endswith("dollars") else count_text(value)


def _of(estimate: RunEstimate, stage: str) -> Range | None:
    known = estimate.work and not estimate.work.is_stand_in and estimate.shape
    return next((one.seconds for one in estimate.job_stages if one.name == stage), None) if known else None


def _seconds(events: Iterable[dict[str, Any]]) -> float | None:
    times = [datetime.fromisoformat(str(event["time"])) for event in events if event.get("time")]
    return (max(times) - min(times)).total_seconds() if len(times) > 1 else None
