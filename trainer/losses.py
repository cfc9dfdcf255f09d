"""How well a model foresees what it should have said: loss and right first choices, conversation by conversation.

Through the batches, the attention and the precision that train; the output layer sees the learned positions alone, a
chunk at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from trainer.chat_template import IGNORED
from trainer.loss import is_plain

_LOGITS_AT_ONCE = 2**26  # 256 MiB in 32 bits


@dataclass(frozen=True, slots=True)
class ChatLoss:
    """One conversation's score.

    Args:
        nll: sum of the negative log likelihoods of its learned tokens, nats.
        num_correct: learned tokens that were the model's first choice.
        num_tokens: learned tokens.
    """

    nll: float
    num_correct: int
    num_tokens: int


def chat_losses(model: Any, batches: Iterable[dict[str, Any]], bf16: bool) -> list[ChatLoss]:
    """Score conversations, one a row, in batches of batches.py; the model is in evaluation mode already."""
    losses: list[ChatLoss] = []
    plain = is_plain(model)
    with torch.no_grad(), autocast(model.device.type, bf16):
        for batch in batches:
            batch = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in batch.items()}
            losses += _scored(model, batch, plain)
    return losses


def token_metrics(losses: Sequence[ChatLoss]) -> dict[str, Any]:
    """Loss a learned token, perplexity and token accuracy over all conversations."""
    num_tokens = sum(loss.num_tokens for loss in losses)
    loss = sum(loss.nll for loss in losses) / num_tokens
    return {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": sum(loss.num_correct for loss in losses) / num_tokens,
        "num_examples": len(losses),
        "num_tokens": num_tokens,
    }


def autocast(device: str, bf16: bool) -> contextlib.AbstractContextManager[Any]:
    """The arithmetic that trains: bfloat16 where the hardware was chosen to have it."""
    return torch.autocast(device, dtype=torch.bfloat16) if bf16 else contextlib.nullcontext()


def _scored(model: Any, batch: dict[str, Any], plain: bool) -> list[ChatLoss]:
    labels, ends, _ = batch.pop("labels"), batch.get("cu_seq_lens_q"), batch.pop("lines", ())
    rows, columns = (labels[:, 1:] != IGNORED).nonzero(as_tuple=True)  # of the states that foresee what is learned
    targets = labels[rows, columns + 1]
    # Without padding all conversations stand in one row, else each has its own.
    chats = rows if ends is None else torch.bucketize(columns, ends.to(columns.dtype), right=True) - 1
    sums = torch.zeros(3, labels.shape[0] if ends is None else len(ends) - 1, dtype=torch.float64, device=labels.device)
    for logits, part in _logits(model, batch, (rows, columns), plain):
        nll = F.cross_entropy(logits, targets[part], reduction="none")
        right = logits.argmax(-1) == targets[part]
        sums.index_add_(1, chats[part], torch.stack([nll, right.float(), torch.ones_like(nll)]).double())
    return [ChatLoss(nll, int(correct), int(count)) for nll, correct, count in sums.T.tolist()]


def _logits(
    model: Any, batch: dict[str, Any], places: tuple[torch.Tensor, torch.Tensor], plain: bool
) -> Iterator[tuple[torch.Tensor, slice]]:
    """The logits at these rows and columns in 32 bits, some at a time, with which they are.

    A model that does more to its logits than its output layer does computes them itself, all at once.
    """
    rows, columns = places
    if not plain:
        kept, index = columns.unique(return_inverse=True)
        logits = model(**batch, use_cache=False, logits_to_keep=kept).logits
        yield logits[rows, index].float(), slice(None)
        return
    states = model.base_model(**batch, use_cache=False).last_hidden_state[rows, columns]
    head = model.get_output_embeddings()
    size = max(1, _LOGITS_AT_ONCE // head.weight.shape[0])
    for begin in range(0, len(rows), size):
        part = slice(begin, begin + size)
        yield head(states[part]).float(), part
