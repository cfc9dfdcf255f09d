"""The memory that training needs: weights, gradients, optimizer, activations; as trainer/ loads and trains.

Sources: model states by Rajbhandari et al., "ZeRO: Memory Optimizations Toward Training Trillion Parameter Models",
https://arxiv.org/abs/1910.02054, section 3.1 (Adam keeps 12 bytes a parameter beside weights and gradients of 16 bits;
weights and gradients are 32 bits here, which is the same 16 bytes in all). Activations by Korthikanti et al.,
"Reducing Activation Recomputation in Large Transformer Models", https://arxiv.org/abs/2205.05198, section 4: 34 s b h
bytes a layer without the attention matrix, 2 s b h with full recomputation. Its layer has dropout and a feed-forward
part of two matrices; the same count for one with a gated part and without dropout is 8 h + 4 f values a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.estimate.ranges import NOTHING, Range, count_text, exactly, gigabytes

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.estimate.machines import Hardware
    from tasks.estimate.model_shapes import ModelShape
    from tasks.estimate.work import Work

SOURCES = "model states: arXiv:1910.02054 section 3.1; activations: arXiv:2205.05198 section 4"
_COMFORT = 0.92  # of the memory; above it, an unlucky batch ends the training
# Measured beside the formula on a 119-million-parameter Phi-3 (see machines.py): autograd kept 1.28 times as much, for
# norms and rotary embeddings compute in 32 bits.
_KEPT_HIGH = 1.5
# Without a GPU, measured in the same way: 3.3 and 6.1 GB resident, with and without checkpointing.
_HEAP = 0.5
_LOGITS_TILE_BYTES = 4096 * 8192 * 4  # TRL's fused output layer computes logits tile by tile
_CUDA_BYTES = (0.6e9, 1.5e9)
_PROCESS_BYTES = (0.5e9, 1.2e9)  # Python, torch and the data


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPart:
    """One part of the need with its arithmetic."""

    name: str
    size: Range
    how: str


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryNeed:
    """What one process needs at most, and whether it is there.

    Args:
        fits: yes, tight, no, or unknown.
        advice: what to change where it is not yes.
    """

    parts: tuple[MemoryPart, ...]
    has_bytes: float | None
    has: str
    fits: str
    advice: str

    @property
    def total(self) -> Range:
        """All parts together, bytes."""
        return sum((part.size for part in self.parts), start=NOTHING)


def estimate_memory(config: PipelineConfig, shape: ModelShape, work: Work, hardware: Hardware) -> MemoryNeed:
    """The need of one process, each holding the whole model."""
    train = config.train
    trained = shape.num_parameters if train.method == "full" else shape.lora_parameters(train.lora_r)
    parts = [
        *_states(shape, trained, hardware),
        _activations(config, shape, work, hardware),
        _loss(config, shape, work),
    ]
    parts += _rest(parts, hardware)
    if config.compute.num_nodes * config.compute.processes_per_node > 1 and config.is_remote:
        parts.append(
            MemoryPart(
                name="gradient buckets",
                size=Range(low=0, high=4 * trained),
                how="0 to 4 bytes a trained parameter, to add gradients up over processes",
            )
        )
    need = MemoryNeed(parts=tuple(parts), has_bytes=hardware.memory_bytes, has=hardware.name, fits="", advice="")
    fits = _fits(need.total, hardware.memory_bytes)
    return MemoryNeed(
        parts=need.parts,
        has_bytes=hardware.memory_bytes,
        has=hardware.name,
        fits=fits,
        advice="" if fits in ("yes", "unknown") else _advice(config, hardware),
    )


def _states(shape: ModelShape, trained: int, hardware: Hardware) -> list[MemoryPart]:
    everything = shape.num_parameters
    is_full = trained == everything
    whom = "" if is_full else "trained "
    parts = [
        _per_parameter("weights", everything, "", 4, "32 bits"),
        _per_parameter("gradients", trained, whom, 4, "32 bits"),
        _per_parameter("optimizer", trained, whom, 8, "two moments of AdamW in 32 bits"),
    ]
    if not is_full:
        parts.insert(1, _per_parameter("LoRA weights", trained, whom, 4, "32 bits"))
    if hardware.bf16:
        size = Range(low=0, high=2 * everything)
        how = f"0 to 2 bytes x {count_text(everything)} parameters: the copies that autocast computes with"
        parts.append(MemoryPart(name="bf16 copies", size=size, how=how))
    return parts


def _per_parameter(name: str, number: int, whom: str, size: int, why: str) -> MemoryPart:
    how = f"{count_text(number)} {whom}parameters x {size} bytes ({why})"
    return MemoryPart(name=name, size=exactly(number * size), how=how)


def _activations(config: PipelineConfig, shape: ModelShape, work: Work, hardware: Hardware) -> MemoryPart:
    train = config.train
    tokens = train.per_device_train_batch_size * work.longest_row
    hidden, layers = shape.hidden_size, shape.num_hidden_layers
    value = 2 if hardware.bf16 else 4
    wide = 6 * hidden + 2 * shape.key_value_size + 4 * shape.intermediate_size
    layer = Range(low=wide * value, high=wide * value * _KEPT_HIGH).times(tokens)
    if train.attn_implementation == "eager":
        layer += exactly(2.5 * value * shape.num_attention_heads * work.longest_row * tokens)
    shown = f"{tokens:,} tokens ({train.per_device_train_batch_size} rows x {work.longest_row:,})"
    if not train.gradient_checkpointing:
        return MemoryPart(
            name="activations",
            size=layer.times(layers),
            how=f"{shown} x {layers} layers x {value} bytes x (6 h + 2 k + 4 f = {wide:,}), "
            f"to {_KEPT_HIGH:g} times that",
        )
    # Under autocast the sum that runs through the layers stays in 32 bits.
    kept = Range(low=value, high=4).times(tokens * hidden * layers)
    return MemoryPart(
        name="activations",
        size=kept + layer,
        how=f"{shown} x {layers} checkpoints x {value} to 4 bytes x h = {hidden:,}, and one layer of "
        f"{value} bytes x (6 h + 2 k + 4 f = {wide:,}) recomputed, to {_KEPT_HIGH:g} times that",
    )


def _loss(config: PipelineConfig, shape: ModelShape, work: Work) -> MemoryPart:
    tile = min(_LOGITS_TILE_BYTES, 4 * shape.vocab_size * 4096)
    rows = config.train.per_device_train_batch_size * work.longest_row
    hidden = 2 * rows * shape.hidden_size * 4
    return MemoryPart(
        name="loss",
        size=Range(low=tile, high=2 * tile + hidden),
        how="logits in tiles of 4,096 tokens, as TRL's fused output layer computes them, never all at once",
    )


def _rest(parts: list[MemoryPart], hardware: Hardware) -> list[MemoryPart]:
    low, high = _CUDA_BYTES if hardware.is_gpu else _PROCESS_BYTES
    what = "CUDA's context, kernels and fragments" if hardware.is_gpu else "Python, torch and the data"
    rest = [MemoryPart(name="the rest", size=Range(low=low, high=high), how=what)]
    if not hardware.is_gpu:
        coming_and_going = sum(part.size.high for part in parts if part.name in ("gradients", "activations", "loss"))
        how = f"0 to {_HEAP:g} times what comes and goes, which the heap does not give back"
        rest.append(MemoryPart(name="heap", size=Range(low=0, high=_HEAP * coming_and_going), how=how))
    return rest


def _fits(total: Range, has: float | None) -> str:
    if has is None:
        return "unknown"
    if total.low > has:
        return "no"
    return "yes" if total.high <= has * _COMFORT else "tight"


def _advice(config: PipelineConfig, hardware: Hardware) -> str:
    train = config.train
    changes = []
    if not train.gradient_checkpointing:
        changes.append("train.gradient_checkpointing true")
    if train.per_device_train_batch_size > 1:
        changes.append("a smaller train.per_device_train_batch_size, with train.gradient_accumulation_steps instead")
    if train.method == "full":
        changes.append("train.method lora")
    changes += ["a smaller train.max_length", "a smaller model.base"]
    if config.is_remote:
        changes.insert(3, f"a compute.size with more memory than {gigabytes(hardware.memory_bytes or 0)}")
    return f"Change one of: {'; '.join(changes[:4])}."
