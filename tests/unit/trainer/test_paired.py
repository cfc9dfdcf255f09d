"""The paired comparison of two models: the headline's sign, and an interval that holds."""

from __future__ import annotations

import math
import random

import pytest

from trainer.paired import Paired, compare, student_t


def rows(losses: list[float], tokens: list[int]) -> list[dict]:
    """per_example of a model."""
    return [{"loss": loss, "num_tokens": count} for loss, count in zip(losses, tokens, strict=True)]


def drawn(rng: random.Random, num: int) -> tuple[list[dict], list[dict]]:
    """Two models' rows: lengths are log-normal, and the candidate is the better the longer the answer."""
    mine, other = [], []
    for _ in range(num):
        length = rng.gauss(0, 1)
        tokens = max(1, round(math.exp(4 + length)))
        other.append({"loss": 2.0, "num_tokens": tokens})
        mine.append({"loss": 1.95 - 0.1 * length - rng.gauss(0, 0.3), "num_tokens": tokens})
    return mine, other


def test_the_difference_is_that_of_the_headline_losses() -> None:
    """Worse on many short answers and better on the long one is better a token, whatever the mean over chats says."""
    tokens = [10] * 9 + [1000]
    other, mine = [1.0] * 10, [1.1] * 9 + [0.8]
    found = compare("loss", rows(mine, tokens), rows(other, tokens))
    assert sum(mine) / 10 > sum(other) / 10
    assert found.improvement == pytest.approx((1090 * 1.0 - (90 * 1.1 + 1000 * 0.8)) / 1090)
    assert found.improvement == pytest.approx(found.other - found.value) and found.improvement > 0
    assert found.low < 0, "one conversation decides it, so that nothing is sure"


def test_interval_of_equal_lengths_by_hand() -> None:
    """With equal lengths it is the mean's: 2.5, standard error 1.29099 / 2, t of 3 degrees 3.18, half width 2.05."""
    found = compare("loss", rows([0.0] * 4, [7] * 4), rows([1.0, 2.0, 3.0, 4.0], [7] * 4))
    assert found.improvement == pytest.approx(2.5)
    assert (found.high - found.low) / 2 == pytest.approx(3.1824 * 0.645497, rel=2e-3)


def test_the_interval_holds_what_it_says_for_skewed_lengths() -> None:
    """Of 400 test sets of 30 conversations with log-normal lengths, about 95 % of the intervals hold the truth."""
    rng = random.Random(1)
    truth = compare("loss", *drawn(random.Random(9), 20_000)).improvement
    found = [compare("loss", *drawn(rng, 30)) for _ in range(400)]
    held = sum(each.low <= truth <= each.high for each in found) / len(found)
    assert 0.90 <= held <= 0.98


@pytest.mark.parametrize(("degrees", "quantile"), [(4, 2.776), (10, 2.228), (30, 2.042), (1000, 1.962)])
def test_student_t(degrees: float, quantile: float) -> None:
    """The 97.5 % quantiles of the printed tables."""
    assert student_t(degrees) == pytest.approx(quantile, rel=1e-3)


def test_answers_are_compared_where_both_were_asked() -> None:
    """Exact match compares the conversations that both models answered; higher is better."""
    mine = [{"exact_match": 1}, {"exact_match": 1}, {"exact_match": 0}, {}]
    other = [{"exact_match": 0}, {"exact_match": 1}, {"exact_match": 0}, {"exact_match": 1}]
    found = compare("exact_match", mine, other)
    assert (found.num_examples, found.value, found.other) == (3, pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert found.improvement == pytest.approx(1 / 3) and found.low < 0 < found.high


def test_nothing_to_compare_is_no_number() -> None:
    """Without answers, and with a loss that is no number, nothing is known, and JSON says null."""
    assert compare("chrf", rows([1.0], [1]), rows([1.0], [1])).num_examples == 0
    broken: Paired = compare("loss", rows([1.0, math.nan], [5, 5]), rows([1.0, 1.0], [5, 5]))
    assert math.isnan(broken.low)
    assert broken.to_dict() == {"improvement": None, "low": None, "high": None, "num_examples": 2}


def test_one_conversation_says_nothing() -> None:
    """One difference has no spread to judge by."""
    found = compare("loss", rows([1.0], [5]), rows([2.0], [5]))
    assert (found.improvement, found.low, found.high) == (1.0, -math.inf, math.inf)


def test_unequal_lists_are_a_bug() -> None:
    """Rows of different test sets are never compared."""
    with pytest.raises(ValueError):
        compare("loss", rows([1.0], [5]), rows([1.0, 2.0], [5, 5]))
