"""The memory that a training needs, by arithmetic: weights, gradients, optimizer, activations, loss. No torch.

Sources: model states by Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
https://arxiv.org/abs/1910.02054, section 3.1 (Adam keeps 12 bytes a parameter beside weights and gradients of 16 bits;
weights and gradients are 32 bits here, which is the same 16 bytes in all). Activations by Korthikanti et al.,
"Reducing Activation Recomputation in Large Transformer Models", https://arxiv.org/abs/2205.05198, section 4: 34 s b h
bytes a layer without the attention matrix, 2 s b h with full recomputation. Its layer has dropout and a feed-forward
part of two matrices; the same count for one with a gated part and without dropout is 8 h + 4 f values a token.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

SOURCES = "model states: arXiv:1910.02054 section 3.1; activations: arXiv:2205.05198 section 4"
COMFORT = 0.92  # of the memory; above it, an unlucky batch ends the training
# Measured beside the formula on a 119-million-parameter Phi-3: autograd kept 1.28 times as much, for norms and rotary
# embeddings compute in 32 bits.
_KEPT_HIGH = 1.5
# Without a GPU, measured in the same way: 3.3 and 6.1 GB resident, with and without checkpointing.
_HEAP = 0.5
_LOGITS_BYTES = {True: 256 * 2**20, False: 16 * 2**20}  # of one chunk in loss.py, on a GPU and on a CPU
_CUDA_BYTES = (0.6e9, 1.5e9)
_PROCESS_BYTES = (0.5e9, 1.2e9)  # Python, torch and the data
_FOUR_BITS = 0.52  # bytes of a 4-bit weight with its quantised scales
_FEW_TOKENS = 1024  # in a pass; recomputing costs less than passes as small as these


class Shape(Protocol):
    """What is known of a decoder with gated feed-forward layers, named as in config.json."""

    @property
    def hidden_size(self) -> int: ...
    @property
    def intermediate_size(self) -> int: ...
    @property
    def num_hidden_layers(self) -> int: ...
    @property
    def num_attention_heads(self) -> int: ...
    @property
    def key_value_size(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def num_parameters(self) -> int: ...
    @property
    def num_embedding_parameters(self) -> int: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What of a run decides its memory, whatever the plan.

    Args:
        num_trained: parameters that learn.
        row_tokens: of the longest row.
        bf16: arithmetic; weights that learn stay in 32 bits.
    """

    method: str
    num_trained: int
    row_tokens: int
    bf16: bool
    is_gpu: bool
    is_eager: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What can be changed to make a run fit; rows times accumulation stays what is configured."""

    rows: int
    accumulation: int
    checkpointing: bool
    eight_bits: bool = False

    def __str__(self) -> str:
        bits = ", 8-bit optimizer" if self.eight_bits else ""
        recomputing = "gradient checkpointing" if self.checkpointing else "no gradient checkpointing"
        return f"{self.rows} rows a pass x {self.accumulation} passes, {recomputing}{bits}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One part of the need in bytes, with its arithmetic."""

    name: str
    low: float
    high: float
    how: str


def plans(first: Plan, load: Load, may_checkpoint: bool, may_use_eight_bits: bool) -> Iterator[Plan]:
    """What to try, in this order: as configured, fewer rows a pass, recomputing, the optimizer in 8 bits."""
    stages = [(first.checkpointing, first.eight_bits)]
    if may_checkpoint and not first.checkpointing:
        stages.append((True, first.eight_bits))
    if may_use_eight_bits and not first.eight_bits:
        stages.append((stages[-1][0], True))
    for stage in stages:
        for rows in (rows for rows in range(first.rows, 0, -1) if first.rows % rows == 0):
            # Few tokens a pass are the last resort.
            if stage == stages[-1] or rows == first.rows or rows * load.row_tokens >= _FEW_TOKENS:
                accumulation = first.accumulation * first.rows // rows
                yield Plan(rows=rows, accumulation=accumulation, checkpointing=stage[0], eight_bits=stage[1])


def need(shape: Shape, load: Load, plan: Plan) -> tuple[Part, ...]:
    """What one process needs that holds the whole model."""
    parts = [*_states(shape, load, plan), _activations(shape, load, plan), _loss(shape, load, plan)]
    low, high = _CUDA_BYTES if load.is_gpu else _PROCESS_BYTES
    what = "CUDA's context, kernels and fragments" if load.is_gpu else "Python, torch and the data"
    parts.append(Part(name="the rest", low=low, high=high, how=what))
    if not load.is_gpu:
        coming_and_going = sum(part.high for part in parts if part.name in ("gradients", "activations", "loss"))
        how = f"0 to {_HEAP:g} times what comes and goes, which the heap does not give back"
        parts.append(Part(name="heap", low=0, high=_HEAP * coming_and_going, how=how))
    return tuple(parts)


def fits(parts: tuple[Part, ...], has_bytes: float | None) -> str:
    """yes, tight, no, or unknown."""
    if has_bytes is None:
        return "unknown"
    if sum(part.low for part in parts) > has_bytes:
        return "no"
    return "yes" if sum(part.high for part in parts) <= has_bytes * COMFORT else "tight"


def choose(shape: Shape, load: Load, tried: list[Plan], has_bytes: float | None) -> Plan:
    """The first plan that fits; where none does, the first that is tight, or else the one that needs least."""
    known = [(plan, fits(need(shape, load, plan), has_bytes)) for plan in tried]
    for wanted in ("yes", "unknown", "tight"):
        for plan, found in known:
            if found == wanted:
                return plan
    return tried[-1]


def _states(shape: Shape, load: Load, plan: Plan) -> Iterator[Part]:
    everything, trained = shape.num_parameters, load.num_trained
    is_full = load.method == "full"
    if load.method == "qlora":
        blocks = everything - shape.num_embedding_parameters
        size = blocks * _FOUR_BITS + shape.num_embedding_parameters * 2
        how = f"{_count(blocks)} parameters x {_FOUR_BITS} bytes (4 bits), {_count(everything - blocks)} x 2 bytes"
        yield Part(name="weights", low=size, high=size, how=how)
    else:
        yield _each("weights", everything, "", 2 if not is_full and load.bf16 and load.is_gpu else 4)
    whom = "" if is_full else "trained "
    if not is_full:
        yield _each("LoRA weights", trained, whom, 4)
    yield _each("gradients", trained, whom, 4)
    moments = "two moments of AdamW in "
    yield _each("optimizer", trained, whom, 2 if plan.eight_bits else 8, moments)
    if load.bf16 and (is_full or not load.is_gpu):
        how = f"0 to 2 bytes x {_count(everything)} parameters: the copies that autocast computes with"
        yield Part(name="bf16 copies", low=0, high=2 * everything, how=how)


def _each(name: str, number: int, whom: str, size: int, what: str = "") -> Part:
    bits = {2: "16 bits", 4: "32 bits", 8: "32 bits"}[size] if not what else {2: "8 bits", 8: "32 bits"}[size]
    how = f"{_count(number)} {whom}parameters x {size} bytes ({what}{bits})"
    return Part(name=name, low=number * size, high=number * size, how=how)


def _activations(shape: Shape, load: Load, plan: Plan) -> Part:
    tokens, hidden, layers = plan.rows * load.row_tokens, shape.hidden_size, shape.num_hidden_layers
    value = 2 if load.bf16 else 4
    wide = 6 * hidden + 2 * shape.key_value_size + 4 * shape.intermediate_size
    low, high = (wide * value * tokens * times for times in (1, _KEPT_HIGH))
    if load.is_eager:
        scores = 2.5 * value * shape.num_attention_heads * load.row_tokens * tokens
        low, high = low + scores, high + scores
    shown = f"{tokens:,} tokens ({plan.rows} rows x {load.row_tokens:,})"
    layer = f"{value} bytes x (6 h + 2 k + 4 f = {wide:,})"
    if not plan.checkpointing:
        how = f"{shown} x {layers} layers x {layer}, to {_KEPT_HIGH:g} times that"
        return Part(name="activations", low=low * layers, high=high * layers, how=how)
    kept = tokens * hidden * layers  # under autocast the sum that runs through the layers stays in 32 bits
    how = (
        f"{shown} x {layers} checkpoints x {value} to 4 bytes x h = {hidden:,}, and one layer of {layer} "
        f"recomputed, to {_KEPT_HIGH:g} times that"
    )
    return Part(name="activations", low=kept * value + low, high=kept * 4 + high, how=how)


def _loss(shape: Shape, load: Load, plan: Plan) -> Part:
    chunk = _LOGITS_BYTES[load.is_gpu]
    states = 2 * 4 * plan.rows * load.row_tokens * shape.hidden_size
    head = 2 * shape.vocab_size * shape.hidden_size if load.bf16 else 0
    how = f"logits of the learned tokens, {chunk / 2**20:.0f} MiB at a time, and the states they are made of"
    return Part(name="loss", low=chunk, high=3 * chunk + states + head, how=how)


def _count(number: float) -> str:
    for size, name in ((1e9, " billion"), (1e6, " million")):
        if number >= size:
            return f"{number / size:.3g}{name}"
    return f"{number:,.0f}"
