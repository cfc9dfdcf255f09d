"""What is told between the steps of a training: progress and loss curve; guard.py ends it."""

from __future__ import annotations

import logging
import math
import time
from typing import Any

from transformers import TrainerCallback

from trainer.events import EventLog
from trainer.interruption import Interruption
from trainer.ranks import summed
from trainer.tracking import Tracker

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_EVENTS = 1.0
_SECONDS_BETWEEN_LINES = 5.0


class ProgressCallback(TrainerCallback):
    """Tells the event log, the console and MLflow how the training goes, and ends it when asked to."""

    def __init__(self, events: EventLog, tracker: Tracker, interruption: Interruption) -> None:
        self.events, self.tracker, self.interruption = events, tracker, interruption
        self.loss_curve: list[list[float]] = []
        self.loss = math.nan
        self.num_tokens = 0
        self.step_tokens = 0
        self._begun = self._told = self._printed = time.monotonic()
        self._first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock, and carry on the curve of an earlier attempt."""
        self._begun = self._told = self._printed = time.monotonic()
        self._first_step = state.global_step
        self.loss_curve = [[entry["step"], entry["loss"]] for entry in state.log_history if "loss" in entry]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report now and then."""
        now = time.monotonic()
        tokens, self.step_tokens = self.step_tokens, 0
        self.num_tokens += int(summed([float(tokens)], str(args.device))[0])
        last = state.global_step >= state.max_steps
        if now - self._told >= _SECONDS_BETWEEN_EVENTS or last:
            self._told = now
            self._tell(args, state, now - self._begun)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Keep the loss curve."""
        step = state.global_step
        if logs and "loss" in logs:
            self.loss_curve.append([step, logs["loss"]])
            for name in ("loss", "learning_rate", "grad_norm", "mean_token_accuracy"):
                if name in logs:
                    self.tracker.point(f"train_{name}", float(logs[name]), step)
        elif logs and "eval_loss" in logs:
            self.events.emit("evaluation", step=step, loss=logs["eval_loss"])
            self.tracker.point("eval_loss", float(logs["eval_loss"]), step)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say that a checkpoint is whole."""
        self.events.emit("checkpoint", step=state.global_step, path=f"checkpoint-{state.global_step}")

    def _tell(self, args: Any, state: Any, seconds: float) -> None:
        done = state.global_step - self._first_step
        left = seconds / done * (state.max_steps - state.global_step) if done else 0.0
        rate = self.num_tokens / seconds if seconds else 0.0
        learning_rate = state.log_history[-1].get("learning_rate") if state.log_history else None
        self.events.emit(
            "progress",
            step=state.global_step,
            num_steps=state.max_steps,
            epoch=round(state.epoch or 0.0, 3),
            loss=round(self.loss, 5),
            learning_rate=learning_rate,
            tokens_per_second=round(rate, 1),
            seconds_left=round(left, 1),
        )
        if state.is_world_process_zero and time.monotonic() - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = time.monotonic()
            log.info(
                "Trained step=%d/%d loss=%.4f tokens_per_second=%.0f seconds_left=%.0f",
                state.global_step, state.max_steps, self.loss, rate, left,
            )  # fmt: skip
