"""A training that is killed and run again ends where one that nothing befell does, bit for bit."""

from __future__ import annotations

import json
import os
import random
import shutil
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
        """Run to the end; how long it took from its first event."""
        process = self.start()
        begun = self._first_event(process)
        assert process.wait(600) == 0, self.output()
        return time.monotonic() - begun

    def kill_after(self, seconds: float) -> str:
        """Run for so long from its first event, then SIGKILL; where it was."""
        process = self.start()
        begun = self._first_event(process)
        try:
            process.wait(max(0.0, begun + seconds - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.kill()
        process.wait(30)
        names = [event.get("name") or event["event"] for event in self.events()]
        return names[-1]

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

    def _first_event(self, process: subprocess.Popen[bytes]) -> float:
        path, deadline = self.folder / "logs" / "events.jsonl", time.monotonic() + 300
        seen = path.stat().st_size if path.exists() else 0
        while not (path.exists() and path.stat().st_size > seen):
            assert process.poll() is None and time.monotonic() < deadline, self.output()
            time.sleep(0.01)
        return time.monotonic()


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_the_same(tiny_model, corpus, tmp_path):
    """SIGKILL at 20 random moments spread over the run, and the same command again: equal losses, curve, weights."""
    unbroken = Command(tmp_path / "unbroken", tiny_model, corpus)
    whole = unbroken.seconds()
    moments = random.Random(7)
    seen = []
    for number in range(NUM_KILLS):
        job = Command(tmp_path / f"killed-{number}", tiny_model, corpus)
        seen.append(job.kill_after((number + moments.random()) / NUM_KILLS * whole))
        job.resume()
        assert job.ended() == unbroken.ended(), f"killed at {seen[-1]}: {job.output()}"
        left = {path.name for path in (job.folder / "checkpoints").glob("checkpoint-*")}
        assert left == {"checkpoint-21", "checkpoint-24"}
        shutil.rmtree(job.folder)
    print(f"\nkilled at {seen}")
    assert {"checkpoint", "packaging"} & set(seen), seen


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
