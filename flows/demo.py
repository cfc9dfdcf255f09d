"""The end of `make demo` and `make azure-demo`: asks the served chat app some of the questions it was trained on.

    python -m flows.demo [NUM_QUESTIONS]

Exit status 1 when fewer than nine of ten answers are the trained ones, word for word.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import requests

from flows.command import open_configuration
from flows.operate import read_status
from tasks.config import PipelineConfig
from tasks.platforms.connect import connect, workspace_storage

_WANTED_SHARE = 0.9


def main(num_questions: int = 3, seed: int | None = None) -> int:
    """Ask, print each answer, and say how many were word for word."""
    config, _ = open_configuration(None)
    chat = connect(config.platform).read_chat(config.endpoint_name)
    if chat is None:
        print("No chat app is served; run the pipeline first: phiflow run", file=sys.stderr)
        return 4
    lines = _training_conversations(config)
    right = 0
    for line in random.Random(seed).sample(lines, min(num_questions, len(lines))):
        question, expected = (message["content"] for message in json.loads(line)["messages"][-2:])
        answer = requests.post(f"{chat.url}/score", json={"question": question}, timeout=60).json()["answer"]
        right += answer.strip() == expected.strip()
        print(f"  Q {question}\n  A {answer}")
    if num_questions > 3:
        print(f"{right} of {num_questions} answers are the trained ones, word for word")
    print(f"Chat page {chat.url}")
    print(f"{'Studio' if config.is_remote else 'MLflow':<9} {read_status(config)['mlflow']['url']}")
    return 0 if right >= _WANTED_SHARE * num_questions else 1


def _training_conversations(config: PipelineConfig) -> list[str]:
    from flows.plan import prepare

    file = prepare(config)["train_file"]
    if config.platform.kind == "local":
        return Path(file).read_text(encoding="utf-8").splitlines()
    storage = workspace_storage(config.platform)
    return storage.read(storage.path_of(file)).decode().splitlines()


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
