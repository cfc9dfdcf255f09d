"""Several processes from one command: started, signalled, ended together, told of once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from conftest import SETTINGS

pytest.importorskip("torch", reason="runs in the training environment")

from trainer.launch import num_processes_to_start

ROOT = Path(__file__).parents[3]


@pytest.fixture
def launched(tiny_model, corpus, tmp_path):
    """A long training in two processes, past its first steps; the launcher, its processes and its folder."""
    settings = SETTINGS | {"max_steps": 50_000, "save_steps": 50_000, "per_device_train_batch_size": 2}
    (tmp_path / "train.json").write_text(json.dumps(settings | {"num_eval_generations": 0}))
    command = [
        sys.executable, "-m", "trainer", "--num-processes", "2", "--base-model", str(tiny_model),
        "--train-file", str(corpus), "--eval-file", str(corpus), "--model-output-dir", str(tmp_path / "model"),
        "--checkpoint-dir", str(tmp_path / "checkpoints"), "--log-dir", str(tmp_path / "logs"),
        "--config", str(tmp_path / "train.json"),
    ]  # fmt: skip
    environment = os.environ | {"PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    launcher = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)
    events, deadline = tmp_path / "logs" / "events.jsonl", time.monotonic() + 300
    try:
        while not (events.exists() and '"progress"' in events.read_text()):
            assert launcher.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        ranks = [process for process in psutil.Process(launcher.pid).children() if "trainer" in process.cmdline()]
        assert len(ranks) == 2
        yield launcher, sorted(ranks, key=lambda process: int(process.environ()["RANK"])), tmp_path
    finally:
        launcher.kill()
        launcher.communicate()


def ended(launcher: subprocess.Popen[str], ranks: list[psutil.Process]) -> tuple[int, list[str]]:
    """The exit code and the error lines, once all processes are gone."""
    _, errors = launcher.communicate(timeout=120)
    assert psutil.wait_procs(ranks, timeout=10)[1] == []
    return launcher.returncode, [line for line in errors.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_a_signal_to_the_launcher_is_a_checkpoint_and_code_75(launched):
    """SIGTERM reaches all processes; they leave one whole checkpoint, code 75 and one line."""
    launcher, ranks, folder = launched
    launcher.send_signal(signal.SIGTERM)
    code, lines = ended(launcher, ranks)
    assert code == 75 and lines == [
        "error: The training was stopped by SIGTERM. Run the same command again; it goes on from the last checkpoint."
    ]
    assert len(list((folder / "checkpoints").glob("checkpoint-*/complete.json"))) == 1
    assert not list(folder.glob("phiflow-launch-*"))


@pytest.mark.slow
def test_a_killed_process_ends_all_in_one_line(launched):
    """When one process is killed the other ends too, and the launcher says which."""
    launcher, ranks, _ = launched
    ranks[1].kill()
    code, lines = ended(launcher, ranks)
    assert code == 1 and len(lines) == 1 and "Process 1 of 2 was killed by SIGKILL" in lines[0]


@pytest.mark.slow
def test_no_process_outlives_its_launcher(launched):
    """A launcher killed with SIGKILL takes its processes with it."""
    launcher, ranks, _ = launched
    launcher.kill()
    ended(launcher, ranks)


def test_a_platform_has_started_the_processes(monkeypatch):
    """Where WORLD_SIZE is set nothing more is started, whatever was asked for."""
    monkeypatch.setenv("WORLD_SIZE", "4")
    assert num_processes_to_start(2) == 1
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.delenv("RANK", raising=False)
    assert num_processes_to_start(2) == 2
