"""The rate that the GPU reaches at the bare matrix products of a training step: python -m tests.benchmarks.matrix_rate

One JSON line: FLOP/s in bfloat16 over the forward and both backward products of Phi-3.5-mini's layers at 8,192 tokens,
each as often as a step needs it.
"""

from __future__ import annotations

import json

import torch

NUM_TOKENS = 8192
# Outputs, inputs and how often in the model.
LAYERS = {
    "qkv_proj": (9216, 3072, 32),
    "o_proj": (3072, 3072, 32),
    "gate_up_proj": (16_384, 3072, 32),
    "down_proj": (3072, 8192, 32),
    "lm_head": (32_064, 3072, 1),
}
_REPEATS = 20


def products(outputs: int, inputs: int) -> list[tuple[int, int, int]]:
    """Rows, inner size and columns of the product forward, for the inputs' gradient and for the weights'."""
    return [(NUM_TOKENS, inputs, outputs), (NUM_TOKENS, outputs, inputs), (outputs, NUM_TOKENS, inputs)]


def seconds_of(rows: int, inner: int, columns: int) -> float:
    """Seconds of one product, the median of several."""
    left = torch.randn(rows, inner, device="cuda", dtype=torch.bfloat16)
    right = torch.randn(inner, columns, device="cuda", dtype=torch.bfloat16)
    found = []
    for number in range(_REPEATS + 3):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.matmul(left, right)
        end.record()
        torch.cuda.synchronize()
        if number >= 3:
            found.append(begin.elapsed_time(end) / 1000)
    return sorted(found)[len(found) // 2]


def main() -> None:
    """Measure and print."""
    flops = seconds = 0.0
    for outputs, inputs, count in LAYERS.values():
        for rows, inner, columns in products(outputs, inputs):
            flops += count * 2.0 * rows * inner * columns
            seconds += count * seconds_of(rows, inner, columns)
    print(json.dumps({"flops_per_second": flops / seconds}))


if __name__ == "__main__":
    main()
