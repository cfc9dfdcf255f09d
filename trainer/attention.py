"""Attention over a row of several conversations, none of which sees another.

A batch is one row of tokens without padding; `cu_seq_lens_q` says where each conversation begins, as transformers'
own flash attention has it. What is registered here under NAME computes each conversation by itself: exact, and on a
CPU the fastest, since no score is computed that is thrown away.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F

NAME = "documents"


def register() -> None:
    """Make the attention known to transformers under NAME."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, documents_attention)
    AttentionMaskInterface.register(NAME, _no_mask)


def documents_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    cu_seq_lens_q: torch.Tensor | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each conversation of one row.

    Args:
        query, key, value: 1 x heads x tokens x head size; key and value may have fewer heads.
        cu_seq_lens_q: where each conversation begins, and the end of the last; None means there is one.
    Returns:
        1 x tokens x heads x head size.
    """
    ends = [0, query.shape[2]] if cu_seq_lens_q is None else cu_seq_lens_q.tolist()
    outputs = [
        F.scaled_dot_product_attention(
            query[:, :, begin:end],
            key[:, :, begin:end],
            value[:, :, begin:end],
            dropout_p=dropout,
            is_causal=True,
            scale=scaling,
            enable_gqa=query.shape[1] != key.shape[1],
        )
        for begin, end in pairwise(ends)
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2).contiguous(), None


def _no_mask(*_: Any, **__: Any) -> None:
    return None
