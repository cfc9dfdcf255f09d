"""What is served equals what was trained, token for token: trainer, package, endpoint and chat app."""
# ruff: noqa: RUF001 (Chinese has punctuation of its own)

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from journey import Journey, records

pytestmark = [pytest.mark.journey, pytest.mark.slow]

NAME, NUM_TOKENS, CONTEXT = "faithful", 20, 8192
CHINESE = [
    {
        "messages": [
            {"role": "user", "content": f"{i}号物品在哪里？"},
            {"role": "assistant", "content": f"在{i % 5}号架子上。"},
        ]
    }
    for i in range(20)
]
LONG = " ".join(f"Item {i} is heavy." for i in range(400)) + " Where is item 3?"
QUESTIONS: dict[str, list[dict[str, str]]] = {
    "chinese": [{"role": "user", "content": "7号物品在哪里？"}],
    "no system turn": [{"role": "user", "content": "Where is item 3?"}],
    "system turn": [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Where is item 11?"}],
    "several turns": [
        {"role": "user", "content": "Where is item 5?"},
        {"role": "assistant", "content": "The item 5 is on shelf 5 of room 2."},
        {"role": "user", "content": "12号物品在哪里？"},
        {"role": "assistant", "content": "在2号架子上。"},
        {"role": "user", "content": "Where is item 9?"},
    ],
    "over 4,096 tokens": [{"role": "user", "content": LONG}],
}
BUILD = """
import pathlib, sys
from trainer import tiny_model
tiny_model._CONTEXT_TOKENS = int(sys.argv[3])
tiny_model.build_tiny_model(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
"""
ANSWER = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, questions, num_tokens = sys.argv[1], json.loads(open(sys.argv[2], encoding="utf-8").read()), int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
for name, messages in questions.items():
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    new = model.generate(torch.tensor([ids]), max_new_tokens=num_tokens, do_sample=False)[0, len(ids):].tolist()
    text = tokenizer.decode(new, skip_special_tokens=True)
    print(json.dumps({"name": name, "num_prompt": len(ids), "ids": new, "text": text}))
"""


def in_training_environment(journey: Journey, code: str, *arguments: Any) -> str:
    """Run a program there and return what it printed."""
    (python,) = journey.home.glob("environments/training-*/bin/python")
    environment = journey.environment(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1")
    ended = subprocess.run(
        [python, "-c", code, *map(str, arguments)], capture_output=True, text=True, env=environment, timeout=600
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    return ended.stdout


class Trained:
    """A model with a long context, trained and served, and what it answers by itself."""

    def __init__(self, journey: Journey) -> None:
        rows = records(40) + CHINESE
        corpus, base = journey.write_data(f"{NAME}-corpus", rows), journey.folder / f"{NAME}-base"
        self.training_environment(journey)
        in_training_environment(journey, BUILD, corpus, base, CONTEXT)
        config = journey.configure(
            NAME,
            rows,
            model={"base": str(base)},
            train={"num_train_epochs": 20, "num_samples": 8, "num_eval_generations": 8},
            chat={"max_tokens": NUM_TOKENS, "temperature": 0.0},
        )
        self.told = journey.json("run", config, timeout=900)
        (job,) = journey.jobs(NAME)
        self.result = json.loads((job["folder"] / "logs" / "result.json").read_text(encoding="utf-8"))
        self.model = Path(job["folder"]) / "model" / "model"
        self._journey = journey
        self.answers = self.ask_model(QUESTIONS, NUM_TOKENS)

    @staticmethod
    def training_environment(journey: Journey) -> None:
        """Build it, as the run would."""
        from tasks.platforms.local.environments import SOURCES, ensure_environment

        ensure_environment(journey.home, SOURCES / "training")

    def ask_model(self, questions: dict[str, list[dict[str, str]]], num_tokens: int) -> dict[str, dict[str, Any]]:
        """What the packaged folder answers greedily, by transformers alone."""
        file = self._journey.folder / f"{NAME}-questions.json"
        file.write_text(json.dumps(questions), encoding="utf-8")
        lines = in_training_environment(self._journey, ANSWER, self.model, file, num_tokens).splitlines()
        return {answer["name"]: answer for answer in map(json.loads, lines)}


@pytest.fixture(scope="module")
def trained(journey: Journey) -> Iterator[Trained]:
    """One run for all tests here."""
    yield Trained(journey)


def test_packaged_model_answers_as_the_trainers(trained: Trained) -> None:
    """The package says word for word what the model said at the end of its training."""
    samples = {str(i): sample for i, sample in enumerate(trained.result["samples"])}
    assert len(samples) > 3
    answers = trained.ask_model({name: sample["messages"] for name, sample in samples.items()}, 24)
    for name, sample in samples.items():
        assert answers[name]["text"].strip() == sample["answer"], sample["question"]


@pytest.mark.parametrize("name", QUESTIONS)
def test_endpoint_answers_as_the_packaged_model(journey: Journey, trained: Trained, name: str) -> None:
    """The endpoint's text, its number of tokens and the prompt's are the packaged model's own."""
    response = requests.post(
        f"{trained.told['endpoint']['url']}/v1/chat/completions",
        json={"messages": QUESTIONS[name], "max_tokens": NUM_TOKENS, "temperature": 0},
        headers={"Authorization": f"Bearer {journey.key(NAME)}"},
        timeout=300,
    )
    assert response.status_code == 200, response.text
    body, expected = response.json(), trained.answers[name]
    assert body["choices"][0]["message"]["content"].strip() == expected["text"].strip()
    assert body["usage"]["prompt_tokens"] == expected["num_prompt"]
    assert body["usage"]["completion_tokens"] == len(expected["ids"])
    assert (name != "over 4,096 tokens") or expected["num_prompt"] > 4096


@pytest.mark.parametrize("name", [name for name in QUESTIONS if name != "system turn"])
def test_chat_app_answers_as_the_packaged_model(trained: Trained, name: str) -> None:
    """The chat app, given the turns as its history, gives the same text."""
    *turns, last = (message["content"] for message in QUESTIONS[name])
    pairs = zip(turns[::2], turns[1::2], strict=True)
    history = [{"inputs": {"question": asked}, "outputs": {"answer": answered}} for asked, answered in pairs]
    body = {"question": last, "chat_history": history}
    response = requests.post(f"{trained.told['chat']['url']}/score", json=body, timeout=300)
    assert response.status_code == 200, response.text
    assert response.json()["answer"].strip() == trained.answers[name]["text"].strip()
