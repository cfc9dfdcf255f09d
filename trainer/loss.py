"""The loss on what is learned alone: the output layer never sees the other tokens, nor holds all logits at once.

torch's own linear_cross_entropy adds the loss up in bfloat16 where the states are (0.8 % off over 4,000 tokens, seen
with 2.13), and on a CPU takes up to twice as long as full logits; so the few lines that chunking takes are here.
"""

from __future__ import annotations

import logging
import types
from typing import Any

import torch
import torch.nn.functional as F

from trainer.chat_template import IGNORED

log = logging.getLogger(__name__)

# Of one chunk, in 32 bits: what a CPU keeps in its cache, and what keeps a GPU busy.
_LOGITS_BYTES = {"cpu": 16 * 2**20, "cuda": 256 * 2**20}


def learn_supervised_tokens(model: Any) -> None:
    """Give a causal language model a forward pass whose loss is the sum of negative log likelihoods of the labels.

    Without labels it answers as before. A model that does more to its logits than its output layer does (scales or
    caps them) computes them itself, at the learned tokens.
    """
    original, plain, head = model.forward, is_plain(model), model.get_output_embeddings()
    logits_of, is_linear = head.forward, type(head) is torch.nn.Linear  # else quantised, or with adapters

    # The head's own work, so that whoever gathers a sharded layer's weights for its call does so for the loss.
    def head_forward(self: Any, states: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        if targets is None:
            return logits_of(states)
        if is_linear:
            return summed_loss(states, self, targets)
        return F.cross_entropy(logits_of(states).float(), targets, reduction="sum")

    log.info("Chose loss=%s", "chunked" if plain else "the model's own logits, which it scales or caps")

    def forward(self: Any, *args: Any, labels: torch.Tensor | None = None, **inputs: Any) -> Any:
        if labels is None:
            return original(*args, **inputs)
        from transformers.modeling_outputs import CausalLMOutputWithPast

        inputs = {**inputs, "use_cache": False}
        inputs.pop("num_items_in_batch", None)
        targets = labels[:, 1:]
        learned = targets != IGNORED
        if plain:
            states = self.base_model(*args, **inputs).last_hidden_state[:, :-1][learned]
            loss = head(states, targets=targets[learned])
        else:
            columns = learned.any(dim=0).nonzero()[:, 0]
            logits = original(*args, **inputs, logits_to_keep=columns).logits[learned[:, columns]]
            loss = F.cross_entropy(logits.float(), targets[learned], reduction="sum")
        return CausalLMOutputWithPast(loss=loss)

    model.forward = types.MethodType(forward, model)
    head.forward = types.MethodType(head_forward, head)


def summed_loss(states: torch.Tensor, head: torch.nn.Linear, targets: torch.Tensor) -> torch.Tensor:
    """Sum of negative log likelihoods, 32 bits.

    Args:
        states: tokens x hidden size; what the output layer reads.
        targets: tokens; what each state should predict.
    """
    kind = states.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype
    with torch.autocast(kind, enabled=False):
        return _ChunkedLoss.apply(states, head.weight, head.bias, targets, dtype)


class _ChunkedLoss(torch.autograd.Function):
    """Logits, loss and gradients of some tokens at a time, as the forward pass goes; sums in 32 bits."""

    @staticmethod
    def forward(ctx: Any, states: Any, weight: Any, bias: Any, targets: Any, dtype: torch.dtype) -> torch.Tensor:
        learn_states, learn_weight, learn_bias = ctx.needs_input_grad[:3]
        cast = weight.to(dtype)
        loss = torch.zeros((), device=states.device)
        for_states = torch.empty_like(states) if learn_states else None
        for_weight = torch.zeros_like(weight, dtype=torch.float32) if learn_weight else None
        for_bias = torch.zeros_like(bias, dtype=torch.float32) if learn_bias else None
        size = max(1, _LOGITS_BYTES.get(states.device.type, 2**28) // (4 * weight.shape[0]))
        for begin in range(0, states.shape[0], size):
            some, wanted = states[begin : begin + size].to(dtype), targets[begin : begin + size, None]
            logits = F.linear(some, cast).float()
            if bias is not None:
                logits += bias
            normaliser = logits.logsumexp(dim=1, keepdim=True)
            loss += (normaliser - logits.gather(1, wanted)).sum()
            if not (learn_states or learn_weight or learn_bias):
                continue
            slope = logits.sub_(normaliser).exp_()  # of the loss by the logits: the probabilities,
            slope.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=slope.dtype))  # less 1 for the target
            if for_bias is not None:
                for_bias += slope.sum(dim=0)
            slope = slope.to(dtype)
            if for_states is not None:
                for_states[begin : begin + size] = slope @ cast
            if for_weight is not None:
                if dtype == torch.float32:
                    for_weight.addmm_(slope.T, some)
                else:
                    for_weight += slope.T @ some
        ctx.save_for_backward(for_states, for_weight, for_bias)
        ctx.dtypes = (states.dtype, weight.dtype, None if bias is None else bias.dtype)
        return loss

    @staticmethod
    def backward(ctx: Any, slope: torch.Tensor) -> Any:
        grads = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if grad is None else (grad * slope).to(dtype) for grad, dtype in grads), None, None


@torch.no_grad()
def is_plain(model: Any) -> bool:
    """Whether the model's logits are what its output layer makes of the last states, seen on a few tokens."""
    training = model.training
    model.eval()
    tokens = torch.arange(8, device=model.device)[None] % model.config.get_text_config().vocab_size
    kind = model.device.type
    with torch.autocast(kind, torch.bfloat16, enabled=kind != "cpu"):  # flash attention knows no 32 bits
        logits = model(input_ids=tokens, use_cache=False).logits
        states = model.base_model(input_ids=tokens, use_cache=False).last_hidden_state
        same = torch.allclose(model.get_output_embeddings()(states).float(), logits.float(), rtol=1e-2, atol=1e-3)
    model.train(training)
    return same
