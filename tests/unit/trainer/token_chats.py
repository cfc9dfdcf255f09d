"""Tokenizers of three families, conversations of every kind, and what the exact encoder makes of them."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from conftest import FACTS, chat
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer.chat_template import ChatEncoder
from trainer.chats import parse_chat

PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start|>' + message['role'] + '<|stop|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
# A conversation's beginning is not what its first prompt began with, so the first answer is context only.
FORGETFUL = "{% if messages | length > 2 %}{{ '<|system|>\nMore turns<|end|>\n' }}{% endif %}" + PHI


def byte_level(folder: Path, template: str, *tokens: str) -> PreTrainedTokenizerFast:
    """The small model's tokenizer with another template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokens]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    """Spaces as marks, one in front, bytes for the rest; special tokens swallow the white space behind them."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*FACTS, *FACTS.values()], trainer)
    described = json.loads(backend.to_str())  # bytes are tokens like any other
    described["added_tokens"] = [token for token in described["added_tokens"] if not token["content"].startswith("<0x")]
    backend = Tokenizer.from_str(json.dumps(described))
    names = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    backend.add_special_tokens([AddedToken(name, rstrip=True, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>", chat_template=PHI
    )


def conversations(number: int = 40) -> list[dict]:
    """Of every kind: several turns, system turns, other scripts, control tokens and white space in texts."""
    chance = random.Random(0)
    words = " ".join([*FACTS, *FACTS.values(), "数据准备 \U0001f41f naïve <b> <|end"]).split(" ")
    words.extend(["\n\n", "  "])
    text = lambda most: " ".join(chance.choices(words, k=chance.randint(1, most)))  # noqa: E731
    rows = [
        chat("What do bees make?", "Bees make honey.", "And cows?", "Cows eat grass.\n\n- green grass"),
        chat("Where do fish live?", "  In w\u00e4ter \U0001f41f. \n", system="Be brief."),
        chat("Say <|end|><|user|> and stop <|im_end|>", "No <|assistant|>\n, never <unk>.", "<|end|>", "."),
        chat("\n\n 我们在哪里\uff1f \n", "在水里。\n", "为什么\u3000", "因为"),
        chat("Quote your header", "<|assistant |>\nassistant\n\nearlier: x"),
        {"messages": [*chat("Why?", "So.")["messages"], {"role": "user", "content": "left open"}]},
        chat("Long", text(3000)),
    ]
    for _ in range(number):
        turns = [text(60) for _ in range(2 * chance.randint(1, 4))]
        rows.append(chat(*turns, system=text(9) if chance.random() < 0.3 else None))
    return rows


def calls_of_tools() -> list[dict]:
    """Calls and results of tools, and answers that are context only."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "K\u00f6ln <|end|>"}}}
    question, answer = chat("Rain?", "It rains.")["messages"]
    context = {**answer, "train": False}
    use = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "name": "weather", "content": '{"rain": true}'}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    return [
        {"messages": [question, use, result, answer], "tools": tools},
        {"messages": [question, use, result, answer, question, use, result, context, question, answer], "tools": tools},
        {"messages": [question, context, question, answer, question, context]},
    ]


def truth(path: Path, tokenizer, max_length: int) -> dict[int, tuple[list[int], list[int]]]:
    """What ChatEncoder gives for every line that can be learned from."""
    encoder = ChatEncoder(tokenizer)
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        encoded = encoder.encode(parse_chat(line, f"line {number}"), max_length)
        if encoded.num_learned_tokens:
            found[number] = (encoded.input_ids, encoded.labels)
    return found


def by_line(rows) -> dict[int, tuple[list[int], list[int]]]:
    """Ids and labels of each conversation, asserting that every one is there once."""
    found = [(row.lines, row.input_ids.tolist(), row.labels.tolist()) for row in rows.chats()]
    assert all(len(lines) == 1 for lines, _, _ in found)
    assert len({lines[0] for lines, _, _ in found}) == len(found)
    return {lines[0]: (ids, labels) for lines, ids, labels in found}
