"""How a plan looks in a terminal: what bills afterwards, what the run takes, then step by step what it does."""

from __future__ import annotations

from flows.plan import Plan
from tasks.estimate.ranges import seconds_text
from tasks.estimate.text import Row, afterwards, memory_rows, once, work_rows

_NAME, _SIZE = 20, 36


def show_plan(plan: Plan) -> None:
    """Print the plan; the configuration comes last, for it is long and was written by the reader."""
    estimate, found = plan.estimate, plan.found
    _page("Afterwards", *afterwards(estimate))
    _page("This run, once", *once(estimate))
    if thousand := plan.per_thousand:
        told = f"conversations of a quarter to all of train.max_length to train on, in {thousand.how}"
        _page("", "", [("each thousand", seconds_text(thousand.seconds), told)])
    if plan.refusal:
        print(f"  {plan.refusal}")
    steps = [(step.step, step.action, f"{step.name} ({step.reason})") for step in plan.steps]
    _page("Steps", "what is there already, and what is made", steps)
    _page("Not looked up", "", [(what, "", reason) for what, reason in found.not_looked_up.items()])
    if estimate.work and not estimate.work.is_stand_in:
        _page("Work", "one training", work_rows(estimate.work))
    if estimate.memory:
        _page("Memory", *memory_rows(estimate.memory))
    if estimate.shape:
        _page("Model", f"{estimate.shape.num_parameters:,} parameters ({estimate.shape.source})", [])
    _notes(plan)
    print("\nConfiguration")
    for key, entry in plan.settings.items():
        print(f"  {key} = {entry['value']!r}  ({entry['origin']})")


def _notes(plan: Plan) -> None:
    estimate = plan.estimate
    print("\nAssumed")
    print(f"  Prices: {estimate.prices}.")
    if plan.refreshed:
        print(f"  Refreshed prices: {plan.refreshed}")
    for line in (*estimate.warnings, *(f"Not known: {line}." for line in estimate.unknown), *estimate.assumptions):
        print(f"  {line}")


def _page(title: str, sentence: str, rows: list[Row]) -> None:
    if not (sentence or rows):
        return
    if title:
        print(f"\n{title}: {sentence}" if sentence else f"\n{title}")
    for name, size, why in rows:
        print(f"  {name:<{_NAME}} {size:<{_SIZE}} {why}".rstrip())
