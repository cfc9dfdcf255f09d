"""Ends a training between two steps: when it was asked to, after a checkpoint, or when it diverges, without one.

Of several processes each takes part, and all end at the same step.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import torch
from transformers import TrainerCallback

from trainer.divergence import Divergence, diverged_error, lines_named
from trainer.interruption import GRACE_SECONDS, Interruption
from trainer.ranks import gathered, is_first, summed, world_size

log = logging.getLogger(__name__)


class Guard(TrainerCallback):
    """Watches every step's loss, gradient norm and batch, and for signals.

    Args:
        train_file: the training file's name, for a person.
    """

    def __init__(self, interruption: Interruption, train_file: str) -> None:
        self.interruption, self.train_file = interruption, train_file
        self.divergence = Divergence()
        self.grad_norm: torch.Tensor | float = 0.0
        self.checkpoint_seconds: float | None = None
        self._losses: list[torch.Tensor] = []
        self._lines: list[int] = []

    def saw(self, loss: torch.Tensor, lines: Sequence[int]) -> None:
        """Take in one forward pass: its share of the step's loss, and what it learned from."""
        self._losses.append(loss)
        self._lines.extend(lines)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        """End a diverged training before the weights take it in.

        Raises:
            TrainerError: names the step, the value, the learning rate and the lines.
        """
        norm = torch.as_tensor(self.grad_norm, dtype=torch.float32, device=self._losses[0].device)
        *losses, norm = torch.stack([*(loss.float() for loss in self._losses), norm.reshape(())]).tolist()
        lines, self._losses, self._lines = self._lines, [], []
        loss, norm = (total / world_size() for total in summed([sum(losses), norm], str(args.device)))
        if problem := self.divergence.problem(loss, norm):
            lines = [line for each in gathered(lines) for line in each]
            rate = optimizer.param_groups[0]["lr"]
            raise diverged_error(problem, state.global_step + 1, rate, lines_named(self.train_file, lines))

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Ask for a checkpoint and the end when this or another process was signalled."""
        if self._asked_to_end(args):
            control.should_save = control.should_training_stop = True
            if is_first():
                log.info(
                    "Stopping after step=%d reason=%s: a checkpoint%s must be whole within %.0f of the %.0f s that a "
                    "platform gives",
                    state.global_step,
                    self.interruption.requested,
                    f" (the last took {self.checkpoint_seconds:.1f} s)" if self.checkpoint_seconds else "",
                    self.interruption.seconds_left(),
                    GRACE_SECONDS,
                )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """End here when asked to: what follows a checkpoint would use up the grace."""
        if self._asked_to_end(args):
            raise self.interruption.ended()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return self.divergence.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from state_dict()."""
        self.divergence.load_state_dict(state)

    def _asked_to_end(self, args: Any) -> bool:
        """Whether any process was asked to, agreed by all."""
        if not summed([float(bool(self.interruption.requested))], str(args.device))[0]:
            return False
        self.interruption.requested = self.interruption.requested or "a signal to another process"
        return True
