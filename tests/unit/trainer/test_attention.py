"""What a conversation teaches does not depend on what else is in its row or batch."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest

pytest.importorskip("torch", reason="runs in the training environment")

import torch
from models import alone, loss_of, phi3, row

from trainer.batches import collator, flatten
from trainer.errors import TrainerError

LENGTHS = (9, 21, 1, 14)
WINDOW = {"sliding_window": 6}
LONGROPE = {
    "max_position_embeddings": 64,
    "original_max_position_embeddings": 16,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.5, 2.0, 4.0, 8.0],
        "original_max_position_embeddings": 16,
    },
}


def batch_of(attention, rows, short_context=None):
    return collator(attention, 0, short_context)(rows)


def gradients(model, batch):
    model.zero_grad()
    loss = loss_of(model, batch)
    loss.backward()
    return loss.item(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("changes", [{}, WINDOW, LONGROPE], ids=["plain", "window", "longrope"])
@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
def test_a_packed_row_teaches_what_its_conversations_teach_alone(attention, changes):
    """Loss and gradient of a row of conversations are the sums of what each gives alone, computed eagerly."""
    packed, model, reference = row(*LENGTHS), phi3(attention, **changes), phi3("eager", **changes)
    each = [gradients(reference, batch_of("eager", [one])) for one in alone(packed)]
    loss, gradient = gradients(model, batch_of(attention, [packed]))
    assert loss == pytest.approx(sum(value for value, _ in each), rel=1e-5)
    torch.testing.assert_close(gradient, sum(grad for _, grad in each), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{}, WINDOW, LONGROPE], ids=["plain", "window", "longrope"])
@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
def test_a_batch_of_unlike_rows_teaches_what_each_teaches_alone(attention, changes):
    """Padded or flattened, rows of other lengths beside it do not change what a conversation teaches."""
    rows, model = alone(row(*LENGTHS)), phi3(attention, **changes)
    context = 16 if changes is LONGROPE else None
    each = sum(loss_of(model, batch_of(attention, [one], context)).item() for one in rows)
    assert loss_of(model, batch_of(attention, rows, context)).item() == pytest.approx(each, rel=1e-5)
    mixed = [row(5, 7), row(30, seed=1)]
    each = sum(loss_of(model, batch_of(attention, [one], context)).item() for one in mixed)
    assert loss_of(model, batch_of(attention, mixed, context)).item() == pytest.approx(each, rel=1e-5)


def test_flex_attention_sees_single_conversations():
    """FlexAttention's mask, computed without compiling, gives a packed row the loss of its conversations alone."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention
    from transformers.integrations import flex_attention as integration

    packed, model, reference = row(*LENGTHS), phi3("flex", **WINDOW), phi3("eager", **WINDOW)
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr("torch.nn.attention.flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", True)
        patch.setattr(integration, "compile_friendly_flex_attention", lambda *a, training, **k: flex_attention(*a, **k))
        patch.setattr(
            "transformers.masking_utils.create_block_mask",
            lambda **named: create_block_mask(**{**named, "_compile": False}),
        )
        each = sum(loss_of(reference, batch_of("eager", [one])).item() for one in alone(packed))
        for parameter in model.parameters():
            parameter.requires_grad_(False)  # it has no backward pass on a CPU
        assert loss_of(model, flatten([packed])).item() == pytest.approx(each, rel=1e-5)


@pytest.mark.parametrize("attention", ["documents", "sdpa", "eager"])
def test_changing_a_conversation_leaves_the_others_losses_as_they_are(attention):
    """With one conversation of a row exchanged, the losses of the others are the same to the last bit."""
    packed, model = row(*LENGTHS), phi3(attention)

    def loss_of_first_and_last(ids):
        labels = np.array(packed.labels)
        labels[9:31] = -100
        with torch.no_grad():
            return loss_of(model, batch_of(attention, [dataclasses.replace(packed, input_ids=ids, labels=labels)]))

    changed = np.array(packed.input_ids)
    changed[9:30] = changed[9:30][::-1]
    assert torch.equal(loss_of_first_and_last(packed.input_ids), loss_of_first_and_last(changed))
    changed[2] += 1
    assert not torch.equal(loss_of_first_and_last(packed.input_ids), loss_of_first_and_last(changed))


def test_longrope_would_mix_without_us():
    """Without factors by conversation, a long conversation beside it changes what a short one teaches."""
    model = phi3("documents", **LONGROPE)
    for module in model.modules():
        if getattr(module, "rope_type", None) == "longrope":
            del module.forward
    short, long = row(9), row(30, seed=1)
    both = sum(loss_of(model, flatten([one])).item() for one in (short, long))
    assert loss_of(model, flatten([short, long])).item() != pytest.approx(both, rel=1e-4)


def test_capped_scores_are_refused_rather_than_left_out():
    """A kernel that does not know a part of the model's attention says so."""
    from trainer.attention import documents_attention

    states = torch.zeros(1, 2, 4, 8)
    with pytest.raises(TrainerError, match="softcap"):
        documents_attention(torch.nn.Module(), states, states, states, None, softcap=50.0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("changes", [{}, WINDOW, LONGROPE], ids=["plain", "window", "longrope"])
@pytest.mark.parametrize("attention", ["varlen", "flash_attention_2", "flex"])
def test_a_packed_row_teaches_the_same_on_a_gpu(attention, changes):
    """The GPU's kernels give a packed row, in bfloat16, the loss of its conversations alone in 32 bits."""
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    packed = row(*LENGTHS)
    reference = phi3("eager", **changes)
    each = [gradients(reference, batch_of("eager", [one])) for one in alone(packed)]
    model = copy.deepcopy(phi3("documents", **changes)).cuda()
    model.set_attn_implementation({"flex": "flex_attention"}.get(attention, attention))
    with torch.autocast("cuda", torch.bfloat16):
        loss, gradient = gradients(model, flatten([packed]))
    assert loss == pytest.approx(sum(value for value, _ in each), rel=1e-2)
    wanted = sum(grad for _, grad in each)
    assert torch.nn.functional.cosine_similarity(gradient.cpu(), wanted, dim=0) > 0.995
