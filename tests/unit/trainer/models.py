"""Models of a few thousand parameters, with random weights, and rows of random tokens for them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Phi3Config

from trainer.attention import register, rotate_by_conversation
from trainer.batches import Row
from trainer.loss import learn_supervised_tokens

VOCABULARY = 97


def phi3(attention: str = "documents", **changes: Any) -> Any:
    """A Phi-3 of two layers that learns supervised tokens; the same weights whenever it is asked for."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more would wait for each other, on work as small as this
    shape = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64, "pad_token_id": 0,
        "initializer_range": 0.2,
    }  # fmt: skip
    config = Phi3Config(**(shape | changes))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=register(attention), dtype=torch.float32)
    rotate_by_conversation(model)
    learn_supervised_tokens(model)
    return model


def row(*lengths: int, seed: int = 0) -> Row:
    """A row of conversations of these lengths, the later half of each learned."""
    numbers = np.random.default_rng(seed)
    ids = [numbers.integers(1, VOCABULARY, length) for length in lengths]
    labels = [np.where(np.arange(len(one)) < len(one) // 2, -100, one) for one in ids]
    return Row(np.concatenate(ids), np.concatenate(labels), lengths, tuple(range(1, len(lengths) + 1)))


def alone(packed: Row) -> list[Row]:
    """Each conversation of a row in a row of its own."""
    ends = np.cumsum(packed.lengths)
    parts = [slice(end - length, end) for end, length in zip(ends, packed.lengths, strict=True)]
    return [
        Row(packed.input_ids[part], packed.labels[part], (length,), (line,))
        for part, length, line in zip(parts, packed.lengths, packed.lines, strict=True)
    ]


def loss_of(model: Any, batch: dict[str, Any]) -> torch.Tensor:
    """The summed loss of a batch."""
    batch = {name: value.to(model.device) if hasattr(value, "to") else value for name, value in batch.items()}
    return model(**{name: value for name, value in batch.items() if name != "lines"}).loss
