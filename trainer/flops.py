"""What a training computes, and what its device could: the two sides of model FLOPs utilisation.

A token takes 6 N + 6 L q s floating-point operations, with N the parameters but the input embedding, L layers, q the
width of the queries and s the tokens of its conversation (Kaplan et al., "Scaling Laws for Neural Language Models",
arXiv:2001.08361, section 2.1, with causal attention). LoRA computes no gradients of the frozen weights: 4 N.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.batches import Row
    from trainer.hardware import Hardware

# Dense bfloat16 TFLOP/s of NVIDIA's data sheets, read in November 2025; the first name that is part of the device's.
_BF16_TFLOPS = {
    "H100 NVL": 835, "H100 PCIe": 756, "H100": 989, "H200": 989, "GH200": 989, "B200": 2250,
    "A100": 312, "A10G": 70, "A10": 125, "A40": 150, "L40S": 362, "L4": 121,
}  # fmt: skip
_SIDE, _SECONDS = 1024, 0.2  # of the matrices that are multiplied on a CPU, and for how long


def flops_per_token(model: Any, rows: Sequence[Row], is_full: bool) -> float:
    """Mean of the rows' tokens, forward and backward; what is computed twice to save memory does not count."""
    from trainer.batches import chat_lengths

    config = model.config.get_text_config()
    weight = model.get_input_embeddings().weight
    tied = weight is model.get_output_embeddings().weight
    # 4-bit weights are counted by what they stand for.
    multiplied = model.num_parameters() - (0 if tied else weight.numel())
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    queries = config.num_attention_heads * head_size
    lengths = chat_lengths(rows).astype(float)
    context = float((lengths**2).sum() / lengths.sum())
    return (6 if is_full else 4) * multiplied + 6 * config.num_hidden_layers * queries * context


def peak_flops(hardware: Hardware) -> tuple[float, str]:
    """Floating-point operations a second of one device, and where the number is from; 0 where nobody knows."""
    import torch

    if hardware.device == "cpu":
        rate = _measured(torch.bfloat16 if hardware.bf16 else torch.float32)
        return rate, f"{rate / 1e9:.0f} GFLOP/s, matrices of {_SIDE} x {_SIDE} measured here"
    name = torch.cuda.get_device_name()
    known = next((tflops for part, tflops in _BF16_TFLOPS.items() if part.lower() in name.lower()), 0)
    if not known or not hardware.bf16:
        return 0.0, f"not known of {name}"
    return known * 1e12, f"{known} TFLOP/s, {name}'s data sheet, dense bfloat16"


def _measured(dtype: Any) -> float:
    import torch

    matrix = torch.ones(_SIDE, _SIDE, dtype=dtype)
    matrix @ matrix
    best, begun = 0.0, time.perf_counter()
    while time.perf_counter() - begun < _SECONDS:
        start = time.perf_counter()
        matrix @ matrix
        best = max(best, 2 * _SIDE**3 / (time.perf_counter() - start))
    return best
