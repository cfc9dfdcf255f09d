from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

import torch
from transformers import AutoModelForCausalLM

from trainer.adapters import chosen_targets, linear_layers, with_adapters
from trainer.config import ALL_LINEAR, TrainConfig
from trainer.errors import TrainerError
from trainer.hardware import Hardware
from trainer.merging import _relative, forget, logits_of, merge_in_place, probe_rows
from trainer.model import load_model
from trainer.precision import held_as_stored, held_to_train

FUSED = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
ROWS = [[5, 6, 7, 8, 9, 10, 11], [1, 2, 3]]


@pytest.fixture
def model(tiny_model):
    """The small base model in 32 bits."""
    return AutoModelForCausalLM.from_pretrained(tiny_model)


def adapted(model, scale: float = 0.05):
    """The model with adapters that have learned something."""
    found = with_adapters(model, TrainConfig(method="lora"))
    torch.manual_seed(0)
    for name, parameter in found.named_parameters():
        if "lora_B" in name:
            parameter.data = torch.randn_like(parameter) * scale
    return found


def on(device: str, *, bf16: bool) -> Hardware:
    return Hardware(device=device, bf16=bf16, attention="sdpa", packing=True, reasons=())


def test_adapters_learn_beside_the_fused_layers_of_phi_3(model):
    """LoRA lies beside Phi-3's own linear layers, fused names included, in 32 bits; head and embedding are frozen."""
    found = with_adapters(model, TrainConfig(method="lora"))
    learning = {name: parameter for name, parameter in found.named_parameters() if parameter.requires_grad}
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in learning} == set(FUSED)
    assert {parameter.dtype for parameter in learning.values()} == {torch.float32}


def test_routers_get_no_adapters(model):
    """A mixture's router is no target, a gated MLP's projection is."""
    model.model.layers[0].mlp.gate = torch.nn.Linear(8, 4)
    model.model.layers[0].mlp.shared_expert_gate = torch.nn.Linear(8, 1)
    model.model.layers[0].mlp.gate_proj = torch.nn.Linear(8, 8)
    assert linear_layers(model) == sorted([*FUSED, "gate_proj"])


def test_named_targets_are_taken_and_unknown_ones_refused_with_the_nearest(model):
    """lora_target_modules picks some layers; a name that is none, or the head, ends in one line."""
    assert chosen_targets(model, "o_proj, qkv_proj") == ["o_proj", "qkv_proj"]
    assert chosen_targets(model, ALL_LINEAR) == FUSED
    with pytest.raises(TrainerError, match=r"names 'q_proj', .* Did you mean (qkv_proj|o_proj)\? The ones there are"):
        chosen_targets(model, "o_proj,q_proj")
    with pytest.raises(TrainerError, match="names 'lm_head'"):
        chosen_targets(model, "lm_head")


@pytest.mark.parametrize(
    ("method", "device", "bf16", "dtype", "four_bits"),
    [
        ("full", "cuda", True, torch.float32, False),
        ("lora", "cuda", True, torch.bfloat16, False),
        ("lora", "cuda", False, torch.float32, False),
        ("lora", "cpu", True, torch.float32, False),
        ("qlora", "cuda", True, torch.bfloat16, True),
    ],
)
def test_frozen_weights_are_held_in_half_the_memory_on_a_gpu(method, device, bf16, dtype, four_bits):
    """Weights that learn are in 32 bits; frozen ones in bf16 on a GPU that has it, or in 4 bits."""
    held = held_to_train(method, on(device, bf16=bf16))
    assert held["dtype"] == dtype
    assert ("quantization_config" in held) == four_bits
    if four_bits:
        config = held["quantization_config"]
        assert config.bnb_4bit_quant_type == "nf4" and config.bnb_4bit_use_double_quant
        assert config.bnb_4bit_compute_dtype == torch.bfloat16


def test_a_model_is_scored_as_its_files_have_it():
    """On a GPU weights are read in their own precision; a CPU computes in 32 bits."""
    assert held_as_stored(on("cuda", bf16=True)) == {"dtype": "auto"}
    assert held_as_stored(on("cpu", bf16=True)) == {"dtype": torch.float32}


def test_four_bit_layers_are_linear_layers(tiny_model):
    """A model in 4 bits has the same targets, learns through them, and its head is not quantised."""
    hardware = on("cpu", bf16=False)
    quantised = load_model(str(tiny_model), None, hardware, held_to_train("qlora", hardware))
    assert linear_layers(quantised) == FUSED
    found = with_adapters(quantised, TrainConfig(method="qlora"))
    ids = torch.tensor([ROWS[0]])
    found(input_ids=ids, labels=ids).loss.backward()
    learned = [name for name, parameter in found.named_parameters() if parameter.grad is not None]
    assert learned and all("lora_" in name for name in learned)
    assert type(quantised.get_output_embeddings()) is torch.nn.Linear


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_model_says_what_its_adapter_says(model, dtype):
    """Merged logits equal the adapter's to within the rounding of the precision they are stored in."""
    found = adapted(model)
    expected = logits_of(found, ROWS)
    merged, report = merge_in_place(found, ROWS, dtype)
    assert report.learned > 0.1 and report.num_rows == len(ROWS)
    assert report.difference < (1e-5 if dtype == torch.float32 else 0.05)
    assert _relative(logits_of(merged, ROWS), expected, expected) == pytest.approx(report.difference)
    assert all(torch.equal(p, p.to(dtype).float()) for p in merged.parameters())
    inverse = merged.model.rotary_emb.inv_freq
    assert not torch.equal(inverse, inverse.bfloat16().float()), "positions are rounded"


@pytest.mark.parametrize("fault", ["forgotten", "half"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_broken_merge_is_refused(model, monkeypatch, fault, dtype):
    """A merge that drops the adapter, or scales it wrongly, ends in an error that says by how much."""
    from peft.tuners.lora import Linear

    right = Linear.get_delta_weight
    factor = {"forgotten": 0.0, "half": 0.5}[fault]
    monkeypatch.setattr(Linear, "get_delta_weight", lambda self, adapter: right(self, adapter) * factor)
    with pytest.raises(TrainerError, match=r"Merging LoRA into .* weights changed the model: its logits differ by"):
        merge_in_place(adapted(model), ROWS, dtype)


def test_probes_hold_the_longest_conversation(model):
    """Merging is checked on the longest conversation of those looked at, alone, and on others."""
    from trainer.batches import Row

    def row(ids: list[int], lengths: list[int]) -> Row:
        return Row(input_ids=ids, labels=ids, lengths=lengths, lines=[1] * len(lengths))

    rows = [row([1] * n + [9] * 3, [n, 3]) for n in (4, 5, 30, 6, 7, 8, 9)]
    probes = probe_rows(rows, num_rows=3)
    assert max(map(len, probes)) == 30 and 3 <= len(probes) <= 4
    assert all(set(probe) == {1} for probe in probes)


def test_what_a_trainer_held_is_gone():
    """After forgetting, nothing of the loop holds the model, so that another fits into its memory."""
    import weakref
    from types import SimpleNamespace

    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True)
    module = torch.nn.Linear(4, 4)
    optimizer = torch.optim.AdamW(module.parameters())
    prepared, wrapped = accelerator.prepare(module, optimizer)
    handler = SimpleNamespace(model=prepared, optimizer=wrapped, lr_scheduler=None)
    loop = SimpleNamespace(
        model=prepared,
        model_wrapped=prepared,
        optimizer=wrapped,
        lr_scheduler=None,
        accelerator=accelerator,
        callback_handler=handler,
    )
    gone = weakref.ref(module)
    del module, optimizer, prepared, wrapped
    forget(loop)
    assert gone() is None
