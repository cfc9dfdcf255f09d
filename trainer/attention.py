"""Attention over several conversations in one row, none of which sees another.

A batch is one row of tokens without padding; `cu_seq_lens_q` says where each conversation begins, as transformers'
own flash attention has it. Two kernels are registered with transformers here: `documents` computes each conversation
by itself, exact and on a CPU the fastest, since no score is computed that is thrown away; `varlen` is torch's own
variable-length flash attention.
"""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

from trainer.errors import TrainerError

# What config.attn_implementation is called in transformers, where that is something else.
_NAMES = {"flex": "flex_attention"}


def register(attention: str) -> str:
    """Make our kernels known to transformers, and return its name of the attention."""
    from transformers import AttentionInterface, AttentionMaskInterface

    for name, kernel in (("documents", documents_attention), ("varlen", varlen_attention)):
        AttentionInterface.register(name, kernel)
        AttentionMaskInterface.register(name, _no_mask)
    return _NAMES.get(attention, attention)


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each conversation.

    Args:
        query, key, value: batch x heads x tokens x head size; key and value may have fewer heads.
        sliding_window: tokens that each sees, itself included.
        cu_seq_lens_q: where each conversation of the only row begins, and the end of the last; None: a row is one.
    Returns:
        batch x tokens x heads x head size.
    """
    _require_plain(others)
    ends = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    outputs = []
    for begin, end in pairwise(ends):
        is_wide = sliding_window is not None and end - begin > sliding_window
        outputs.append(
            F.scaled_dot_product_attention(
                query[:, :, begin:end],
                key[:, :, begin:end],
                value[:, :, begin:end],
                attn_mask=_band(end - begin, sliding_window, query.device) if is_wide and sliding_window else None,
                dropout_p=dropout,
                is_causal=not is_wide,
                scale=scaling,
                enable_gqa=query.shape[1] != key.shape[1],
            )
        )
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def varlen_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int | None = None,
    **others: Any,
) -> tuple[torch.Tensor, None]:
    """The same by torch's variable-length flash attention, on a GPU, in 16 bits."""
    from torch.nn.attention.varlen import varlen_attn

    _require_plain(others)
    if dropout:
        raise _unsupported("dropout", "varlen")
    batch, heads, length, _ = query.shape
    if cu_seq_lens_q is None or max_length_q is None:
        cu_seq_lens_q = torch.arange(0, (batch + 1) * length, length, dtype=torch.int32, device=query.device)
        max_length_q = length
    # Rotary embeddings leave queries and keys in 32 bits; the kernel knows 16 alone.
    half = torch.get_autocast_dtype("cuda") if value.dtype == torch.float32 else value.dtype
    flat = [states.transpose(1, 2).flatten(0, 1).to(half) for states in (query, key, value)]
    # The kernel's window counts the tokens before the own one.
    window = (sliding_window - 1, 0) if sliding_window and max_length_q > sliding_window else (-1, 0)
    output = varlen_attn(
        *flat,
        cu_seq_lens_q,
        cu_seq_lens_q,
        max_length_q,
        max_length_q,
        scale=scaling,
        window_size=window,
        enable_gqa=heads != key.shape[1],
    )
    return output.unflatten(0, (batch, length)), None


def rotate_by_conversation(model: Any) -> None:
    """Give each conversation the rotary factors that it would have alone.

    Longrope (Phi-3.5, Phi-4-mini) has short and long factors, and transformers takes the long ones for a whole batch
    when its longest conversation needs them.
    """
    for module in model.modules():
        if getattr(module, "rope_type", None) == "longrope":
            limit = module.config.rope_parameters["original_max_position_embeddings"]
            module.forward = functools.partial(_rotated, module.forward, limit)


def _rotated(
    forward: Any, limit: int, states: torch.Tensor, position_ids: torch.Tensor, **named: Any
) -> tuple[torch.Tensor, ...]:
    if int(position_ids.max()) < limit:
        return forward(states, position_ids, **named)
    begins = torch.diff(position_ids, prepend=position_ids[:, :1] - 1) != 1
    conversation = begins.cumsum(dim=-1)
    last = position_ids.new_zeros(position_ids.shape[0], position_ids.shape[1] + 1)
    last = last.scatter_reduce(1, conversation, position_ids, "amax")
    is_long = last.gather(1, conversation) >= limit
    long = forward(states, position_ids, **named)
    short = forward(states, position_ids.masked_fill(is_long, 0), **named)
    return tuple(torch.where(is_long[..., None], *both) for both in zip(long, short, strict=True))


@functools.lru_cache(maxsize=8)
def _band(length: int, window: int, device: torch.device) -> torch.Tensor:
    """length x length; True where the row's token sees the column's."""
    return torch.ones(length, length, dtype=torch.bool, device=device).tril().triu(1 - window)


def _require_plain(others: dict[str, Any]) -> None:
    """Refuse what would be left out without a word: capped scores, sinks, biases."""
    for name in ("softcap", "s_aux", "position_bias"):
        if others.get(name) is not None:
            raise _unsupported(name, "this attention")


def _unsupported(what: str, attention: str) -> TrainerError:
    return TrainerError(
        f"The model's attention has {what}, which {attention} does not compute.",
        "Set train.attn_implementation to eager.",
        "configuration",
    )


def _no_mask(*_: Any, **__: Any) -> None:
    return None
