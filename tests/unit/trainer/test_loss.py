"""The loss that trains is the one that full logits in 32 bits give, for every kind of output layer."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

import torch
import torch.nn.functional as F
from models import VOCABULARY, loss_of, phi3, row
from transformers import AutoModelForCausalLM, CohereConfig, Gemma2Config

from trainer import loss as loss_module
from trainer.batches import flatten
from trainer.loss import learn_supervised_tokens, summed_loss


def full(states, head, targets):
    """Loss and gradients by full logits in 64 bits."""
    states = states.detach().double().requires_grad_()
    weight = head.weight.detach().double().requires_grad_()
    bias = None if head.bias is None else head.bias.detach().double().requires_grad_()
    loss = F.cross_entropy(F.linear(states, weight, bias), targets, reduction="sum")
    loss.backward()
    return loss.item(), states.grad, weight.grad, None if bias is None else bias.grad


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_chunks_add_up_to_the_full_loss(bias, bf16, monkeypatch):
    """Over many chunks, loss and gradients equal those of full logits; with bfloat16 matrices the sums stay 32-bit."""
    torch.set_num_threads(1)
    monkeypatch.setitem(loss_module._LOGITS_BYTES, "cpu", 4 * VOCABULARY * 64)  # 64 tokens a chunk
    torch.manual_seed(0)
    states, targets = torch.randn(1000, 24), torch.randint(VOCABULARY, (1000,))
    head = torch.nn.Linear(24, VOCABULARY, bias=bias)
    wanted = full(states, head, targets)
    states.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = summed_loss(states, head, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted[0], rel=5e-5 if bf16 else 1e-6)  # bfloat16 sums would be 1e-3 off
    for found, right in zip((states.grad, head.weight.grad, head.bias.grad if bias else None), wanted[1:], strict=True):
        if right is not None:
            assert (found - right).norm() / right.norm() < (5e-3 if bf16 else 1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_a_models_loss_is_that_of_its_own_logits(tied):
    """Loss and gradients are those of the model's full logits, with tied embeddings too."""
    packed = row(9, 21, 14)
    ours, theirs = phi3(tie_word_embeddings=tied), phi3(tie_word_embeddings=tied)
    batch = flatten([packed])
    loss_of(ours, batch).backward()
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "lines")}
    logits = theirs(**inputs, use_cache=False).logits
    F.cross_entropy(logits[0, :-1], batch["labels"][0, 1:], reduction="sum").backward()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, other.grad, rtol=1e-4, atol=1e-5)


def test_a_frozen_output_layer_gets_no_gradient(monkeypatch):
    """Where the output layer does not learn, as with LoRA, no gradient is computed for it."""
    model = phi3()
    model.lm_head.requires_grad_(False)
    sizes, zeros_like = [], torch.zeros_like
    monkeypatch.setattr(torch, "zeros_like", lambda one, **named: sizes.append(one.shape) or zeros_like(one, **named))
    loss_of(model, flatten([row(9, 21)])).backward()
    assert model.lm_head.weight.grad is None and model.lm_head.weight.shape not in sizes
    assert model.model.layers[0].self_attn.qkv_proj.weight.grad is not None


@pytest.mark.parametrize(
    "config",
    [Gemma2Config(final_logit_softcapping=2.0, head_dim=8, query_pre_attn_scalar=8), CohereConfig(logit_scale=0.3)],
)
def test_logits_that_are_scaled_or_capped_are_the_models_own(config, caplog):
    """For a model that does more than multiply by its output layer, the loss is of the logits that it says."""
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    for name, value in (shape | {"num_key_value_heads": 2, "vocab_size": VOCABULARY, "layer_types": None}).items():
        setattr(config, name, value)
    config.layer_types = ["full_attention"] * 2
    config.pad_token_id = config.bos_token_id = config.eos_token_id = 0
    config.initializer_range = 0.5
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()
    batch = flatten([row(9, 21)])
    inputs = {name: value for name, value in batch.items() if name not in ("labels", "lines")}
    logits = model(**inputs, use_cache=False).logits
    wanted = F.cross_entropy(logits[0, :-1], batch["labels"][0, 1:], reduction="sum").item()
    with caplog.at_level("INFO"):
        learn_supervised_tokens(model)
    assert "the model's own logits" in caplog.text
    assert loss_of(model, batch).item() == pytest.approx(wanted, rel=1e-5)
