"""How near answers are to what was expected, and whether they are well formed.

chrF is Popovic's (2015, https://aclanthology.org/W15-3049/), character 1- to 6-grams with beta 2, by sacrebleu; it
needs no words, so that it holds for every script. Repetition is the share of an answer's token 4-grams that it had
before (seq-rep-4 of Welleck et al., 2020, https://arxiv.org/abs/1908.04319).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from trainer.generation import Answer
from trainer.paired import chrf_score

_GRAM = 4


def answer_statistics(answer: Answer, expected: str) -> dict[str, Any]:
    """What one answer adds to the metrics: exact_match, and chrF's counts, which sum up over a corpus."""
    return {
        "exact_match": int(answer.text.strip() == expected.strip()),
        "chrf": _chrf_counts(answer.text, expected),
    }


def answer_metrics(answers: Sequence[Answer], statistics: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The metrics of all answers; None where there are none."""
    num = len(answers)
    if not num:
        names = ("exact_match", "chrf", "stop_rate", "mean_answer_tokens", "repetition")
        return dict.fromkeys(names) | {"num_generations": 0}
    return {
        "exact_match": sum(each["exact_match"] for each in statistics) / num,
        "chrf": chrf_score([sum(column) for column in zip(*(each["chrf"] for each in statistics), strict=True)]),
        "stop_rate": sum(answer.stopped for answer in answers) / num,
        "mean_answer_tokens": sum(len(answer.token_ids) for answer in answers) / num,
        "repetition": sum(repetition(answer.token_ids) for answer in answers) / num,
        "num_generations": num,
    }


def repetition(tokens: Sequence[int]) -> float:
    """Share of the 4-grams that came before; 0 where there are fewer than four tokens."""
    grams = [tuple(tokens[i : i + _GRAM]) for i in range(len(tokens) - _GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _chrf_counts(answer: str, expected: str) -> list[int]:
    from sacrebleu.metrics import CHRF

    # The counts of one answer, which the public methods turn into a score at once.
    return [int(count) for count in CHRF()._extract_corpus_statistics([answer], [[expected]])[0]]
