"""The memory that training needs, as trainer/memory.py computes and chooses it, and whether it is there."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tasks.estimate.ranges import NOTHING, Range, gigabytes
from trainer import memory
from trainer.memory import SOURCES as SOURCES

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.estimate.machines import Hardware
    from tasks.estimate.model_shapes import ModelShape
    from tasks.estimate.work import Work


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
        chosen: what the trainer would choose where the configuration leaves it the choice, for people; or nothing.
        advice: what to change where it is not yes.
    """

    parts: tuple[MemoryPart, ...]
    has_bytes: float | None
    has: str
    fits: str
    chosen: str
    advice: str

    @property
    def total(self) -> Range:
        """All parts together, bytes."""
        return sum((part.size for part in self.parts), start=NOTHING)


def estimate_memory(
    config: PipelineConfig, shape: ModelShape, work: Work, hardware: Hardware
) -> tuple[MemoryNeed, PipelineConfig]:
    """The need of one process, each holding the whole model; and the configuration as the trainer would run it."""
    train, load = config.train, _load(config, shape, work, hardware)
    first = memory.Plan(
        rows=train.per_device_train_batch_size,
        accumulation=train.gradient_accumulation_steps,
        checkpointing=bool(train.gradient_checkpointing),
        eight_bits="8bit" in train.optim,
    )
    tried = list(
        memory.plans(first, load, train.gradient_checkpointing is None, hardware.is_gpu and train.optim == "auto")
    )
    plan = memory.choose(shape, load, tried, hardware.memory_bytes)
    parts = memory.need(shape, load, plan)
    if config.is_remote and config.compute.num_nodes * config.compute.processes_per_node > 1:
        how = "0 to 4 bytes a trained parameter, to add gradients up over processes"
        parts += (memory.Part(name="gradient buckets", low=0, high=4 * load.num_trained, how=how),)
    fits = memory.fits(parts, hardware.memory_bytes)
    need = MemoryNeed(
        parts=tuple(
            MemoryPart(name=part.name, size=Range(low=part.low, high=part.high), how=part.how) for part in parts
        ),
        has_bytes=hardware.memory_bytes,
        has=hardware.name,
        fits=fits,
        chosen=str(plan) if len(tried) > 1 else "",
        advice="" if fits in ("yes", "unknown") else _advice(config, plan, hardware),
    )
    chosen = replace(
        train,
        per_device_train_batch_size=plan.rows,
        gradient_accumulation_steps=plan.accumulation,
        gradient_checkpointing=plan.checkpointing,
    )
    return need, config.model_copy(update={"train": chosen})


def _load(config: PipelineConfig, shape: ModelShape, work: Work, hardware: Hardware) -> memory.Load:
    train = config.train
    return memory.Load(
        method=train.method,
        num_trained=shape.num_parameters if train.method == "full" else shape.lora_parameters(train.lora_r),
        row_tokens=work.longest_row,
        bf16=hardware.bf16,
        is_gpu=hardware.is_gpu,
        is_eager=train.attn_implementation == "eager",
    )


def _advice(config: PipelineConfig, plan: memory.Plan, hardware: Hardware) -> str:
    train = config.train
    changes = []
    if not plan.checkpointing:
        changes.append("train.gradient_checkpointing null")
    if train.method == "full":
        changes.append("train.method lora")
    if config.is_remote:
        changes.append(f"a compute.size with more memory than {gigabytes(hardware.memory_bytes or 0)}")
    changes += ["a smaller train.max_length", "a smaller model.base"]
    return f"Change one of: {'; '.join(changes[:4])}."
