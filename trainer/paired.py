"""Which of two models is better on the same conversations, with a confidence interval; standard library alone.

A metric here is a function of sums over conversations, and so is the difference of two models' metrics. That
difference is the one of the headline numbers, so that its sign is theirs: the mean over conversations of mean losses
weighs a short answer's tokens more than a long one's, and may prefer the other model. Its standard error is the
delete-one jackknife's (Efron and Stein, 1981), which for a ratio such as the loss a token holds for unequal lengths;
the interval takes Student's t at the effective number of conversations (Kish, 1965), since a few long ones decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

_CHRF_BETA = 2
Sums = Sequence[float]


@dataclass(frozen=True, slots=True)
class Metric:
    """A number for a model on a set of conversations.

    Args:
        higher_is_better: whether it is; otherwise lower is.
        sums: what one conversation of per_example adds; None where the model was not asked about it.
        value: of the sums over all.
        weight: which of a conversation's sums says how much it counts; None: each counts the same.
        unit: for a person.
    """

    higher_is_better: bool
    sums: Callable[[dict[str, Any]], Sums | None]
    value: Callable[[Sums], float]
    weight: int | None
    unit: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Paired:
    """How much better one model is than another: the difference, positive where better, and its 95 % interval.

    Args:
        value, other: the metric of either model on the conversations that both have.
    """

    value: float
    other: float
    improvement: float
    low: float
    high: float
    num_examples: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; an end that is not finite is null."""
        numbers = {"improvement": self.improvement, "low": self.low, "high": self.high}
        shown = {name: value if math.isfinite(value) else None for name, value in numbers.items()}
        return {**shown, "num_examples": self.num_examples}


def compare(metric: str, candidate: Sequence[dict[str, Any]], other: Sequence[dict[str, Any]]) -> Paired:
    """Compare two models by the rows of their per_example, in the same order.

    Raises:
        ValueError: the lists are of unequal length, so not of the same conversations.
    """
    kind = METRICS[metric]
    pairs = [(kind.sums(mine), kind.sums(theirs)) for mine, theirs in zip(candidate, other, strict=True)]
    mine = [pair[0] for pair in pairs if pair[0] is not None and pair[1] is not None]
    theirs = [pair[1] for pair in pairs if pair[0] is not None and pair[1] is not None]
    if not mine:
        return Paired(value=math.nan, other=math.nan, improvement=math.nan, low=math.nan, high=math.nan, num_examples=0)
    sign = 1 if kind.higher_is_better else -1
    all_mine, all_theirs = _totals(mine), _totals(theirs)
    value, reference = kind.value(all_mine), kind.value(all_theirs)
    improvement = sign * (value - reference)
    left_out = [
        sign * (kind.value(_without(all_mine, row)) - kind.value(_without(all_theirs, against)))
        for row, against in zip(mine, theirs, strict=True)
    ]
    weights = [1.0 if kind.weight is None else row[kind.weight] for row in mine]
    half = _half_width(left_out, weights)
    numbers = {"value": value, "other": reference, "improvement": improvement}
    return Paired(**numbers, low=improvement - half, high=improvement + half, num_examples=len(mine))


def chrf_score(counts: Sums) -> float:
    """chrF of summed counts, 0 to 100: for each length of n-gram those of the answer, of the reference, and in both.

    Source: Popovic (2015), averaged over the lengths that occur, as sacrebleu 2 does.
    """
    orders = [counts[i : i + 3] for i in range(0, len(counts), 3)]
    orders = [(said, wanted, both) for said, wanted, both in orders if said > 0 and wanted > 0]
    if not orders:
        return 0.0
    precision = sum(both / said for said, _, both in orders) / len(orders)
    recall = sum(both / wanted for _, wanted, both in orders) / len(orders)
    if not precision + recall:
        return 0.0
    factor = _CHRF_BETA**2
    return 100 * (1 + factor) * precision * recall / (factor * precision + recall)


def student_t(degrees: float, probability: float = 0.975) -> float:
    """Quantile of Student's t distribution by the Cornish-Fisher expansion (Abramowitz and Stegun, 26.7.5).

    Within 0.5 % from four degrees of freedom on, and too small below, where it says nothing anyway.
    """
    z = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / degrees**power for power, term in enumerate(terms, start=1))


def _half_width(left_out: Sequence[float], weights: Sequence[float]) -> float:
    """Of the 95 % interval, by the estimates that leave out one conversation each."""
    num = len(left_out)
    effective = sum(weights) ** 2 / sum(weight**2 for weight in weights)
    if effective < 2:
        return math.inf
    if not all(map(math.isfinite, left_out)):
        return math.nan
    mean = sum(left_out) / num
    error = math.sqrt((num - 1) / num * sum((each - mean) ** 2 for each in left_out))
    return student_t(effective - 1) * error


def _totals(rows: Sequence[Sums]) -> list[float]:
    return [math.fsum(column) if all(map(math.isfinite, column)) else math.nan for column in zip(*rows, strict=True)]


def _without(totals: Sums, row: Sums) -> list[float]:
    return [total - part for total, part in zip(totals, row, strict=True)]


def _loss_sums(example: dict[str, Any]) -> Sums:
    return (example["loss"] * example["num_tokens"], example["num_tokens"])


def _exact_match_sums(example: dict[str, Any]) -> Sums | None:
    return (example["exact_match"], 1) if "exact_match" in example else None


def _ratio(sums: Sums) -> float:
    return sums[0] / sums[1] if sums[1] else math.nan


METRICS = {
    "loss": Metric(False, _loss_sums, _ratio, 1, "nats a token"),
    "exact_match": Metric(True, _exact_match_sums, _ratio, None, "share of answers"),
    "chrf": Metric(True, lambda example: example.get("chrf"), chrf_score, None, "points"),
}
