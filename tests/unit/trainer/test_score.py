"""The packaged model served without our code in front of it: what Azure Machine Learning does with an MLflow model."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import FACTS, SETTINGS

pytest.importorskip("torch", reason="runs in the training environment")

DEPLOYMENTS = Path(__file__).parents[3] / "deployments"
QUESTION = "What colour is the sky?"


@pytest.fixture(scope="module")
def package(tiny_model, corpus, tmp_path_factory) -> Path:
    """A model that knows its facts by heart, as the trainer packages it."""
    from trainer.__main__ import main

    folder = tmp_path_factory.mktemp("scored")
    settings = SETTINGS | {
        "max_steps": 60,
        "save_steps": 1000,
        "num_eval_generations": 0,
        "per_device_train_batch_size": 8,
    }
    (folder / "train.json").write_text(json.dumps(settings))
    arguments = ["--base-model", str(tiny_model), "--train-file", str(corpus), "--eval-file", str(corpus)]
    arguments += ["--model-output-dir", str(folder / "model"), "--config", str(folder / "train.json")]
    assert main(arguments) == 0
    return folder / "model"


class Server:
    """`python -m server.score` on a free port."""

    def __init__(self, model_dir: Path, *options: str) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "server.score", "--model-dir", str(model_dir), "--port", str(port), *options]
        self.process = subprocess.Popen(
            command, env=os.environ | {"PYTHONPATH": str(DEPLOYMENTS)}, stderr=subprocess.PIPE, text=True
        )

    def ask(self, path: str, body: object = None) -> tuple[int, object]:
        data = None if body is None else json.dumps(body).encode()
        try:
            with urllib.request.urlopen(urllib.request.Request(self.url + path, data), timeout=60) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def wait_ready(self) -> Server:
        deadline = time.monotonic() + 90
        while True:
            assert self.process.poll() is None and time.monotonic() < deadline
            try:
                if self.ask("/health")[0] == 200:
                    return self
            except OSError:
                pass
            time.sleep(0.1)


@pytest.fixture(scope="module")
def server(package) -> Iterator[Server]:
    running = Server(package)
    try:
        yield running.wait_ready()
    finally:
        running.process.terminate()
        running.process.wait(20)


def chat_table(*questions: str) -> dict:
    """The chats as a table, the one form of the service's that a chat model takes."""
    chats = [[[{"role": "user", "content": question}]] for question in questions]
    return {"columns": ["messages"], "index": list(range(len(chats))), "data": chats}


def texts(answer: list[dict]) -> list[str]:
    return [each["choices"][0]["message"]["content"] for each in answer]


def test_it_answers_as_it_was_taught(server):
    """A chat in, the learned answer out, greedily unless the request says otherwise."""
    status, answer = server.ask("/score", {"input_data": chat_table(QUESTION)})
    assert (status, texts(answer)) == (200, [FACTS[QUESTION]])


def test_parameters_reach_the_model(server):
    """The tutorial's parameters are taken, each by its name; what the model does not know is ignored."""
    params = {"max_new_tokens": 2, "do_sample": False, "temperature": 0.7, "return_full_text": True}
    status, answer = server.ask("/score", {"input_data": chat_table(QUESTION), "params": params})
    assert status == 200 and answer[0]["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"messages": []}, "input_data"),
        ({"input_data": [QUESTION]}, "must be a table of chats"),
        ({"input_data": chat_table(QUESTION), "params": [1]}, "params must be an object"),
        ({"input_data": {"columns": ["text"], "index": [0], "data": [["x"]]}}, "the model refused the request"),
    ],
)
def test_what_the_model_cannot_take_is_refused(server, body, expected):
    """A body without a table of chats is refused in one line, and the server goes on."""
    status, answer = server.ask("/score", body)
    assert status == 400 and expected in answer["error"]["message"]
    assert server.ask("/health")[0] == 200


def test_a_folder_without_a_model_ends_it(tmp_path):
    """A folder that holds no MLflow model, or a broken one, ends the server with one line."""
    for content in (None, "flavors: {}\n"):
        if content:
            (tmp_path / "MLmodel").write_text(content)
        process = Server(tmp_path).process
        error = process.communicate(timeout=60)[1]
        assert process.returncode == 2 and str(tmp_path) in error.splitlines()[-1]


def test_the_signature_is_one_that_the_service_serves(package):
    """The first input is a plain value, there are no outputs, and the parameters that requests name are in it."""
    from mlflow.models import Model
    from mlflow.types.schema import DataType

    signature = Model.load(str(package)).signature
    assert isinstance(signature.inputs.inputs[0].type, DataType)
    assert "messages" in signature.inputs.input_names() and signature.outputs is None
    assert {param.name for param in signature.params} == {"max_new_tokens", "do_sample", "temperature", "top_p"}
