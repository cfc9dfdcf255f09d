"""Evaluation during a training: when, the loss a token over all processes, and when to stop early.

transformers averages batches, which weighs the tokens of a short batch more, and evaluates an epoch after the
checkpoint of its last step, so that a resumed run would miss it. Here an evaluation belongs to a step, before its
checkpoint, and everything that early stopping knows is in the checkpoint's log.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trainer.chat_template import IGNORED
from trainer.config import TrainConfig
from trainer.ranks import summed

log = logging.getLogger(__name__)


class Evaluations(TrainerCallback):
    """Asks for an evaluation every eval_steps or epoch and at the end, and stops a training that no longer improves."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.every = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, train_dataloader: Any = None, **_: Any) -> None:
        """Find the steps to evaluate after; a run that had stopped early, and is run again, trains no more."""
        strategy = self.config.eval_strategy
        steps_an_epoch = math.ceil(len(train_dataloader) / args.gradient_accumulation_steps)
        self.every = {"no": 0, "steps": self.config.eval_steps, "epoch": steps_an_epoch}[strategy]
        self._point_to_best(args, state)
        control.should_training_stop = self._is_over(state)
        told = [entry["step"] for entry in state.log_history if "eval_loss" in entry]
        args.eval_on_start = self._is_due(state) and state.global_step not in told  # what an interruption left out

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for an evaluation where one is due; a run that was told to stop has no time for it."""
        told_to_stop = control.should_training_stop and state.global_step < state.max_steps
        control.should_evaluate = self._is_due(state) and not told_to_stop

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """With early stopping keep what was evaluated, remember the best, and stop when it is over."""
        if not self.config.early_stopping_patience:
            return
        control.should_save = True
        losses = held_out_losses(state)
        if losses.index(min(losses)) == len(losses) - 1:
            state.best_metric, state.best_global_step = losses[-1], state.global_step
        if self._is_over(state):
            log.info(
                "Stopped early step=%d reason=no lower eval_loss than %.4f in %d evaluations",
                state.global_step, min(losses), self.config.early_stopping_patience,
            )  # fmt: skip
            control.should_training_stop = True

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Know where the best weights are, to go back to them."""
        self._point_to_best(args, state)

    def num_left(self, step: int, last: int) -> int:
        """How many evaluations are to come after a step, if none stops the training."""
        return math.ceil(last / self.every) - step // self.every if self.every and step < last else 0

    def _is_due(self, state: Any) -> bool:
        step = state.global_step
        return bool(self.every and step) and (step % self.every == 0 or step >= state.max_steps)

    def _is_over(self, state: Any) -> bool:
        losses = held_out_losses(state)
        patience = self.config.early_stopping_patience
        return bool(patience and losses) and len(losses) - 1 - losses.index(min(losses)) >= patience

    def _point_to_best(self, args: Any, state: Any) -> None:
        # By the step, since the folder may be mounted elsewhere when a run goes on.
        if self.config.early_stopping_patience and state.best_global_step:
            best = Path(args.output_dir) / f"checkpoint-{state.best_global_step}"
            state.best_model_checkpoint = str(best) if best.is_dir() else None


def held_out_losses(state: Any) -> list[float]:
    """The loss of each evaluation up to now, an earlier attempt's included; one that is no number is the worst."""
    losses = [entry["eval_loss"] for entry in state.log_history if "eval_loss" in entry]
    return [loss if math.isfinite(loss) else math.inf for loss in losses]


def held_out_loss(trainer: Any) -> float:
    """Mean negative log likelihood a learned token of the trainer's evaluation rows, each process scoring a part.

    Draws no random number and makes no loader, so that a training is the same with evaluations and without.
    """
    rows, size = trainer.eval_dataset, trainer.args.per_device_eval_batch_size
    begins, num_processes = range(0, len(rows), size), trainer.args.world_size
    num_rounds = math.ceil(len(begins) / num_processes)  # of a model in parts, all processes take part in each pass
    model, training = trainer.model, trainer.model.training
    model.eval()
    nll = num_tokens = 0.0
    for round_ in range(num_rounds):
        place = round_ * num_processes + trainer.args.process_index
        begin = begins[place % len(begins)]
        batch = trainer.data_collator([rows[i] for i in range(begin, min(begin + size, len(rows)))])
        batch.pop("lines", None)
        inputs = trainer._prepare_inputs(batch)
        with torch.no_grad(), trainer.compute_loss_context_manager():
            loss = model(**inputs).loss
        if place < len(begins):  # else it only kept the others company
            nll += loss.item()
            num_tokens += int((inputs["labels"] != IGNORED).sum())
    model.train(training)
    nll, num_tokens = summed([nll, num_tokens], str(trainer.args.device))
    return nll / num_tokens
