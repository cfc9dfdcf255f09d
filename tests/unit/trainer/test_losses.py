"""Scores of conversations on rows without padding."""

from __future__ import annotations

import json

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

import torch
from conftest import FACTS, chat, write_chats

from trainer import losses
from trainer.batches import collator, rows_of
from trainer.chats import read_chats
from trainer.config import TrainConfig
from trainer.encoding import encode_chats
from trainer.evaluate import evaluate_model, evenly_chosen
from trainer.evaluate import main as evaluate
from trainer.generation import _answer, generating, generation_batches, greedy_answers


@pytest.fixture(scope="module")
def loaded(tiny_model, tmp_path_factory):
    """The small model in training's attention, its tokenizer, and conversations of unequal lengths."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from trainer import attention

    attention.register("documents")
    torch.set_num_threads(1)  # as for every model of this size: threads wait more than they work
    facts = list(FACTS.items())
    records = [chat(*(part for fact in facts[i : i + 1 + i % 3] for part in fact)) for i in range(len(facts))]
    path = write_chats(tmp_path_factory.mktemp("unequal") / "chats.jsonl", records)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation="documents").eval()
    chats, stops = encode_chats(read_chats(path), tokenizer, 512, path.name)
    model.generation_config.eos_token_id = sorted(stops)
    return model, tokenizer, chats


def batches(chats, size: int, attention: str = "documents") -> list[dict]:
    """The conversations in batches of size."""
    rows, collate = rows_of(chats), collator(attention, 0)
    return [collate(rows[begin : begin + size]) for begin in range(0, len(rows), size)]


@pytest.mark.parametrize(("attention", "plain"), [("documents", True), ("documents", False), ("sdpa", True)])
def test_each_conversation_scores_as_it_does_alone(loaded, monkeypatch, attention, plain):
    """Scores equal those from all the logits of each conversation by itself, in chunks of 7, with and without padding,
    and by a model that computes its logits in a way of its own.
    """
    model, _, chats = loaded
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", 7 * model.config.vocab_size)
    monkeypatch.setattr(losses, "is_plain", lambda _: plain)
    model.set_attn_implementation(attention)
    found = losses.chat_losses(model, batches(chats, 3, attention), bf16=False)
    model.set_attn_implementation("documents")
    for chat_, score in zip(chats, found, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([chat_.input_ids])).logits[0, :-1]
        labels = torch.tensor(chat_.labels[1:])
        learned = labels != -100
        nll = torch.nn.functional.cross_entropy(logits[learned], labels[learned], reduction="sum").item()
        assert score.nll == pytest.approx(nll, rel=1e-5)
        assert score.num_tokens == chat_.num_learned_tokens == int(learned.sum())
        assert score.num_correct == int((logits[learned].argmax(-1) == labels[learned]).sum())


def test_the_output_layer_sees_learned_positions_in_chunks(loaded, monkeypatch):
    """No more logits exist at once than a chunk's, and none of a token that is not learned."""
    model, _, chats = loaded
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", 5 * model.config.vocab_size)
    monkeypatch.setattr(losses, "is_plain", lambda _: True)  # which it finds out with a few tokens more
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda _m, _i, output: seen.append(output.shape[0]))
    losses.chat_losses(model, batches(chats, 8), bf16=False)
    hook.remove()
    assert max(seen) == 5 and sum(seen) == sum(each.num_learned_tokens for each in chats)


def test_answers_do_not_depend_on_the_batch(loaded):
    """Prompts padded on the left are answered as each by itself, and the model is left as it was."""
    model, tokenizer, chats = loaded
    prompts = [each.prompt_ids for each in chats[:5]]
    state = torch.random.get_rng_state()
    model.train()
    with generating(model):
        together = greedy_answers(model, tokenizer, prompts, 8)
        alone = [greedy_answers(model, tokenizer, [prompt], 8)[0] for prompt in prompts]
    assert together == alone
    assert model.training and model.config._attn_implementation == "documents"
    assert torch.equal(state, torch.random.get_rng_state())
    model.eval()


def test_generation_batches_fit_the_cache():
    """Batches hold like lengths, every prompt once, and no more tokens than the cache; a longer prompt goes alone."""
    lengths = [100, 9000, 3000, 120, 2900, 90]
    batches = list(generation_batches(lengths, 100))
    assert sorted(index for batch in batches for index in batch) == list(range(6))
    assert all(len(batch) * (max(lengths[i] for i in batch) + 100) <= 8192 or len(batch) == 1 for batch in batches)


def test_every_model_answers_the_same_questions(loaded):
    """An evaluation names the answered conversations by their index, and compares with the expected answers."""
    model, tokenizer, chats = loaded
    config = TrainConfig(num_eval_generations=3, max_new_tokens_eval=6)
    found = evaluate_model(model, tokenizer, chats, config, bf16=False)
    assert sorted(found.answers) == evenly_chosen(range(len(chats)), 3) == [0, 2, 5]
    assert [index for index, row in enumerate(found.per_example) if "chrf" in row] == [0, 2, 5]
    assert found.metrics["num_generations"] == 3 and 0 <= found.metrics["stop_rate"] <= 1
    assert type(found).from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_the_test_set_is_capped_at_the_same_conversations(tiny_model, corpus, tmp_path):
    """max_eval_examples scores that many conversations, evenly chosen from the file."""
    (tmp_path / "train.json").write_text(json.dumps({"max_eval_examples": 3, "num_eval_generations": 0}))
    arguments = ["--model-dir", str(tiny_model), "--eval-file", str(corpus), "--output", str(tmp_path / "out.json")]
    assert evaluate([*arguments, "--config", str(tmp_path / "train.json")]) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["metrics"]["num_examples"] == len(found["per_example"]) == 3
    assert found["metrics"]["chrf"] is None


@pytest.mark.gpu
def test_scores_on_a_gpu_are_those_of_a_cpu(loaded, tiny_model):
    """In bfloat16 through the variable-length kernel the loss is the CPU's within 1 %, and answers are generated."""
    from transformers import AutoModelForCausalLM

    from trainer import attention

    model, tokenizer, chats = loaded
    config = TrainConfig(num_eval_generations=3, max_new_tokens_eval=6)
    wanted = evaluate_model(model, tokenizer, chats, config, bf16=False)
    name = attention.register("varlen")
    on_gpu = AutoModelForCausalLM.from_pretrained(tiny_model, attn_implementation=name).to("cuda").eval()
    on_gpu.generation_config.eos_token_id = model.generation_config.eos_token_id
    found = evaluate_model(on_gpu, tokenizer, chats, config, bf16=True)
    assert found.metrics["loss"] == pytest.approx(wanted.metrics["loss"], rel=0.01)
    assert sorted(found.answers) == sorted(wanted.answers)
    assert on_gpu.config._attn_implementation == name


def test_answer_cut_within_a_letter_ends_before_it(tiny_model) -> None:
    """A letter of several tokens of which the last are missing is left out: a longer answer begins with the text."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    ids = tokenizer("\u7b2c\u4e5d\u53f7\u4e66", add_special_tokens=False)["input_ids"]
    whole = _answer(ids, tokenizer, set()).text
    cut = [_answer(ids[:length], tokenizer, set()).text for length in range(1, len(ids))]
    assert whole == "\u7b2c\u4e5d\u53f7\u4e66"
    assert all(whole.startswith(text) for text in cut)
