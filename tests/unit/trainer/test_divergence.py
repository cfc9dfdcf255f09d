"""When a training counts as diverged, and what is said of it."""

from __future__ import annotations

import math
import random

import pytest

from trainer.divergence import Divergence, diverged_error, lines_named


def judged(losses: list[float]) -> int | None:
    """The step at which a loss curve counts as diverged, from 1."""
    divergence = Divergence()
    return next((step for step, loss in enumerate(losses, 1) if divergence.problem(loss, 1.0)), None)


@pytest.mark.parametrize(("loss", "norm", "said"), [(math.nan, 1, "loss is nan"), (2.0, math.inf, "norm is inf")])
def test_what_is_no_number_is_divergence_at_once(loss, norm, said):
    """A loss or a gradient norm that is no finite number is named in the step that has it."""
    assert said in Divergence().problem(loss, norm)


def test_a_loss_that_runs_away_is_divergence():
    """A fine-tune whose loss climbs from 1.5 to that of a random guess is stopped before a hundred steps are lost."""
    assert 40 <= judged([1.5] * 100 + [10.4] * 100) <= 120


def test_ordinary_curves_are_not_divergence():
    """Noise, one bad batch in ten, a slow rise within the noise and a start from scratch go on."""
    draw = random.Random(3)
    noisy = [max(0.05, draw.gauss(1.5, 0.6)) for _ in range(2000)]
    assert judged(noisy) is None
    assert judged([1.0 if step % 10 else 8.0 for step in range(500)]) is None
    assert judged([1.2 + step / 1000 for step in range(1000)]) is None
    assert judged([10.4 - step / 100 for step in range(900)]) is None


def test_a_resumed_run_judges_by_the_same_steps():
    """The steps before a checkpoint count after it."""
    losses = [1.5] * 30 + [9.0] * 30
    whole, first = Divergence(), Divergence()
    for loss in losses[:35]:
        first.problem(loss, 1.0)
    resumed = Divergence()
    resumed.load_state_dict(first.state_dict())
    said = [whole.problem(loss, 1.0) for loss in losses][35:]
    assert [resumed.problem(loss, 1.0) for loss in losses[35:]] == said and any(said)


def test_the_error_names_step_value_rate_and_lines():
    """Everything that is needed to look at the batch is in one line."""
    batch = lines_named("train.jsonl", [40, 7, 7, 12])
    error = diverged_error("the loss is nan", 12, 5e-6, batch)
    assert error.message == (
        "The training diverged: the loss is nan at step 12 (learning_rate 5e-06), train.jsonl lines 7, 12, 40."
    )
    assert lines_named("t.jsonl", range(1, 26)).endswith("19, 20 and 5 more") and lines_named("t.jsonl", []) == ""
