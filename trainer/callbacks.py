"""What is told between the steps of a training: progress, rates and metrics; guard.py ends it."""

from __future__ import annotations

import logging
import math
import resource
import sys
import time
from typing import Any

import torch
from transformers import TrainerCallback

from trainer.chat_template import IGNORED
from trainer.console import find_console
from trainer.evaluations import Evaluations
from trainer.events import EventLog
from trainer.pace import Pace
from trainer.ranks import summed, world_size
from trainer.tracking import Tracker

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_EVENTS = 1.0
_SECONDS_BETWEEN_LINES = 5.0
_BACKWARD_AND_FORWARD = 3  # times the work of the forward pass, which an evaluation does alone


class ProgressCallback(TrainerCallback):
    """Tells the event log, the console and MLflow how the training goes.

    Args:
        evaluations: when it is interrupted, for the time left.
        evaluation_tokens: in the conversations that each evaluation scores.

    Attributes:
        flops_per_token: floating-point operations of a training step by its tokens; 0: unknown, and so is mfu.
        peak_flops: what one process's device could do in a second; 0: unknown.
    """

    def __init__(self, events: EventLog, tracker: Tracker, evaluations: Evaluations, evaluation_tokens: int) -> None:
        self.events, self.tracker = events, tracker
        self.evaluations, self.evaluation_tokens = evaluations, evaluation_tokens
        self.flops_per_token = self.peak_flops = 0.0
        self.loss = math.nan
        self.grad_norm: Any = math.nan
        self.num_tokens = self.num_supervised_tokens = 0
        self.rates: list[list[float]] = []
        self.pace = Pace(time.monotonic())
        self._step_tokens = 0
        self._seen: list[torch.Tensor] = []  # supervised tokens and loss of each forward pass, on the device
        self._learning_rate = 0.0
        self._told = self._printed = self.pace.begun

    def saw(self, inputs: dict[str, Any], loss: torch.Tensor) -> None:
        """Take in one forward pass: its batch, and its share of the step's loss."""
        self._step_tokens += inputs["input_ids"].numel()
        self._seen.append(torch.stack([(inputs["labels"] != IGNORED).sum().float(), loss.detach().float()]))

    @property
    def mfu(self) -> float | None:
        """Model FLOPs utilisation: the model's floating-point operations a second by what the devices could do.

        Source: Chowdhery et al. (2022), PaLM, appendix B; what is computed twice to save memory does not count.
        """
        possible = self.peak_flops * world_size()
        return self.pace.tokens_per_second * self.flops_per_token / possible if possible else None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Start the clock; a training that is begun again with smaller batches starts anew."""
        self._step_tokens, self._seen = 0, []
        self.pace = Pace(time.monotonic())
        self._told = self._printed = self.pace.begun

    def on_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """Know the rate that the step was taken with."""
        self._learning_rate = optimizer.param_groups[0]["lr"]

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Count, and report now and then."""
        supervised, loss = torch.stack(self._seen).sum(0).tolist()
        mine = [float(self._step_tokens), supervised, loss / args.world_size]
        tokens, supervised, self.loss = summed(mine, str(args.device))
        self._step_tokens, self._seen = 0, []
        now = time.monotonic()
        self.pace.step(now, int(tokens), int(supervised))
        self.num_tokens += int(tokens)
        self.num_supervised_tokens += int(supervised)
        if now - self._told >= _SECONDS_BETWEEN_EVENTS or state.global_step >= state.max_steps:
            self._told = now
            self._tell(args, state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Keep the curves."""
        step = state.global_step
        if logs and "loss" in logs:
            rate = self.pace.tokens_per_second
            self.rates.append([step, round(rate, 1)])
            points: dict[str, float] = {
                name: logs[name] for name in ("loss", "learning_rate", "grad_norm") if name in logs
            }
            points |= {"tokens_per_second": rate, "memory_gib": memory_bytes() / 2**30}
            points |= {"supervised_tokens_per_second": self.pace.supervised_tokens_per_second}
            points |= {} if self.mfu is None else {"mfu": self.mfu}
            for name, value in points.items():
                self.tracker.point(f"train_{name}", value, step)
        elif logs and "eval_loss" in logs:
            self.events.emit("evaluation", step=step, loss=logs["eval_loss"])
            self.tracker.point("eval_loss", float(logs["eval_loss"]), step)
            if state.is_world_process_zero:
                log.info("Evaluated step=%d/%d eval_loss=%.4f", step, state.max_steps, logs["eval_loss"])

    def on_evaluate(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """An evaluation took its time."""
        self.pace.other(time.monotonic(), "evaluation")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say that a checkpoint is whole."""
        self.pace.other(time.monotonic(), "checkpoint")
        self.events.emit("checkpoint", step=state.global_step, path=f"checkpoint-{state.global_step}")

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Take the status line away."""
        if console := find_console():
            console.status("")

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"rates": self.rates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from state_dict()."""
        self.rates = state["rates"]

    def seconds_left(self, step: int, last: int, save_steps: int) -> float:
        """Of the training, as the recent steps, the evaluations and the checkpoints went."""
        pace = self.pace
        forward = pace.tokens_per_second * _BACKWARD_AND_FORWARD
        evaluation = pace.mean_seconds("evaluation", self.evaluation_tokens / forward if forward else 0.0)
        num_saves = math.ceil(last / save_steps) - step // save_steps if step < last else 0
        return (
            (last - step) * pace.step_seconds
            + self.evaluations.num_left(step, last) * (evaluation + pace.mean_seconds("samples"))
            + num_saves * pace.mean_seconds("checkpoint")
        )

    def _tell(self, args: Any, state: Any) -> None:
        if not state.is_world_process_zero:
            return
        left = self.seconds_left(state.global_step, state.max_steps, args.save_steps)
        progress = {
            "step": state.global_step,
            "num_steps": state.max_steps,
            "epoch": round(state.epoch or 0.0, 3),
            "loss": round(self.loss, 5),
            "learning_rate": self._learning_rate,
            "grad_norm": round(float(self.grad_norm), 5),
            "tokens_per_second": round(self.pace.tokens_per_second, 1),
            "supervised_tokens_per_second": round(self.pace.supervised_tokens_per_second, 1),
            "mfu": None if self.mfu is None else round(self.mfu, 4),
            "memory_bytes": memory_bytes(),
            "seconds_left": round(left, 1),
        }
        self.events.emit("progress", **progress)
        console, now = find_console(), time.monotonic()
        if console and console.is_terminal:
            console.status(progress_line(progress))
        elif now - self._printed >= _SECONDS_BETWEEN_LINES:
            self._printed = now
            log.info("%s", progress_line(progress))


def progress_line(progress: dict[str, Any]) -> str:
    """A progress event for a person."""
    fields = [
        f"step={progress['step']}/{progress['num_steps']}",
        f"loss={progress['loss']:.4f}",
        f"grad_norm={progress['grad_norm']:.3g}",
        f"tokens_per_second={progress['tokens_per_second']:.0f}",
        f"supervised={progress['supervised_tokens_per_second']:.0f}",
        *([] if progress["mfu"] is None else [f"mfu={progress['mfu']:.1%}"]),
        f"memory={progress['memory_bytes'] / 2**30:.1f}GiB",
        f"seconds_left={progress['seconds_left']:.0f}",
    ]
    return " ".join(["Trained", *fields])


def memory_bytes() -> int:
    """The most memory that the training had at a time: of the GPU, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
