"""A training that is killed and run again ends where one that nothing befell does, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SETTINGS

pytest.importorskip("torch", reason="runs in the training environment")
ROOT = Path(__file__).parents[3]
NUM_KILLS = 20
LONGER = {"max_steps": 24, "save_steps": 3, "logging_steps": 5, "save_total_limit": 2, "num_eval_generations": 2}


class Command:
    """The trainer's command line in a folder of its own."""

    def __init__(self, folder: Path, base: Path, chats: Path, **settings) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        (folder / "train.json").write_text(json.dumps(SETTINGS | LONGER | settings))
        self.command = [
            sys.executable, "-m", "trainer",
            "--base-model", str(base), "--train-file", str(chats), "--eval-file", str(chats),
            "--model-output-dir", str(folder / "model"), "--checkpoint-dir", str(folder / "checkpoints"),
            "--log-dir", str(folder / "logs"), "--config", str(folder / "train.json"),
        ]  # fmt: skip

    def start(self) -> subprocess.Popen[bytes]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment.pop("MLFLOW_TRACKING_URI", None)
        with open(self.folder / "output.txt", "ab") as output:
            return subprocess.Popen(self.command, env=environment, stdout=output, stderr=output)

    def seconds(self) -> float:
        """Run to the end; how long it took from its base model's evaluation on."""
        process = self.start()
        begun = self._has_loaded(process)
        assert process.wait(600) == 0, self.output()
        return time.monotonic() - begun

    def kill_after(self, seconds: float) -> str | None:
        """Run for so long from the base model's evaluation on, then SIGKILL; where it was, None when it had ended."""
        process = self.start()
        begun = self._has_loaded(process)
        try:
            process.wait(max(0.0, begun + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
        killed = process.wait(30) == -signal.SIGKILL
        last = self.events()[-1]
        return str(last.get("name") or last["event"]) if killed else None

    def resume(self) -> None:
        assert self.start().wait(600) == 0, self.output()

    def ended(self) -> tuple:
        """What must not depend on what befell it."""
        result = json.loads((self.folder / "logs" / "result.json").read_text())
        losses = {who: metrics["loss"] for who, metrics in result["metrics"].items()}
        return result["model_digest"], losses, result["loss_curve"], result["train"]["num_steps"]

    def events(self) -> list[dict]:
        lines = (self.folder / "logs" / "events.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines if line.endswith("}")]

    def output(self) -> str:
        return (self.folder / "output.txt").read_text()[-3000:]

    def _has_loaded(self, process: subprocess.Popen[bytes]) -> float:
        path, deadline = self.folder / "logs" / "events.jsonl", time.monotonic() + 300
        while not (path.exists() and '"evaluating base"' in path.read_text()):
            assert process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.01)
        return time.monotonic()


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(tiny_model, corpus, tmp_path):
    """SIGKILL at 20 random moments spread over the run, and the same command again: equal losses, curve, weights."""
    unbroken = Command(tmp_path / "unbroken", tiny_model, corpus)
    whole = unbroken.seconds()
    moments = random.Random(7)
    seen: list[str] = []
    while len(seen) < NUM_KILLS:
        job = Command(tmp_path / "killed", tiny_model, corpus)
        where = job.kill_after((len(seen) + moments.random()) / NUM_KILLS * whole)
        if where:
            seen.append(where)
            job.resume()
            assert job.ended() == unbroken.ended(), f"killed at {where}: {job.output()}"
            left = {path.name for path in (job.folder / "checkpoints").glob("checkpoint-*")}
            assert left == {"checkpoint-21", "checkpoint-24"}
        else:
            whole *= 0.9  # the machine is less busy than it was
        shutil.rmtree(job.folder)
    print(f"\nkilled at {seen}")
    assert {"checkpoint", "progress"} & set(seen) and "packaging" in seen, seen


@pytest.mark.slow
def test_killed_adapters_end_the_same(tiny_model, corpus, tmp_path):
    """LoRA, with its dropout, killed within an epoch: the same losses and merged weights."""
    settings = {"method": "lora", "learning_rate": 1e-2, "lora_dropout": 0.3, "save_steps": 5}
    unbroken = Command(tmp_path / "unbroken", tiny_model, corpus, **settings)
    unbroken.seconds()
    job = Command(tmp_path / "killed", tiny_model, corpus, **settings)
    process = job.start()
    deadline = time.monotonic() + 300
    while not (job.folder / "checkpoints" / "checkpoint-5" / "complete.json").exists():
        assert process.poll() is None and time.monotonic() < deadline, job.output()
        time.sleep(0.005)
    process.kill()
    process.wait(30)
    job.resume()
    assert job.ended() == unbroken.ended()
    assert any(event["event"] == "resumed" for event in job.events())
