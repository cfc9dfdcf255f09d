"""The loss on what is learned alone: the output layer never sees the other tokens, nor holds all logits at once."""

from __future__ import annotations

import types
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn import LinearCrossEntropyOptions

from trainer.chat_template import IGNORED


def learn_supervised_tokens(model: Any) -> None:
    """Give a causal language model a forward pass whose loss is the sum of negative log likelihoods, by torch's
    chunked linear_cross_entropy; without labels it answers as before.
    """
    original = model.forward

    def forward(self: Any, *args: Any, labels: torch.Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return original(*args, **inputs)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        inputs.pop("num_items_in_batch", None)
        hidden = self.base_model(*args, **inputs, use_cache=False).last_hidden_state
        return CausalLMOutputWithPast(loss=summed_loss(hidden, self.get_output_embeddings(), labels))

    model.forward = types.MethodType(forward, model)


def summed_loss(hidden: torch.Tensor, head: torch.nn.Linear, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the negative log likelihoods of the learned tokens.

    Args:
        hidden: batch x tokens x hidden size, the last layer's states.
        labels: batch x tokens; each token is predicted by the state before it.
    """
    targets = labels[:, 1:]
    learned = targets != IGNORED
    states, weight = hidden[:, :-1][learned], head.weight
    if torch.is_autocast_enabled(hidden.device.type):
        kind = torch.get_autocast_dtype(hidden.device.type)
        states, weight = states.to(kind), weight.to(kind)
    if head.bias is not None or not states.shape[0]:
        return F.cross_entropy(head(states).float(), targets[learned], reduction="sum")
    options = LinearCrossEntropyOptions()
    return F.linear_cross_entropy(states, weight, targets[learned], reduction="sum", options=options)
