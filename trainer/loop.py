"""transformers' Trainer over rows without padding, with the loss averaged over every supervised token of a step."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.data import Sampler

from trainer.callbacks import ProgressCallback
from trainer.chat_template import IGNORED
from trainer.evaluations import held_out_loss
from trainer.saving import SavingTrainer


class RowTrainer(SavingTrainer):
    """Trains on rows; each step's loss is the mean over the supervised tokens of all its rows on all processes."""

    watcher: ProgressCallback
    order: Sampler[int] | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The step's number of supervised tokens is counted for us, over accumulation and processes.
        self.model_accepts_loss_kwargs = True

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.order or super()._get_train_sampler(train_dataset)

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Sum over this batch's supervised tokens, divided by the whole step's."""
        inputs = {name: value for name, value in inputs.items() if name != "lines"}
        num_learned = (inputs["labels"] != IGNORED).sum() if num_items_in_batch is None else num_items_in_batch
        outputs = model(**inputs)
        loss = outputs.loss / num_learned
        if self.args.average_tokens_across_devices and num_items_in_batch is not None:
            loss = loss * self.accelerator.num_processes  # which average their gradients
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """The loss a supervised token of the evaluation rows; transformers' own would average batches."""
        metrics = {f"{metric_key_prefix}_loss": held_out_loss(self)}
        self.log(metrics)
        control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)  # type: ignore[has-type]
        self.control = control
        return metrics

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """One forward and backward pass."""
        lines = inputs.pop("lines", ())
        loss = super().training_step(model, inputs, *args, **kwargs)
        self.guard.saw(loss, lines)
        self.watcher.saw(inputs, loss)
        return loss

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        self.watcher.grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.watcher.grad_norm
