"""Makes a run fit its memory: chosen by arithmetic, measured by the worst batch before the first step."""

from __future__ import annotations

import gc
import importlib.util
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer import memory
from trainer.errors import TrainerError
from trainer.files import write_in_place
from trainer.memory import Load, Plan
from trainer.ranks import summed

if TYPE_CHECKING:
    from trainer.batches import Row
    from trainer.config import TrainConfig
    from trainer.hardware import Hardware
    from trainer.job import Run

log = logging.getLogger(__name__)

_LIMIT = "fewer_rows.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A loaded model's shape, as trainer.memory reads it."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    key_value_size: int
    vocab_size: int
    num_parameters: int
    num_embedding_parameters: int


def shape_of(model: Any) -> ModelShape:
    """Read from a transformers model's configuration and weights."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // heads
    embeddings = {layer.weight for layer in (model.get_input_embeddings(), model.get_output_embeddings())}
    return ModelShape(
        hidden_size=config.hidden_size,
        intermediate_size=getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
        num_hidden_layers=config.num_hidden_layers,
        num_attention_heads=heads,
        key_value_size=(getattr(config, "num_key_value_heads", None) or heads) * head_size,
        vocab_size=config.vocab_size,
        num_parameters=model.num_parameters(),
        num_embedding_parameters=sum(weight.numel() for weight in embeddings),
    )


def fit(
    model: Any,
    config: TrainConfig,
    hardware: Hardware,
    rows: Sequence[Row],
    passes: Callable[[Sequence[Row]], None],
) -> Plan:
    """Choose rows a pass, checkpointing and optimizer: the first that fits, measured on a GPU.

    Args:
        model: as it trains, adapters included.
        passes: computes the gradients of one batch of these rows.
    Raises:
        TrainerError: nothing fits; says what was tried.
    """
    from trainer.batches import row_lengths

    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    load = Load(
        method=config.method,
        num_trained=trained,
        row_tokens=int(row_lengths(rows).max()),
        bf16=hardware.bf16,
        is_gpu=hardware.device != "cpu",
        is_eager=hardware.attention == "eager",
    )
    tried = list(plans_of(config, load))
    has_bytes = available_bytes(hardware.device)
    shape = shape_of(model.get_base_model() if hasattr(model, "get_base_model") else model)
    if hardware.device == "cpu":
        # A CPU's memory is not counted as it is used, and swapping is slower than anything: the arithmetic decides.
        plan = memory.choose(shape, load, tried, has_bytes)
        log.info("Chose memory=%s (%s)", plan, _told(memory.need(shape, load, plan), has_bytes))
        return plan
    for plan in tried:
        if memory.fits(memory.need(shape, load, plan), has_bytes) == "no" and plan != tried[-1]:
            continue  # not even by the least that it could need
        peak = _measured(model, plan, load, rows, passes)
        if peak is not None and peak <= (has_bytes or peak):
            log.info("Chose memory=%s (measured %.1f GB of %.1f GB)", plan, peak / 1e9, (has_bytes or 0) / 1e9)
            return plan
    raise out_of_memory_error(tried, has_bytes)


def fit_run(run: Run, model: Any, rows: Sequence[Row], collate: Callable[[Sequence[Row]], dict[str, Any]]) -> None:
    """Set in run.job what makes it fit, and say so in its choices."""
    import torch

    def passes(longest: Sequence[Row]) -> None:
        batch = collate(longest)
        batch.pop("lines")
        device = next(model.parameters()).device
        inputs = {name: value.to(device) if hasattr(value, "to") else value for name, value in batch.items()}
        model.train()
        with torch.autocast(device.type, torch.bfloat16, enabled=run.hardware.bf16):
            loss = model(**inputs).loss
        loss.backward()

    config = run.config
    limit = _read_limit(run.job.checkpoint_dir)
    while limit and config.per_device_train_batch_size > limit:
        config = _halved(config)
    if run.distribution == "fsdp":  # what its parts take is not known before they are parted
        recomputes = config.gradient_checkpointing is not False
        run.job = replace(run.job, config=replace(config, gradient_checkpointing=recomputes, optim=_optimizer(config)))
        return
    plan = fit(model, config, run.hardware, rows, passes)
    run.job = replace(run.job, config=planned(config, plan))
    run.hardware = replace(run.hardware, reasons=(*run.hardware.reasons, f"memory={plan}"))


@contextmanager
def less_after_out_of_memory(run: Run) -> Iterator[None]:
    """Within, running out of GPU memory ends the attempt; the next one takes up the last checkpoint with half the rows.

    Raises:
        TrainerError: to be run again; or out of memory, where a pass is one row already.
    """
    import torch

    try:
        yield
    except torch.OutOfMemoryError as error:
        rows = run.config.per_device_train_batch_size
        if rows == 1:
            tried = [Plan(rows=1, accumulation=1, checkpointing=bool(run.config.gradient_checkpointing))]
            raise out_of_memory_error(tried, available_bytes(run.hardware.device)) from error
        fewer = _halved(run.config).per_device_train_batch_size
        write_in_place(run.job.checkpoint_dir / _LIMIT, json.dumps({"rows": fewer}) + "\n")
        raise TrainerError(
            f"The training ran out of GPU memory with {rows} rows a pass.",
            f"Run the same command again; it goes on from the last checkpoint with {fewer} rows a pass, and as many "
            "passes a step as keep the batch.",
            "preempted",
        ) from error


def _halved(config: TrainConfig) -> TrainConfig:
    """Half the rows a pass, or the next fewer that divide them, in as many more passes."""
    rows = config.per_device_train_batch_size
    fewer = next(number for number in range(max(1, rows // 2), 0, -1) if rows % number == 0)
    return replace(
        config,
        per_device_train_batch_size=fewer,
        gradient_accumulation_steps=config.gradient_accumulation_steps * rows // fewer,
    )


def _read_limit(folder: Path) -> int | None:
    """Rows a pass that an earlier attempt left over, after one more was too many."""
    try:
        return int(json.loads((folder / _LIMIT).read_text(encoding="utf-8"))["rows"])
    except (OSError, ValueError, KeyError):
        return None


def plans_of(config: TrainConfig, load: Load) -> Iterator[Plan]:
    """What a configuration leaves to choose, in the order in which it is tried."""
    first = Plan(
        rows=config.per_device_train_batch_size,
        accumulation=config.gradient_accumulation_steps,
        checkpointing=bool(config.gradient_checkpointing),
        eight_bits="8bit" in config.optim,
    )
    eight_bits = config.optim == "auto" and load.is_gpu and has_bitsandbytes()
    return memory.plans(first, load, config.gradient_checkpointing is None, eight_bits)


def has_bitsandbytes() -> bool:
    """Whether the library of 8-bit optimizers is there."""
    return importlib.util.find_spec("bitsandbytes") is not None


def planned(config: TrainConfig, plan: Plan) -> TrainConfig:
    """The configuration with what was chosen in it."""
    return replace(
        config,
        per_device_train_batch_size=plan.rows,
        gradient_accumulation_steps=plan.accumulation,
        gradient_checkpointing=plan.checkpointing,
        optim=_optimizer(config, plan.eight_bits),
    )


def _optimizer(config: TrainConfig, eight_bits: bool = False) -> str:
    if config.optim != "auto":
        return config.optim
    return "adamw_8bit" if eight_bits else "adamw_torch_fused"


def available_bytes(device: str) -> float | None:
    """Memory that this process may have, what it has already included; None where nothing says."""
    import torch

    if device != "cpu":
        total = torch.cuda.mem_get_info(device)[1]
        return total * torch.cuda.get_per_process_memory_fraction(device)
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
        own = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4096
    except (OSError, KeyError, ValueError):
        return None
    return float(free + own)


def out_of_memory_error(tried: Sequence[Plan], has_bytes: float | None) -> TrainerError:
    """What a run ends with for which no plan is left."""
    has = f" of {has_bytes / 1e9:.1f} GB" if has_bytes else ""
    return TrainerError(
        f"The training does not fit the memory{has}; tried: {'; '.join(map(str, tried))}.",
        "Set train.method to lora, lower train.max_length, or take a machine with more memory.",
        "out_of_memory",
    )


def _measured(
    model: Any, plan: Plan, load: Load, rows: Sequence[Row], passes: Callable[[Sequence[Row]], None]
) -> float | None:
    """Peak bytes of a pass over the longest rows with the optimizer's state; None where they did not fit."""
    import torch

    from trainer.batches import row_lengths

    longest = [rows[int(index)] for index in row_lengths(rows).argsort(kind="stable")[-plan.rows :]]
    if plan.checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    failed = 0.0
    device = next(model.parameters()).device
    with torch.random.fork_rng(devices=[device]):
        torch.cuda.reset_peak_memory_stats(device)
        try:
            passes(longest)
        except torch.OutOfMemoryError:
            failed = 1.0
    peak = torch.cuda.max_memory_reserved(device)
    model.zero_grad(set_to_none=True)
    if plan.checkpointing:
        model.gradient_checkpointing_disable()
    gc.collect()
    torch.cuda.empty_cache()
    if summed([failed], str(device))[0]:  # where one process does not fit, none goes on
        return None
    return peak + load.num_trained * (2 if plan.eight_bits else 8)


def _told(parts: tuple[memory.Part, ...], has_bytes: float | None) -> str:
    low, high = (sum(getattr(part, end) for part in parts) / 1e9 for end in ("low", "high"))
    has = f"{has_bytes / 1e9:.1f} GB" if has_bytes else "an unknown number"
    return f"estimated {low:.1f} to {high:.1f} GB of {has}"
