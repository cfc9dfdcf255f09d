"""Real fronts, started as a user starts them, and the small model's chats."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx

DEPLOYMENTS = Path(__file__).parents[3] / "deployments"
CHATS = {
    "What is phiflow?": 'One flow: data → "model" → chat.',
    "Who are you?": "  A small model, été.\n\nIt has\ttwo paragraphs.",
}
SPECIAL = ["<unk>", "<s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>"]
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
CONTEXT_TOKENS = 512


class RunningFront:
    """A front started as a user starts it."""

    def __init__(self, model_dir: Path, state_dir: Path, *arguments: str) -> None:
        self.port = free_port()
        self.state_dir = state_dir
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = state_dir / f"front-{self.port}.log"
        command = [sys.executable, "-m", "server", "--model-dir", str(model_dir), "--model-name", "demo"]
        command += ["--port", str(self.port), "--state-dir", str(state_dir), *arguments]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, env=environment(), stderr=log)

    def engine_pid(self) -> int:
        """The engine's process id, once it is recorded."""
        record = self.state_dir / f"engine-{self.port}.json"
        wait_until(record.exists, 20, f"{record} to appear; {self.log.read_text()}")
        return json.loads(record.read_text())["pid"]

    def wait_ready(self) -> RunningFront:
        """Wait until the model answers."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return httpx.get(f"{self.url}/health", trust_env=False).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(ready, 60, "the front to be ready")
        return self

    def stop(self) -> None:
        """End it, whatever state it is in."""
        self.process.terminate()
        try:
            self.process.wait(15)
        finally:
            self.process.kill()


def environment() -> dict[str, str]:
    """The environment in which `python -m server` is found."""
    return os.environ | {"PYTHONPATH": str(DEPLOYMENTS)}


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll the condition until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
