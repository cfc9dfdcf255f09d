"""The server as its container starts it on Azure Machine Learning: the image's own command, without Docker."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from fronts import CHATS, environment, free_port, wait_until
from server.__main__ import parse_arguments

IMAGE = Path(__file__).parents[3] / "environments" / "serving-cpu" / "Dockerfile"


def command(port: int) -> list[str]:
    """The image's CMD, with this environment's Python and a free port of this machine."""
    words = json.loads(re.search(r"^CMD (\[.*\])$", IMAGE.read_text(), re.MULTILINE)[1])
    assert words[:3] == ["python", "-m", "server"]
    return [{"python": sys.executable, "5001": str(port), "0.0.0.0": "127.0.0.1"}.get(word, word) for word in words]


def variables(folder: Path, **more: str) -> dict[str, str]:
    """What the service and the deployment set."""
    return environment() | {"AZUREML_MODEL_DIR": str(folder), "PHIFLOW_MODEL_NAME": "support"} | more


@pytest.mark.slow
def test_the_images_command_serves_the_mounted_model(model_dir, tmp_path):
    """The command finds the model below AZUREML_MODEL_DIR and serves it with the deployment's name and limits."""
    shutil.copytree(model_dir, tmp_path / "mounted" / "model" / "model")
    (tmp_path / "mounted" / "model" / "MLmodel").write_text("flavors: {}\n")
    port = free_port()
    log = (tmp_path / "log.txt").open("w")
    settings = variables(tmp_path / "mounted", TMPDIR=str(tmp_path), PHIFLOW_MAX_CONCURRENT_REQUESTS="3")
    process = subprocess.Popen(command(port), env=settings, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def status(path: str) -> int:
        assert process.poll() is None, (tmp_path / "log.txt").read_text()
        try:
            return httpx.get(url + path, trust_env=False).status_code
        except httpx.HTTPError:
            return 0

    try:
        wait_until(lambda: status("/live") == 200, 20, "the process to answer")
        assert status("/health") == 503  # alive while it loads, but not ready
        wait_until(lambda: status("/health") == 200, 60, "the model to answer")
        question, answer = next(iter(CHATS.items()))
        body = {"model": "support", "messages": [{"role": "user", "content": question}]}
        reply = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30, trust_env=False).json()
        assert reply["choices"][0]["message"]["content"] == answer
    finally:
        process.terminate()
        process.wait(20)
        log.close()


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("PHIFLOW_MAX_CONCURRENT_REQUESTS", "many", "'many' is not a whole number"),
        ("PHIFLOW_REQUEST_TIMEOUT_SECONDS", "0", "'0' is not a number of seconds above 0"),
        ("PHIFLOW_MODEL_NAME", "a b", "'a b' is not a name"),
        ("AZUREML_MODEL_DIR", "/nowhere", "/nowhere does not exist"),
    ],
)
def test_a_wrong_variable_is_one_line(model_dir, name, value, expected):
    """A variable the server cannot use ends it at once, with status 2 and what is wrong with it."""
    done = subprocess.run(
        command(free_port()), env=variables(model_dir, **{name: value}), capture_output=True, text=True, timeout=20
    )
    assert done.returncode == 2 and expected in done.stderr.splitlines()[-1]


def test_an_option_wins_over_a_variable(monkeypatch):
    """What the command line says is used, whatever the environment says."""
    monkeypatch.setenv("PHIFLOW_MODEL_NAME", "other")
    monkeypatch.setenv("PHIFLOW_MAX_CONCURRENT_REQUESTS", "3")
    arguments = parse_arguments(["--model-dir", "m", "--model-name", "demo", "--port", "1"])
    assert (arguments.model_name, arguments.max_concurrent_requests) == ("demo", 3)
