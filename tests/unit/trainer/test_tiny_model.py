from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from trainer.files import digest_folder
from trainer.tiny_model import build_tiny_model


def test_same_corpus_same_bytes(corpus, tiny_model, tmp_path):
    """The same corpus gives a model with the same bytes, another corpus another one."""
    assert build_tiny_model(corpus, tmp_path / "again") == digest_folder(tiny_model)
    other = tmp_path / "other.jsonl"
    other.write_text("".join(corpus.read_text().splitlines(keepends=True)[:4]))
    assert build_tiny_model(other, tmp_path / "other") != digest_folder(tiny_model)


def test_it_is_a_small_phi_3(tiny_model):
    """The model is a Phi-3 of about two million parameters that stops at <|end|>."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert type(model).__name__ == "Phi3ForCausalLM"
    assert 1e6 < model.num_parameters() < 3e6
    assert tokenizer.convert_tokens_to_ids("<|end|>") in model.generation_config.eos_token_id
    assert tokenizer.decode(tokenizer("Grüße, 世界").input_ids) == "Grüße, 世界"
