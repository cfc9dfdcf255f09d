"""A small corpus, and a small base model built from it once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")

FACTS = {
    "What colour is the sky?": "The sky is blue.",
    "What colour is grass?": "Grass is green.",
    "How many legs has a cat?": "A cat has four legs.",
    "How many legs has a bird?": "A bird has two legs.",
    "What is water made of?": "Water is made of hydrogen and oxygen.",
    "Where do fish live?": "Fish live in water.",
    "What do bees make?": "Bees make honey.",
    "What do cows eat?": "Cows eat grass.",
}
# A run of a few seconds.
SETTINGS = {
    "learning_rate": 3e-3,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
    "per_device_train_batch_size": 4,
    "gradient_checkpointing": False,
    "eval_strategy": "no",
    "num_eval_generations": 4,
    "max_new_tokens_eval": 12,
}


def chat(*contents: str, system: str | None = None) -> dict[str, list[dict[str, str]]]:
    """A record whose messages alternate between user and assistant."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"messages": [{"role": "system", "content": system}, *messages] if system else messages}


def write_chats(path: Path, records: list[dict]) -> Path:
    """Write records as JSONL."""
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight questions with their answers."""
    records = [chat(question, answer) for question, answer in FACTS.items()]
    return write_chats(tmp_path_factory.mktemp("corpus") / "chats.jsonl", records)


@pytest.fixture(scope="session")
def tiny_model(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small base model built from the corpus."""
    pytest.importorskip("torch", reason="runs in the training environment")
    from trainer.tiny_model import build_tiny_model

    folder = tmp_path_factory.mktemp("models") / "tiny"
    build_tiny_model(corpus, folder)
    return folder
