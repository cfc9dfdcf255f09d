"""Evaluation during a training, and early stopping."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from conftest import FACTS, SETTINGS, chat, write_chats

from trainer.__main__ import main
from trainer.checkpoints import mark_complete, written_files
from trainer.config import TrainConfig, TrainConfigError
from trainer.evaluations import Evaluations

# Falls while the form of an answer is learned, and rises as the facts are learned by heart.
SOON_OVER = {
    "learning_rate": 1e-2,
    "max_steps": 40,
    "save_steps": 7,
    "eval_strategy": "steps",
    "eval_steps": 3,
    "early_stopping_patience": 2,
    "per_device_eval_batch_size": 3,
    "num_eval_generations": 0,
    "lr_scheduler_type": "constant",
    "warmup_ratio": 0.0,
}


class Job:
    """A training on the facts, scored on other conversations of unequal lengths."""

    def __init__(self, folder: Path, base: Path, train: Path, **settings) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.json").write_text(json.dumps(SETTINGS | SOON_OVER | settings))
        others = [chat(question, "No. " * (1 + i * i % 7)) for i, question in enumerate(FACTS)]
        self.arguments = [
            "--base-model", str(base), "--train-file", str(train),
            "--eval-file", str(write_chats(folder / "others.jsonl", others)),
            "--model-output-dir", str(folder / "model"), "--config", str(folder / "train.json"),
            "--checkpoint-dir", str(folder / "checkpoints"), "--log-dir", str(folder / "logs"),
        ]  # fmt: skip

    def run(self) -> dict:
        assert main(self.arguments) == 0
        return json.loads((self.folder / "logs" / "result.json").read_text())

    def evaluations(self) -> list[dict]:
        lines = (self.folder / "logs" / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == "evaluation"]


@pytest.fixture(scope="module")
def stopped(tiny_model, corpus, tmp_path_factory) -> tuple[Job, dict, list[dict]]:
    """A run that stopped early, its result and its evaluations."""
    job = Job(tmp_path_factory.mktemp("stopped"), tiny_model, corpus)
    result = job.run()
    return job, result, job.evaluations()


def test_a_training_that_does_not_improve_ends_with_its_best_weights(stopped):
    """It ends two evaluations after the best one, and what is packaged scores what the best one did."""
    _, result, evaluations = stopped
    losses = [event["loss"] for event in evaluations]
    best = losses.index(min(losses))
    assert len(losses) == best + 3 and result["train"]["num_steps"] == 3 * len(losses) < 40
    assert result["metrics"]["candidate"]["loss"] == pytest.approx(min(losses), rel=1e-5)
    assert [event["step"] for event in evaluations] == [3 * (i + 1) for i in range(len(losses))]


def test_run_again_it_trains_no_more(stopped):
    """The same command after an early stop gives the same model without another step."""
    job, result, _ = stopped
    again = job.run()
    assert again["model_digest"] == result["model_digest"]
    assert again["train"]["num_steps"] == again["train"]["resumed_from_step"] == result["train"]["num_steps"]


def test_resumed_it_stops_where_it_would_have(stopped, tiny_model, corpus, tmp_path):
    """Killed before its last evaluation and resumed, it stops at the same step with the same weights."""
    job, result, _ = stopped
    other = Job(tmp_path, tiny_model, corpus)
    shutil.copytree(job.folder / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / f"checkpoint-{result['train']['num_steps']}")
    again = other.run()
    assert again["train"]["resumed_from_step"] < result["train"]["num_steps"] == again["train"]["num_steps"]
    assert again["model_digest"] == result["model_digest"]


def test_an_evaluation_that_an_interruption_left_out_is_made_up_for(stopped, tiny_model, corpus, tmp_path):
    """Resumed at a step whose evaluation is not in the checkpoint, a run evaluates first, and ends as it would have."""
    job, result, evaluations = stopped
    shutil.copytree(job.folder / "checkpoints", tmp_path / "checkpoints")
    last = result["train"]["num_steps"]
    path = tmp_path / "checkpoints" / f"checkpoint-{last}" / "trainer_state.json"
    state = json.loads(path.read_text())
    state["log_history"] = [each for each in state["log_history"] if each["step"] < last or "eval_loss" not in each]
    path.write_text(json.dumps(state))
    mark_complete(path.parent, last, written_files(path.parent, 0))
    other = Job(tmp_path, tiny_model, corpus)
    assert other.run()["model_digest"] == result["model_digest"]
    assert [event["step"] for event in other.evaluations()] == [last]
    assert other.evaluations()[0]["loss"] == evaluations[-1]["loss"]


def test_the_loss_weighs_every_token_alike(stopped, tiny_model, corpus, tmp_path):
    """An evaluation in the training gives what the evaluation after it gives, batches of unequal numbers of tokens."""
    job = Job(tmp_path, tiny_model, corpus, early_stopping_patience=0, max_steps=2, eval_strategy="epoch")
    result = job.run()
    (told,) = job.evaluations()
    assert (told["step"], told["loss"]) == (2, pytest.approx(result["metrics"]["candidate"]["loss"], rel=1e-5))


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"eval_strategy": "epoch"}, [3, 6, 8]),
        ({"eval_strategy": "steps", "eval_steps": 4}, [4, 8]),
        ({"eval_strategy": "no"}, []),
    ],
)
def test_when_it_evaluates(settings, steps):
    """After the last step of each epoch or every eval_steps, and at the end; the number to come is known."""
    evaluations = Evaluations(TrainConfig(**settings))
    args = SimpleNamespace(gradient_accumulation_steps=2)
    state = SimpleNamespace(global_step=0, max_steps=8, log_history=[], best_global_step=None)
    control = SimpleNamespace(should_training_stop=False)
    evaluations.on_train_begin(args, state, control, train_dataloader=range(5))
    due = []
    for step in range(1, 9):
        assert evaluations.num_left(step - 1, 8) == len([each for each in steps if each >= step])
        state.global_step = step
        evaluations.on_step_end(args, state, control)
        due += [step] if control.should_evaluate else []
    assert due == steps and control.should_training_stop is False


def test_early_stopping_without_evaluations_is_refused():
    """Patience without evaluations is one line before anything starts."""
    with pytest.raises(TrainConfigError, match=r"early_stopping_patience is 2, but train\.eval_strategy is no"):
        TrainConfig(early_stopping_patience=2, eval_strategy="no")
