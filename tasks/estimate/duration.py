"""How long a training job takes, part by part: FLOPs over what the hardware reaches, and bytes over bandwidth.

FLOPs of a token: 6 N + 6 L h s, with N the parameters that are multiplied, L layers, h hidden size and s the row's
width (Kaplan et al., "Scaling Laws for Neural Language Models", arXiv:2001.08361, section 2.1, with causal attention);
a third more with full gradient checkpointing, which computes the forward pass again (arXiv:2205.05198, section 5).
LoRA computes no gradients of the frozen weights: 4 N instead of 6 N.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from tasks.estimate.ranges import Range, count_text, exactly, gigabytes
from tasks.estimate.stages import Stage
from tasks.estimate.work import num_processes

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.estimate.machines import Hardware
    from tasks.estimate.model_shapes import ModelShape
    from tasks.estimate.work import Work

SOURCES = "FLOPs: arXiv:2001.08361 section 2.1; recomputation: arXiv:2205.05198 section 5"
# Of Python and launches, for one forward and backward pass; measured with the built-in model on a busy machine.
_PASS_SECONDS = (0.005, 0.08)
_CACHED_TOKENS = 8192  # of one generation batch, as trainer/evaluate.py
_STORED_BYTES = 2  # a parameter of the model that is packaged, at the base model's precision
# Of a mounted blob container, and of a disk here.
_BLOB_BYTES = (80e6, 400e6)
_DISK_BYTES = (150e6, 1500e6)


def training_seconds(config: PipelineConfig, shape: ModelShape, work: Work, hardware: Hardware) -> Stage:
    """The optimizer steps alone."""
    processes = num_processes(config)
    each = Range(
        low=flops_per_token(config, shape, work.row_tokens.low),
        high=flops_per_token(config, shape, work.row_tokens.high),
    )
    positions = Range(low=work.positions.low * work.num_epochs.low, high=work.positions.high * work.num_epochs.high)
    total = Range(low=positions.low * each.low, high=positions.high * each.high)
    computing = Range(low=total.low / hardware.flops[1] / processes, high=total.high / hardware.flops[0] / processes)
    passes = work.num_steps.times(config.train.gradient_accumulation_steps)
    how = (
        f"{count_text(positions)} token positions x {count_text(each)} FLOPs ({_formula(config, shape, work)}) / "
        f"{hardware.why}{f', {processes} at once' if processes > 1 else ''}, "
        f"and {_PASS_SECONDS[0]:g} to {_PASS_SECONDS[1]:g} s for each of {count_text(passes)} passes"
    )
    return Stage(name="train", seconds=computing + passes.times(*_PASS_SECONDS), how=how, bills="training", on_job=True)


def flops_per_token(config: PipelineConfig, shape: ModelShape, row_tokens: float) -> float:
    """Floating-point operations of training on one token of a row of that width."""
    parameters = shape.num_multiplied_parameters
    attention = shape.num_hidden_layers * shape.query_size * row_tokens
    forward = 2 * parameters + 2 * attention
    backward = (4 if config.train.method == "full" else 2) * parameters + 4 * attention
    return forward * (2 if config.train.gradient_checkpointing else 1) + backward


def _formula(config: PipelineConfig, shape: ModelShape, work: Work) -> str:
    """How the FLOPs of a token come about, as `flops_per_token` computes them."""
    train = config.train
    weights, attention, again = (6, 6, " x 4/3 for recomputing") if train.method == "full" else (4, 6, "")
    if train.method != "full" and train.gradient_checkpointing:
        weights, attention, again = 6, 8, ", recomputing included"
    return (
        f"{weights} x {count_text(shape.num_multiplied_parameters)} + {attention} x {shape.num_hidden_layers} layers x "
        f"{shape.query_size:,} x {count_text(work.row_tokens)}{again if train.gradient_checkpointing else ''}"
    )


def job_stages(
    config: PipelineConfig, shape: ModelShape | None, work: Work | None, hardware: Hardware | None
) -> list[Stage]:
    """What the training job does; where nothing can be computed, at most its time limit."""
    if not (shape and work and hardware):
        limit = Range(low=0, high=config.compute.timeout_seconds)
        how = "not estimated; compute.timeout_seconds ends it"
        return [Stage(name="train", seconds=limit, how=how, bills="training", on_job=True)]
    stages = [_loading(config, shape, hardware)]
    stages.append(_scoring("score the base model", config, shape, work, (hardware, hardware.fp32_flops)))
    stages.append(training_seconds(config, shape, work, hardware))
    if (during := _evaluating_meanwhile(config, shape, work, hardware)) is not None:
        stages.append(during)
    stages.append(_checkpoints(config, shape, work))
    stages.append(_scoring("score the result", config, shape, work, (hardware, hardware.flops)))
    size = shape.num_parameters * _STORED_BYTES
    written = _transfer(size, config.is_remote)
    usual = Range(low=30, high=120) if config.is_remote else Range(low=2, high=12)
    how = f"{gigabytes(size)} written and checked"
    stages.append(Stage(name="package", seconds=written + usual, how=how, bills="training", on_job=True))
    return stages


def checkpoint_bytes(config: PipelineConfig, shape: ModelShape) -> float:
    """One checkpoint: the trained weights and AdamW's two moments, in 32 bits."""
    train = config.train
    trained = shape.num_parameters if train.method == "full" else shape.lora_parameters(train.lora_r)
    return 12.0 * trained


def _loading(config: PipelineConfig, shape: ModelShape, hardware: Hardware) -> Stage:
    usual = Range(low=60, high=240) if config.is_remote else Range(low=5, high=30)
    size = shape.num_parameters * _STORED_BYTES
    how = f"libraries, and {gigabytes(size)} of weights from where they are"
    return Stage(name="load", seconds=usual + _transfer(size, config.is_remote), how=how, bills="training", on_job=True)


def _scoring(
    name: str, config: PipelineConfig, shape: ModelShape, work: Work, on: tuple[Hardware, tuple[float, float]]
) -> Stage:
    """Losses on the test side and some answers; one process does it, whatever trains."""
    hardware, rate = on
    each = 2 * shape.num_multiplied_parameters + 2 * shape.num_hidden_layers * shape.query_size * work.row_tokens.high
    passes = math.ceil(work.num_test / config.train.per_device_eval_batch_size)
    losses = Range(low=work.test_tokens.low * each / rate[1], high=1.3 * work.test_tokens.high * each / rate[0])
    answers = min(config.train.num_eval_generations, work.num_test)
    width = work.row_tokens.high + config.train.max_new_tokens_eval
    batches = math.ceil(answers * width / _CACHED_TOKENS)
    reading = shape.num_parameters * 4 / hardware.bytes_per_second
    word = Range(low=max(0.002, reading / 2), high=0.02 + 4 * reading)
    words = word.times(batches * config.train.max_new_tokens_eval)
    how = (
        f"{count_text(work.test_tokens)} tokens x {count_text(each)} FLOPs at {count_text(rate[0])} to "
        f"{count_text(rate[1])} a second, and {answers} answers of at most {config.train.max_new_tokens_eval} tokens"
    )
    seconds = losses + Range(low=words.low / 4, high=words.high) + exactly(passes).times(*_PASS_SECONDS)
    return Stage(name=name, seconds=seconds, how=how, bills="training", on_job=True)


def _evaluating_meanwhile(config: PipelineConfig, shape: ModelShape, work: Work, hardware: Hardware) -> Stage | None:
    train = config.train
    if train.eval_strategy == "no":
        return None
    times = work.num_epochs if train.eval_strategy == "epoch" else work.num_steps.times(1 / train.eval_steps)
    each = 2 * shape.num_multiplied_parameters
    rate = [flops * num_processes(config) for flops in hardware.flops]
    seconds = Range(
        low=math.floor(times.low) * work.test_tokens.low * each / rate[1],
        high=math.ceil(times.high) * (1.3 * work.test_tokens.high * each / rate[0] + 2),
    )
    how = f"train.eval_strategy {train.eval_strategy}: the test side's loss {count_text(times)} times"
    return Stage(name="evaluate meanwhile", seconds=seconds, how=how, bills="training", on_job=True)


def _checkpoints(config: PipelineConfig, shape: ModelShape, work: Work) -> Stage:
    size = checkpoint_bytes(config, shape)
    times = Range(
        low=math.ceil(work.num_steps.low / config.train.save_steps),
        high=math.ceil(work.num_steps.high / config.train.save_steps),
    )
    each = _transfer(size, config.is_remote)
    seconds = Range(low=each.low * times.low, high=each.high * times.high)
    how = f"{count_text(times)} of {gigabytes(size)}, every {config.train.save_steps} steps and at the end"
    return Stage(name="write checkpoints", seconds=seconds, how=how, bills="training", on_job=True)


def _transfer(size: float, is_remote: bool) -> Range:
    slow, fast = _BLOB_BYTES if is_remote else _DISK_BYTES
    return Range(low=size / fast, high=size / slow)
