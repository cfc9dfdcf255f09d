"""An estimate as lines for a terminal and as Markdown for a form or a report; the numbers with their arithmetic."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.estimate.ranges import NOTHING, Range, count_text, dollars, gigabytes, seconds_text

if TYPE_CHECKING:
    from tasks.estimate.estimate import RunEstimate
    from tasks.estimate.memory import MemoryNeed
    from tasks.estimate.work import Work

Row = tuple[str, str, str]


def afterwards(estimate: RunEstimate) -> tuple[str, list[Row]]:
    """What goes on billing: a sentence, and a row for each thing with its month and its reason."""
    if not estimate.bills:
        return "Nothing bills afterwards.", []
    monthly = sum((bill.monthly for bill in estimate.bills if bill.monthly), start=NOTHING)
    hourly = estimate.dollars_an_hour_after
    an_hour = "an unknown price" if hourly is None else f"{dollars(hourly)} an hour"
    rows = [
        (
            bill.name,
            "unknown" if bill.monthly is None else f"{dollars(bill.monthly)} a month",
            f"{bill.why}; ends with {bill.ends}",
        )
        for bill in estimate.bills
    ]
    return f"{an_hour} while it serves, {dollars(monthly)} a month with what stays", rows


def once(estimate: RunEstimate) -> tuple[str, list[Row]]:
    """What the run takes: a sentence, and a row for each part with time, money and arithmetic."""
    price = "a price that is not known" if estimate.dollars is None else dollars(estimate.dollars)
    missing = f" (no price of {', '.join(estimate.unpriced)})" if estimate.unpriced else ""
    adopted = ", with the training job that is there" if estimate.job_exists else ""
    rows = []
    for stage in estimate.stages:
        cost = "unknown" if stage.dollars is None else dollars(stage.dollars) if stage.dollars.high else ""
        time = seconds_text(stage.seconds) if stage.seconds.high else ""
        rows.append((stage.name, ", ".join(filter(None, (time, cost))), stage.how))
    return f"{price}{missing}, {seconds_text(estimate.seconds)}{adopted}", rows


def work_rows(work: Work) -> list[Row]:
    """Conversations, tokens, rows and steps."""
    each = f"cut at {work.max_length:,} tokens: {_percent(work.truncated_share)}"
    share = f", {work.answer_share:.0%} of them answers, which are learned" if work.answer_share is not None else ""
    rows = "packed rows" if work.is_packed else "rows, each padded to the longest of its batch"
    return [
        ("conversations", f"{work.num_train:,} + {work.num_test:,}", f"to train and to test on; {each}"),
        ("tokens", count_text(work.tokens), f"an epoch{share}; counted with {work.counted}"),
        ("computed", count_text(work.positions), f"an epoch, in {count_text(work.num_rows)} {rows}"),
        ("steps", count_text(work.num_steps), f"of the optimizer, {_epochs(work.num_epochs)} epochs"),
    ]


def memory_rows(need: MemoryNeed) -> tuple[str, list[Row]]:
    """Does it fit: a sentence, and a row for each part with its arithmetic."""
    has = f" of {gigabytes(need.has_bytes)}" if need.has_bytes else ""
    told = {"yes": "It fits", "tight": "It may not fit", "no": "It does not fit", "unknown": "Nobody knows if it fits"}
    chosen = f" The trainer would choose {need.chosen}." if need.chosen else ""
    sentence = f"{told[need.fits]}: {gigabytes(need.total)}{has} ({need.has}).{chosen} {need.advice}".strip()
    return sentence, [(part.name, gigabytes(part.size), part.how) for part in need.parts]


def estimate_markdown(estimate: RunEstimate) -> str:
    """The estimate as a page: what bills afterwards first, then the run, its work and its memory."""
    sentence, rows = afterwards(estimate)
    parts = ["### Afterwards", sentence, _table(("what", "costs", "why"), rows)]
    sentence, rows = once(estimate)
    parts += ["### This run, once", sentence, _table(("part", "takes", "how"), rows)]
    if estimate.work and not estimate.work.is_stand_in:
        parts += ["### Work", _table(("what", "how much", "how"), work_rows(estimate.work))]
    if estimate.memory:
        sentence, rows = memory_rows(estimate.memory)
        parts += ["### Memory", sentence, _table(("part", "size", "how"), rows)]
    notes = [*(f"Not known: {line}" for line in estimate.unknown), *estimate.warnings, *estimate.assumptions]
    parts += ["### Assumed", "\n".join(f"- {line}" for line in (f"Prices: {estimate.prices}.", *notes))]
    return "\n\n".join(filter(None, parts))


def _table(head: Row, rows: list[Row]) -> str:
    if not rows:
        return ""
    lines = ["| " + " | ".join(head) + " |", "|---|---|---|"]
    return "\n".join([*lines, *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)])


def _percent(share: Range) -> str:
    if share.low == share.high:
        return f"{share.low:.1%}"
    return f"{share.low:.0%} to {share.high:.0%}"


def _epochs(number: Range) -> str:
    few, many = f"{number.low:.3g}", f"{number.high:.3g}"
    return few if few == many else f"{few} to {many}"
