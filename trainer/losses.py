"""How well a model foresees what it should have said: loss and right first choices, conversation by conversation.

Through the rows, the attention and the precision that train, without padding; the output layer sees the learned
positions alone, a chunk at a time.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from trainer.batches import Row, flatten
from trainer.chat_template import IGNORED

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


def chat_losses(model: Any, rows: Sequence[Row], batch_size: int, bf16: bool) -> list[ChatLoss]:
    """Score conversations, one a row, batch_size of them in a forward pass; the model is in evaluation mode already."""
    losses: list[ChatLoss] = []
    with torch.no_grad(), autocast(model.device.type, bf16):
        for begin in range(0, len(rows), batch_size):
            batch = flatten(rows[begin : begin + batch_size])
            batch = {key: value.to(model.device) if hasattr(value, "to") else value for key, value in batch.items()}
            losses += _scored(model, batch)
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


def _scored(model: Any, batch: dict[str, Any]) -> list[ChatLoss]:
    labels, ends = batch.pop("labels")[0], batch["cu_seq_lens_q"]
    batch.pop("lines")
    hidden = model.base_model(**batch, use_cache=False).last_hidden_state[0]
    places = (labels != IGNORED).nonzero()[:, 0]  # each is foreseen by the state before it
    chats = torch.bucketize(places, ends.to(places.dtype), right=True) - 1
    num_chats = len(ends) - 1
    sums = torch.zeros(3, num_chats, dtype=torch.float64, device=hidden.device)
    for part, chat in _chunks(places, chats, model.get_output_embeddings().weight.shape[0]):
        logits = model.get_output_embeddings()(hidden[part - 1]).float()
        nll = F.cross_entropy(logits, labels[part], reduction="none")
        right = logits.argmax(-1) == labels[part]
        sums.index_add_(1, chat, torch.stack([nll, right.float(), torch.ones_like(nll)]).double())
    return [ChatLoss(nll, int(correct), int(count)) for nll, correct, count in sums.T.tolist()]


def _chunks(places: torch.Tensor, chats: torch.Tensor, vocabulary: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    size = max(1, _LOGITS_AT_ONCE // vocabulary)
    return zip(places.split(size), chats.split(size), strict=True)
