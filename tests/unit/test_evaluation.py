"""The gate: when a candidate is better than its base and not worse than the champion."""

from __future__ import annotations

import math

import pytest
from fakes import model_version, training_result

from tasks.config import GateConfig
from tasks.evaluation import decide, summary
from tasks.evaluation_job import evaluation_code
from tasks.platforms.refs import GateReport

CHAMPION = model_version("4")


def rows(losses: list[float]) -> list[dict]:
    """per_example with answers of one length."""
    return [{"loss": loss, "num_tokens": 10} for loss in losses]


def gate(
    base: list[float],
    candidate: list[float],
    champion: list[float] | None = None,
    *,
    same: bool = False,
    **settings: float,
) -> GateReport:
    """Decide on these losses, as the flow does: a champion that is the candidate has no losses of its own."""
    result = training_result(sum(base) / len(base), sum(candidate) / len(candidate))
    serving = CHAMPION if champion is not None or same else None
    told = {"base": rows(base), "candidate": rows(candidate)}
    return decide(GateConfig(**settings), result, told, None if champion is None else rows(champion), serving)


def around(mean: float, num: int = 20, spread: float = 0.02) -> list[float]:
    """Losses that alternate about a mean."""
    return [mean + spread * (-1) ** number for number in range(num)]


def test_better_than_base_passes() -> None:
    """A candidate that is surely better passes, and the report says by how much at least."""
    report = gate(around(3.0), around(1.0))
    assert report.passed
    assert report.improvement_low == pytest.approx(2.0)
    assert "1.0000 beats the base's 3.0000" in report.reason
    assert "nothing serves yet" in report.reason
    assert report.champion is None
    assert summary(report)["passed"] is True


def test_worse_than_base_is_refused() -> None:
    """A candidate that is worse is refused, with both losses in the reason."""
    report = gate(around(1.0), around(3.0))
    assert not report.passed
    assert "3.0000 is not better than the base's 1.0000" in report.reason


def test_equal_to_base_is_refused() -> None:
    """A candidate that is its base is not better."""
    assert not gate(around(2.0), around(2.0)).passed


def test_improvement_within_noise_is_refused() -> None:
    """A mean improvement that the spread of the examples can explain is refused."""
    noisy = [2.0 + (1.0 if number % 2 else -0.9) for number in range(20)]
    report = gate(around(2.1, spread=0.0), noisy)
    assert sum(noisy) / 20 < 2.1
    assert not report.passed


def test_min_improvement_is_asked_for() -> None:
    """An improvement that is sure but small does not pass when more is asked for."""
    assert gate(around(2.0), around(1.8), min_improvement=0.1).passed
    report = gate(around(2.0), around(1.8), min_improvement=0.3)
    assert not report.passed
    assert "by more than 0.3" in report.reason


def test_negative_improvement_allows_a_little_worse_and_says_so() -> None:
    """With a negative min_improvement a candidate that is worse by less passes, and is not called better."""
    report = gate(around(2.0), around(2.1), min_improvement=-0.5)
    assert report.passed
    assert "beats" not in report.reason
    assert not gate(around(2.0), around(3.0), min_improvement=-0.5).passed


def test_too_few_examples_are_refused() -> None:
    """A test set that is too small decides nothing, however good the candidate looks."""
    report = gate(around(3.0, 4), around(1.0, 4), min_examples=5)
    assert not report.passed
    assert "has 4 examples, gate.min_examples asks for 5" in report.reason
    assert gate(around(3.0, 5), around(1.0, 5), min_examples=5).passed


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_loss_that_is_no_number_is_refused(bad: float) -> None:
    """One loss that is not finite refuses the candidate."""
    report = gate(around(3.0), [*around(1.0, 19), bad])
    assert not report.passed
    assert "not a number" in report.reason


def test_clearly_worse_than_champion_is_refused() -> None:
    """Better than its base and surely worse than what serves: refused, naming the version."""
    report = gate(around(3.0), around(2.0), around(1.0))
    assert not report.passed
    assert "worse than version 4 now serving by at least 1.0000" in report.reason
    assert report.champion == pytest.approx(1.0)
    assert report.champion_version == "4"


def test_within_tolerance_of_champion_passes() -> None:
    """Slightly worse than what serves, but within the tolerance, passes."""
    assert gate(around(3.0), around(1.04), around(1.0)).passed
    assert not gate(around(3.0), around(1.04), around(1.0), champion_tolerance=0.03).passed


def test_noise_against_champion_does_not_block() -> None:
    """A worse mean that the spread of the examples can explain does not refuse."""
    noisy = [1.0 + (1.2 if number % 2 else -0.8) for number in range(20)]
    report = gate(around(6.0), noisy, around(1.0))
    assert sum(noisy) / 20 - 1.0 > 0.05
    assert report.passed
    assert "not worse than version 4's 1.0000" in report.reason


def test_candidate_that_is_the_champion_passes() -> None:
    """A candidate with the serving version's content is compared with its base alone."""
    report = gate(around(3.0), around(1.0), same=True)
    assert report.passed
    assert report.origin.reused
    assert report.champion == report.candidate
    assert "it is the version now serving" in report.reason


def test_champion_whose_loss_is_no_number_is_refused() -> None:
    """A comparison that came out as no number is not taken for a good one."""
    report = gate(around(3.0), around(1.0), [*around(1.0, 19), math.nan])
    assert not report.passed
    assert "version 4 cannot be compared" in report.reason


def test_lists_of_unequal_length_are_a_bug() -> None:
    """Losses of different test sets are never compared."""
    with pytest.raises(ValueError):
        gate(around(3.0, 20), around(1.0, 19))


def test_the_loss_that_is_shown_is_the_one_that_decides() -> None:
    """Worse on short answers and better on long ones: the loss a token is lower, and so is the improvement's sign."""
    base = [{"loss": 1.0, "num_tokens": 5} for _ in range(30)] + [{"loss": 2.0, "num_tokens": 500} for _ in range(20)]
    better = [{"loss": 1.3, "num_tokens": 5} for _ in range(30)] + [{"loss": 1.9, "num_tokens": 500} for _ in range(20)]
    report = decide(GateConfig(), training_result(), {"base": base, "candidate": better}, None, None)
    assert sum(row["loss"] for row in better) > sum(row["loss"] for row in base)
    assert report.passed and report.candidate < report.base
    assert report.improvement_low < report.base - report.candidate < report.improvement_high


@pytest.mark.parametrize(("metric", "good", "bad"), [("exact_match", 1, 0), ("chrf", [9, 10, 8], [9, 10, 2])])
def test_the_gate_may_decide_on_answers(metric: str, good: object, bad: object) -> None:
    """With exact_match or chrf more is better, on the answered examples alone."""
    told = {who: [{metric: each}] * 12 + [{}] * 50 for who, each in (("base", bad), ("candidate", good))}
    config = GateConfig(metric=metric)
    passed = decide(config, training_result(), told, None, None)
    assert passed.passed and passed.candidate > passed.base and passed.num_examples == 12
    told = {"base": told["candidate"], "candidate": told["base"]}
    assert not decide(config, training_result(), told, told["base"], CHAMPION).passed
    few = {who: each[10:] for who, each in told.items()}
    assert "has 2 answered examples" in decide(config, training_result(), few, None, None).reason


def test_a_champions_evaluation_is_named_by_the_code_that_scores() -> None:
    """The files that render, batch, attend, answer and count are in the job's name; what trains or reports is not."""
    code = evaluation_code()
    assert {"evaluate.py", "losses.py", "generation.py", "text_metrics.py", "chat_template.py", "chats.py"} <= code
    assert {"batches.py", "attention.py", "model.py", "encoding.py"} <= code
    assert not code & {"train.py", "loop.py", "callbacks.py", "tracking.py", "config.py", "errors.py"}
