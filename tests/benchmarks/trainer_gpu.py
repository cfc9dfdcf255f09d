"""The trainer and the tutorial's script on one GPU: Phi-3.5-mini's architecture at full size, random weights.

Each side trains until enough steps are timed, then it is ended: nothing is saved, and a random model has no held-out
loss worth scoring. Ours is held to the 76 GiB that the tutorial's A100 leaves a process, so that it chooses what it
would there; the baselines have the whole GPU. Reached of the matrix rate: the work that a step needs, without
recomputation, over the rate of the bare products in the same run.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from tests.benchmarks.conversations import write_conversations
from tests.benchmarks.runner import (
    BenchmarkError,
    Numbers,
    Report,
    Side,
    alternate,
    machine,
    machine_line,
    median,
    ratio,
    run_process,
    say,
    side_environment,
    training_python,
)
from tests.benchmarks.trainer_speed import BFD, OURS, WRAPPED, Work, baseline_command, trainer_command

LORA, QLORA = "phiflow lora", "phiflow qlora"
METHODS = {OURS: "full", LORA: "lora", QLORA: "qlora"}
TARGETS = {WRAPPED: 2.4, BFD: 5.0}
LEAST_SHARE = 0.60
A100_BYTES = 76 * 2**30
_MAX_WORDS = 1_300
_NUM_STEPS, _NUM_WARM_UP, _MOST_SECONDS, _START_SECONDS = 24, 8, 60.0, 240.0
# Phi-3.5-mini: parameters of the layers and of the output layer; hidden size and number of layers.
_BLOCKS, _HEAD, _HIDDEN, _LAYERS = 3_623_878_656, 98_500_608, 3072, 32
_QUIET = {"eval_strategy": "no", "num_eval_generations": 0, "preview_examples": 0, "save_steps": 1_000_000}


def run(options: argparse.Namespace) -> Report:
    """Measure, or say in one line that there is no GPU."""
    python = training_python()
    computer = machine(python)
    if not computer.get("gpu"):
        line = "no GPU here: `python -m tests.benchmarks trainer --device cuda` needs one NVIDIA GPU of 80 GB or more"
        return Report([line], {"machine": computer, "skipped": line})
    with tempfile.TemporaryDirectory(prefix="phiflow-benchmark-") as folder:
        say("measuring the matrix rate")
        rate = matrix_rate(python, Path(folder))
        work, mean_length = prepare(python, Path(folder), options.chats or 400)
        fraction = min(1.0, A100_BYTES / computer["gpu_memory_bytes"])
        sides = [
            *(ours(work, name, method, fraction) for name, method in METHODS.items()),
            *(baseline(work, name) for name in (WRAPPED, BFD)),
        ]
        seen = alternate(sides, options.rounds or 1, Path(folder) / "rounds")
    return report(work, mean_length, rate, seen, computer)


def matrix_rate(python: Path, folder: Path) -> float:
    """FLOP/s of the bare products."""
    run_process([python, "-m", "tests.benchmarks.matrix_rate"], folder)
    return float(json.loads((folder / "log.txt").read_text(encoding="utf-8").splitlines()[-1])["flops_per_second"])


def prepare(python: Path, folder: Path, num_chats: int) -> tuple[Work, float]:
    """Conversations and the full-size model; with the mean number of tokens that a token's conversation has."""
    train_file = write_conversations(folder / "train.jsonl", num_chats, seed=0, max_words=_MAX_WORDS)
    eval_file = write_conversations(folder / "eval.jsonl", 4, seed=7, max_words=_MAX_WORDS)
    model, count = folder / "model", folder / "count.json"
    models = [python, "-m", "tests.benchmarks.models"]
    say("writing a model of 3.8 billion random parameters")
    run_process([*models, "--corpus", train_file, "--output-dir", model, "--shape", "phi-3.5-mini"], folder)
    run_process([*models, "--count-with", model, "--chats", train_file, "--output", count], folder)
    told = json.loads(count.read_text(encoding="utf-8"))
    work = Work(
        python=python,
        model=model,
        train_file=train_file,
        eval_file=eval_file,
        num_passes=1,
        num_tokens=told["num_tokens"],
        num_supervised=told["num_supervised"],
    )
    return work, told["mean_length_of_token"]


def ours(work: Work, name: str, method: str, fraction: float) -> Side:
    """phiflow's trainer with its own choices within an A100's memory."""

    def measure(folder: Path) -> Numbers:
        settings = {"num_train_epochs": 1, "method": method, **_QUIET}
        command = trainer_command(work.python, work.model, (work.train_file, work.eval_file), folder, settings)
        limit = {"PYTORCH_CUDA_ALLOC_CONF": f"per_process_memory_fraction:{fraction:.4f}"}
        return timed(work, command, folder, folder / "logs" / "events.jsonl", limit)

    return Side(name, measure)


def baseline(work: Work, name: str) -> Side:
    """The tutorial's script with one of the two ways to pack."""

    def measure(folder: Path) -> Numbers:
        command = [*baseline_command(work, name, folder), "--num_proc", "1"]
        return timed(work, command, folder, folder / "report.steps.jsonl", {})

    return Side(name, measure)


def timed(
    work: Work, command: Sequence[str | Path], folder: Path, steps_file: Path, environment: Mapping[str, str]
) -> Numbers:
    """Run a side until its steps are timed, end it, and return its rate.

    Raises:
        BenchmarkError: it ended by itself before it had done enough steps.
    """
    log = folder / "log.txt"
    with log.open("wb") as output, memory_in_use() as used:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=side_environment() | dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            steps = _await_steps(process, steps_file)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if len(steps) < 3:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        raise BenchmarkError("\n".join([f"{folder.name} did {len(steps)} steps", *said]))
    first = next((step for step in steps if step[0] >= _NUM_WARM_UP), steps[len(steps) // 3])
    last = steps[-1]
    per_second = (last[0] - first[0]) / (last[1] - first[1]) / last[2]
    return {
        "num_steps": last[0],
        "seconds": last[1] - first[1],
        "tokens_per_second": work.num_tokens * per_second,
        "supervised_tokens_per_second": work.num_supervised * per_second,
        "peak_memory_bytes": max(used, default=0),
        "allocated_bytes": max(step[3] for step in steps),
    }


def _await_steps(process: subprocess.Popen[bytes], file: Path) -> list[tuple[int, float, int, float]]:
    """Steps as (number, time, steps of one pass, allocated bytes), until there are enough or the time is up."""
    begun, steps = time.monotonic(), []
    while process.poll() is None:
        steps = _steps(file)
        trained = steps[-1][1] - steps[0][1] if steps else 0.0
        if steps and (steps[-1][0] >= _NUM_STEPS or trained > _MOST_SECONDS):
            break
        if not steps and time.monotonic() - begun > _START_SECONDS:
            break
        time.sleep(0.2)
    return _steps(file)


def _steps(file: Path) -> list[tuple[int, float, int, float]]:
    found = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else []:
        with suppress(ValueError):
            told = json.loads(line)
            if told.get("event", "progress") == "progress":
                at = told["seconds"] if "seconds" in told else datetime.fromisoformat(told["time"]).timestamp()
                found.append((told["step"], at, told["num_steps"], told.get("memory_bytes") or 0))
    return found


@contextmanager
def memory_in_use():
    """A list that fills with the bytes in use on the GPU, of every process, while within."""
    command = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "-lms", "200"]
    used: list[int] = []
    with tempfile.TemporaryFile("w+") as output:
        watcher = subprocess.Popen(command, stdout=output)
        try:
            yield used
        finally:
            watcher.terminate()
            watcher.wait()
            output.seek(0)
            used += [int(line) * 2**20 for line in output.read().split() if line.isdigit()]


def flops_per_token(name: str, supervised_share: float, mean_length: float) -> float:
    """Work of a training step a token, without recomputation.

    6 N for weights that learn, 4 N where only adapters do, the output layer on supervised tokens alone; attention,
    causal within a conversation of s tokens, 6 L h s.
    """
    per_weight = 4.0 if name in (LORA, QLORA) else 6.0
    return per_weight * (_BLOCKS + supervised_share * _HEAD) + 6.0 * _LAYERS * _HIDDEN * mean_length


def report(
    work: Work, mean_length: float, rate: float, seen: dict[str, list[Numbers]], computer: dict[str, Any]
) -> Report:
    """Each side's numbers, then the targets."""
    share = work.num_supervised / work.num_tokens
    lines = [
        machine_line(computer),
        f"matrix rate {rate / 1e12:.0f} TFLOP/s in bfloat16; {work.num_tokens:,} tokens, {share:.0%} supervised",
        f"{'':<18}{'supervised/s':>13}{'tokens/s':>10}{'of the rate':>13}{'GPU, GiB':>10}{'allocated':>11}{'steps':>7}",
    ]
    shares = {}
    for name, rounds in seen.items():
        tokens = median(rounds, "tokens_per_second")
        shares[name] = tokens * flops_per_token(name, share, mean_length) / rate
        lines.append(
            f"{name:<18}{median(rounds, 'supervised_tokens_per_second'):>13.0f}{tokens:>10.0f}{shares[name]:>13.1%}"
            f"{median(rounds, 'peak_memory_bytes') / 2**30:>10.1f}{median(rounds, 'allocated_bytes') / 2**30:>11.1f}"
            f"{median(rounds, 'num_steps'):>7.0f}"
        )
    fits = max(numbers["peak_memory_bytes"] for numbers in seen[OURS]) <= A100_BYTES
    lines.append(
        f"{OURS}: {shares[OURS]:.1%} of the matrix rate, target {LEAST_SHARE:.0%}: {_met(shares[OURS] >= LEAST_SHARE)}"
    )
    lines.append(f"{OURS}: within {A100_BYTES / 2**30:.0f} GiB: {_met(fits)}")
    ratios = {name: ratio(seen[OURS], seen[name], "supervised_tokens_per_second") for name in TARGETS}
    lines += [
        f"{OURS} over {name}: tokens/s {found}, target {TARGETS[name]:g}: {_met(found.value >= TARGETS[name])}"
        for name, found in ratios.items()
    ]
    values = {"machine": computer, "matrix_flops_per_second": rate, "rounds": seen, "share_of_rate": shares}
    return Report(lines, values | {"ratios": {name: [r.value, r.least, r.most] for name, r in ratios.items()}})


def _met(is_met: bool) -> str:
    return "met" if is_met else "MISSED"
