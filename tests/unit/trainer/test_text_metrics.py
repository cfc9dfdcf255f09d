from __future__ import annotations

import random

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from trainer.generation import Answer
from trainer.paired import chrf_score, compare
from trainer.text_metrics import answer_metrics, answer_statistics, repetition

PAIRS = [
    ("The sky is blue.", "The sky is blue."),
    ("The sky was blue today.", "The sky is blue."),
    ("天空是蓝色的。", "天空是蓝色的"),
    ("", "Grass is green."),
    ("草は緑色です", "草は青いです"),
    ("x", "Les abeilles font du miel, n'est-ce pas ?"),
]


def answered(*texts: str, stopped: bool = True) -> list[Answer]:
    """Answers of three tokens each."""
    return [Answer(text, (1, 2, 3), stopped) for text in texts]


def test_chrf_is_sacrebleus_corpus_score():
    """The sums of what each answer adds give the corpus chrF that sacrebleu reports, whatever the script."""
    from sacrebleu.metrics import CHRF

    said, expected = zip(*PAIRS, strict=True)
    statistics = [answer_statistics(answer, wanted) for answer, wanted in zip(answered(*said), expected, strict=True)]
    metrics = answer_metrics(answered(*said), statistics)
    assert metrics["chrf"] == pytest.approx(CHRF().corpus_score(list(said), [list(expected)]).score)
    for statistic, answer, wanted in zip(statistics, said, expected, strict=True):
        assert chrf_score(statistic["chrf"]) == pytest.approx(CHRF().sentence_score(answer, [wanted]).score, abs=1e-9)
    assert metrics["exact_match"] == pytest.approx(1 / 6)


def test_chrf_tells_near_from_far_in_chinese():
    """One character of six that is wrong scores between all and none."""
    near, far = (
        chrf_score(answer_statistics(answered(text)[0], "天空是蓝色的")["chrf"]) for text in ("天空是绿色的", "草")
    )
    assert 20 < near < 100 and far == 0


def test_chrf_difference_is_that_of_the_corpus_scores():
    """The paired comparison's difference is the headline's, and its interval narrows with more answers."""
    rng = random.Random(0)
    expected = ["".join(rng.choices("abcdefgh ", k=40)) for _ in range(40)]
    nearer = [answer_statistics(answered(text[:30])[0], text) for text in expected]
    farther = [answer_statistics(answered(text[:20])[0], text) for text in expected]
    found, few = compare("chrf", nearer, farther), compare("chrf", nearer[:8], farther[:8])
    headline = [answer_metrics(answered(*expected), rows)["chrf"] for rows in (nearer, farther)]
    assert found.improvement == pytest.approx(headline[0] - headline[1]) and found.low > 0
    assert found.high - found.low < few.high - few.low


def test_stop_rate_length_and_repetition():
    """Answers that were cut are counted as such; lengths are in tokens."""
    answers = [Answer("a", (1, 2), True), Answer("b", (5,) * 8, False)]
    metrics = answer_metrics(answers, [answer_statistics(answer, "c") for answer in answers])
    assert (metrics["stop_rate"], metrics["mean_answer_tokens"], metrics["num_generations"]) == (0.5, 5.0, 2)
    assert metrics["repetition"] == pytest.approx((0 + 4 / 5) / 2)
    assert answer_metrics([], [])["chrf"] is None


def test_repetition_by_hand():
    """1 2 3 4 1 2 3 4: five 4-grams, the last of which came before."""
    assert repetition([1, 2, 3, 4, 1, 2, 3, 4]) == pytest.approx(1 / 5)
    assert repetition([1, 2, 3]) == 0.0
