"""Scores, intervals and curves as a report shows them."""

from __future__ import annotations

import base64
import math
from dataclasses import replace

import pytest
from fakes import model_version, scores, training_result

from tasks.config import GateConfig
from tasks.evaluation import decide
from tasks.platforms.refs import GateReport, TrainingResult
from tasks.report_scores import curves_uri, interval_lines, scores_document, scores_table

POINTS = [[1, 3.0], [2, 2.0]]


def rows(loss: float) -> list[dict]:
    """Twenty conversations whose losses alternate about one."""
    return [{"loss": loss + 0.02 * (-1) ** number, "num_tokens": 10} for number in range(20)]


@pytest.fixture
def decided() -> tuple[TrainingResult, GateReport]:
    """A candidate that beats its base and what serves."""
    result = training_result()
    result = replace(result, candidate=replace(scores(1.0), chrf=61.25, stop_rate=0.5, repetition=0.031))
    told = {"base": rows(3.0), "candidate": rows(1.0)}
    return result, decide(GateConfig(), result, told, rows(1.5), model_version("4"))


def test_a_table_has_what_was_measured(decided: tuple[TrainingResult, GateReport]) -> None:
    """A row for each metric that any model has; the serving version's own scores where it was scored."""
    result, gate = decided
    table = scores_table(result, gate)
    assert "| loss | 3.0000 | 1.0000 | 1.5000 |" in table
    assert "| chrF |  | 61.2 |  |" in table and "| repeated 4-grams |  | 3.1% |  |" in table
    assert not any("answer length" in line for line in table)
    scored = replace(gate, champion_scores=replace(scores(1.5), chrf=40.0))
    assert "| chrF |  | 61.2 | 40.0 |" in scores_table(result, scored)


def test_intervals_say_how_sure_it_is(decided: tuple[TrainingResult, GateReport]) -> None:
    """Both comparisons have their ends; one that has none is left out."""
    base, serving = interval_lines(decided[1])
    assert base.startswith("- against the base: +2.0000 to +2.0000 nats a token")
    assert serving.startswith("- against version 4: +0.5000 to +0.5000")
    unsure = replace(decided[1], improvement_low=-math.inf, improvement_high=math.inf, champion_worse_low=None)
    assert interval_lines(unsure) == []


def test_the_picture_is_the_trainers_where_there_is_one() -> None:
    """The trainer's PNG goes into the report; without one, or with a huge one, the losses are drawn."""
    png = base64.b64encode(b"picture").decode()
    assert curves_uri({"loss_curve": POINTS, "curves_png": png}) == f"data:image/png;base64,{png}"
    for details in ({"curves_png": None}, {}, {"curves_png": "A" * 500_000}):
        assert curves_uri({"loss_curve": POINTS, **details}).startswith("data:image/svg+xml;base64,")
    assert curves_uri({"loss_curve": []}).startswith("data:image/svg+xml;base64,")


def test_scores_are_a_document(decided: tuple[TrainingResult, GateReport]) -> None:
    """Every score of base and candidate by its name; nothing where nothing was trained."""
    document = scores_document(decided[0])
    assert document["candidate"]["chrf"] == 61.25 and document["base"]["chrf"] is None
    assert scores_document(None) == {}
