"""A small trained chat model and a front before it. Runs in the environment of environments/serving-cpu."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [name for name in ("torch", "transformers", "starlette", "httpx", "psutil") if find_spec(name) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []
sys.path.insert(0, str(Path(__file__).parents[3] / "deployments"))


def pytest_terminal_summary(terminalreporter) -> None:
    """Say why these tests did not run."""
    if MISSING:
        terminalreporter.write_line(f"tests/unit/server not run: {', '.join(MISSING)} not installed here")


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-layer Phi-3 model that learned CHATS by heart, in a folder whose name needs care."""
    import torch
    from fronts import CHATS, CONTEXT_TOKENS
    from transformers import Phi3Config, Phi3ForCausalLM

    folder = tmp_path_factory.mktemp("model@v1")
    tokenizer = _train_tokenizer()
    torch.manual_seed(0)
    torch.set_num_threads(1)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    model = Phi3ForCausalLM(
        Phi3Config(
            vocab_size=len(tokenizer), num_attention_heads=4, num_key_value_heads=4, tie_word_embeddings=True,
            max_position_embeddings=CONTEXT_TOKENS, original_max_position_embeddings=CONTEXT_TOKENS,
            bos_token_id=1, eos_token_id=5, pad_token_id=2, **sizes,
        )
    )  # fmt: skip
    rows = []
    for question, answer in CHATS.items():
        messages = [{"role": "user", "content": question}]
        prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        start = tokenizer.encode(prompt, add_special_tokens=False)
        end = tokenizer.encode(answer + "<|end|>", add_special_tokens=False)
        rows.append((torch.tensor([start + end]), torch.tensor([[-100] * len(start) + end])))
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(120):
        loss = sum(model(input_ids=ids, labels=labels).loss for ids, labels in rows)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.05
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _train_tokenizer():
    from fronts import CHATS, SPECIAL, TEMPLATE
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator([*CHATS, *CHATS.values()], trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="<|end|>", unk_token="<unk>",
        pad_token="<|endoftext|>", chat_template=TEMPLATE,
        additional_special_tokens=["<|assistant|>", "<|system|>", "<|user|>"],
    )  # fmt: skip


@pytest.fixture(scope="session")
def front(model_dir: Path, tmp_path_factory: pytest.TempPathFactory):
    """A front with the usual limits, ready."""
    from fronts import RunningFront

    running = RunningFront(model_dir, tmp_path_factory.mktemp("state"))
    yield running.wait_ready()
    running.stop()
