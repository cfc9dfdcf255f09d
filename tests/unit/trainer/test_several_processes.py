"""Training by several processes, as the service's PyTorch distribution starts them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import SETTINGS

pytest.importorskip("torch", reason="runs in the training environment")
ROOT = Path(__file__).parents[3]


class Group:
    """Two trainer processes on one folder, with their output in files."""

    def __init__(self, folder: Path, base: Path, chats: Path, **settings) -> None:
        self.folder = folder
        (folder / "train.json").write_text(json.dumps(SETTINGS | {"per_device_train_batch_size": 2} | settings))
        arguments = [
            "--base-model", str(base), "--train-file", str(chats), "--eval-file", str(chats),
            "--model-output-dir", str(folder / "model"), "--checkpoint-dir", str(folder / "checkpoints"),
            "--log-dir", str(folder / "logs"), "--result-dir", str(folder / "result"),
            "--config", str(folder / "train.json"),
        ]  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
        shared |= {"OMP_NUM_THREADS": "1"}
        self.processes = []
        for rank in ("0", "1"):
            environment = os.environ | shared | {"RANK": rank, "LOCAL_RANK": rank}
            environment.pop("MLFLOW_TRACKING_URI", None)
            with open(folder / f"output-{rank}.txt", "w") as output:
                command = [sys.executable, "-m", "trainer", *arguments]
                self.processes.append(
                    subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
                )

    def exit_codes(self) -> list[int]:
        """Wait for both."""
        try:
            return [process.wait(120) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def output(self, rank: int) -> str:
        return (self.folder / f"output-{rank}.txt").read_text()

    def events(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "logs" / "events.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_one_model(tiny_model, corpus, tmp_path):
    """Two processes share the steps; the first alone tells, writes, evaluates and packages."""
    group = Group(tmp_path, tiny_model, corpus)
    assert group.exit_codes() == [0, 0], group.output(0) + group.output(1)
    result = json.loads((tmp_path / "result" / "result.json").read_text())
    assert (result["train"]["num_steps"], result["train"]["num_processes"]) == (4, 2)
    assert result["metrics"]["candidate"]["loss"] < result["metrics"]["base"]["loss"]
    names = [event["event"] for event in group.events()]
    assert names.count("started") == names.count("finished") == 1
    assert "Training" in group.output(0) and "Training" not in group.output(1)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both_at_a_checkpoint(tiny_model, corpus, tmp_path):
    """When one process is told to stop, both end with code 75 after the same step, which is saved whole."""
    group = Group(tmp_path, tiny_model, corpus, max_steps=5000, save_steps=5000)
    events = tmp_path / "logs" / "events.jsonl"
    deadline = time.monotonic() + 90
    try:
        while not (events.exists() and '"progress"' in events.read_text()):
            assert time.monotonic() < deadline, group.output(0)
            time.sleep(0.1)
        group.processes[1].send_signal(signal.SIGTERM)
        assert group.exit_codes() == [75, 75]
    finally:
        for process in group.processes:
            process.kill()
    last = [event for event in group.events() if event["event"] == "checkpoint"][-1]
    assert (tmp_path / "checkpoints" / last["path"] / "complete.json").is_file()
    assert json.loads((tmp_path / "result" / "error.json").read_text())["kind"] == "preempted"


@pytest.mark.slow
def test_divergence_ends_both_processes(tiny_model, corpus, tmp_path):
    """A loss that is not a number ends both, for that reason, and not because the other one ended."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.norm.weight.data[0] = float("nan")
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    group = Group(tmp_path, tmp_path / "base", corpus, num_eval_generations=0)
    assert group.exit_codes() == [1, 1], group.output(0) + group.output(1)
    assert json.loads((tmp_path / "result" / "error.json").read_text())["kind"] == "diverged"
