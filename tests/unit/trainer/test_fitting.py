"""A run is made to fit its memory, and its batch stays what was configured."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

import torch
from models import phi3, row

from trainer import fitting, memory
from trainer.batches import flatten
from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.fitting import fit, fit_run, less_after_out_of_memory, planned, shape_of
from trainer.flops import flops_per_token
from trainer.hardware import Hardware
from trainer.memory import Load, Plan

GPU = Hardware("cuda", True, "varlen", True, ())
CPU = Hardware("cpu", False, "documents", True, ())
ROWS = [row(900, 300), row(40)]


def gpu_with_room_for(monkeypatch, fitting_plan):
    """A GPU on which what fitting_plan refuses runs out of memory; returns what was tried on it."""
    tried = []

    def measured(model, plan, *_):
        tried.append(plan)
        return 1.0 if fitting_plan(plan) else None

    monkeypatch.setattr(fitting, "_measured", measured)
    monkeypatch.setattr(fitting, "available_bytes", lambda device: 80e9)
    monkeypatch.setattr(fitting, "has_bitsandbytes", lambda: True)
    return tried


def test_what_does_not_fit_is_tried_with_less_in_turn(monkeypatch):
    """Fewer rows a pass, then recomputing, then an 8-bit optimizer; rows times passes stay the configured batch."""
    tried = gpu_with_room_for(monkeypatch, lambda plan: plan.eight_bits and plan.rows == 2)
    plan = fit(phi3(), TrainConfig(per_device_train_batch_size=4, gradient_accumulation_steps=3), GPU, ROWS, None)
    order = [(plan.checkpointing, plan.eight_bits) for plan in tried]
    assert order == sorted(order) and order[0] == (False, False) and order[-1] == (True, True)
    assert all(plan.rows * plan.accumulation == 12 for plan in tried)
    config = planned(TrainConfig(), plan)
    assert (config.per_device_train_batch_size, config.gradient_accumulation_steps) == (2, 6)
    assert config.gradient_checkpointing is True and config.optim == "adamw_8bit"


def test_what_is_configured_is_not_changed(monkeypatch):
    """With checkpointing and optimizer configured only the rows of a pass are fewer; an error says what was tried."""
    tried = gpu_with_room_for(monkeypatch, lambda plan: False)
    config = TrainConfig(per_device_train_batch_size=2, gradient_checkpointing=False, optim="adamw_torch")
    with pytest.raises(TrainerError, match=r"tried: 2 rows a pass x 1 passes.*1 rows a pass x 2 passes") as caught:
        fit(phi3(), config, GPU, ROWS, None)
    assert caught.value.kind == "out_of_memory"
    assert [plan.rows for plan in tried] == [2, 1]


def test_a_cpu_recomputes_only_where_memory_is_short(monkeypatch):
    """Without a GPU the arithmetic decides, by the memory that is there."""
    config = TrainConfig(per_device_train_batch_size=4)
    monkeypatch.setattr(fitting, "available_bytes", lambda device: 64e9)
    assert not fit(phi3(), config, CPU, ROWS, None).checkpointing
    load = Load(method="full", num_trained=10_000, row_tokens=4096, bf16=False, is_gpu=False)
    big = dataclasses.replace(shape_of(phi3()), num_hidden_layers=40, hidden_size=4096, intermediate_size=16384)
    tried = list(memory.plans(Plan(rows=1, accumulation=1, checkpointing=False), load, True, False))
    assert memory.choose(big, load, tried, 40e9).checkpointing


def test_running_out_later_leaves_fewer_rows_for_the_next_attempt(tmp_path, monkeypatch):
    """Out of memory in the middle, the run ends with the code for "again", and then takes half the rows a pass."""
    run = SimpleNamespace(
        config=TrainConfig(per_device_train_batch_size=4),
        hardware=CPU,
        job=SimpleNamespace(checkpoint_dir=tmp_path),
        distribution="single",
    )
    with pytest.raises(TrainerError, match="with 4 rows a pass") as caught, less_after_out_of_memory(run):
        raise torch.OutOfMemoryError("CUDA out of memory.")
    assert caught.value.retryable
    seen = []
    monkeypatch.setattr(fitting, "fit", lambda model, config, *_: seen.append(config) or stop())
    with pytest.raises(StopIteration):
        fit_run(run, None, ROWS, flatten)
    assert (seen[0].per_device_train_batch_size, seen[0].gradient_accumulation_steps) == (2, 2)


def stop():
    raise StopIteration


def test_fewer_rows_a_pass_teach_the_same():
    """Two passes of half the rows give the gradient that one pass of all rows gives."""
    rows = [row(9, 5), row(12, seed=1), row(4, seed=2), row(20, seed=3)]

    def gradient(parts):
        model = phi3()
        for part in parts:
            batch = flatten(part)
            batch.pop("lines")
            model(**batch).loss.backward()
        return torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    torch.testing.assert_close(gradient([rows]), gradient([rows[:2], rows[2:]]), rtol=1e-4, atol=1e-5)


def test_flops_are_six_a_parameter_and_its_attention():
    """6 N + 6 L q s, with N without the input embedding, and s of conversations rather than rows."""
    model = phi3()
    multiplied = model.num_parameters() - model.get_input_embeddings().weight.numel()
    assert flops_per_token(model, [row(10, 10)], True) == 6 * multiplied + 6 * 2 * 32 * 10
    assert flops_per_token(model, [row(20)], False) == 4 * multiplied + 6 * 2 * 32 * 20
    tied = phi3(tie_word_embeddings=True)
    assert flops_per_token(tied, [row(10)], True) == 6 * tied.num_parameters() + 6 * 2 * 32 * 10
