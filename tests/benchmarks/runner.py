"""What every benchmark shares: sides that run in turn, ratios with their spread, and a line about the machine.

A machine that is busy slows whoever runs then, so the sides alternate, and only ratios are compared.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.platforms.local.environments import SOURCES, ensure_environment
from tasks.platforms.local.state import home_folder

ROOT = Path(__file__).resolve().parents[2]
Numbers = dict[str, float]


class BenchmarkError(Exception):
    """A side did not do its work; the message says which, and what it said last."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of those compared.

    Args:
        measure: does the work once, in an empty folder, and returns what was measured.
    """

    name: str
    measure: Callable[[Path], Numbers]


@dataclass(frozen=True, slots=True)
class Report:
    """What a benchmark found: lines for a person, values for a program."""

    lines: list[str]
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Ratio:
    """How many times the other's: of the medians, and the least and most of any round."""

    value: float
    least: float
    most: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.least:.2f} to {self.most:.2f})"


def alternate(sides: Sequence[Side], num_rounds: int, folder: Path) -> dict[str, list[Numbers]]:
    """Let the sides work in turn, each round beginning with another one; the numbers of each by its name."""
    seen: dict[str, list[Numbers]] = {side.name: [] for side in sides}
    for number in range(num_rounds):
        start = number % len(sides)
        for side in [*sides[start:], *sides[:start]]:
            work = folder / f"round-{number + 1}" / side.name.replace(" ", "-")
            work.mkdir(parents=True)
            begun = time.monotonic()
            seen[side.name].append(side.measure(work))
            say(f"round {number + 1} of {num_rounds}: {side.name}, {time.monotonic() - begun:.0f} s")
    return seen


def ratio(ours: Sequence[Numbers], theirs: Sequence[Numbers], name: str) -> Ratio:
    """Our number over theirs, round by round and of the medians."""
    of_rounds = [one[name] / other[name] for one, other in zip(ours, theirs, strict=True)]
    return Ratio(median(ours, name) / median(theirs, name), min(of_rounds), max(of_rounds))


def median(rounds: Sequence[Numbers], name: str) -> float:
    """The median of a number over the rounds."""
    return statistics.median(numbers[name] for numbers in rounds)


def training_python() -> Path:
    """The interpreter of the training environment, which is built when there is none."""
    return ensure_environment(home_folder(), SOURCES / "training", log=say).python


def run_process(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str] | None = None
) -> tuple[float, int]:
    """Run one process of a side to its end, its output in folder/log.txt.

    Returns:
        Wall-clock seconds, and the peak resident memory of the process in bytes.
    Raises:
        BenchmarkError: it failed.
    """
    log, begun = folder / "log.txt", time.perf_counter()
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            env=side_environment() | dict(environment or {}),
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        said = log.read_text(encoding="utf-8", errors="replace").splitlines()[-12:]
        raise BenchmarkError(
            f"exit code {process.returncode} of {' '.join(map(str, command))[:300]}\n" + "\n".join(said)
        )
    return time.perf_counter() - begun, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def side_environment() -> dict[str, str]:
    """What every side gets: this project on the path, no network, no progress bars."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "PHIFLOW_JOB"))}
    return kept | {
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "DISABLE_MLFLOW_INTEGRATION": "TRUE",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def machine(python: Path) -> dict[str, Any]:
    """Processor, cores, torch and GPU, as the training environment sees them."""
    told = subprocess.run([python, "-c", _MACHINE], capture_output=True, text=True, env=side_environment())
    values = json.loads(told.stdout) if told.returncode == 0 else {}
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"processor": _processor(), "cores": cores, **values}


def machine_line(values: Mapping[str, Any]) -> str:
    """The machine for a person."""
    gpu = f", {values['gpu']} {values['gpu_memory_bytes'] / 2**30:.0f} GiB" if values.get("gpu") else ", no GPU"
    return f"machine: {values['processor']}, {values['cores']} cores, torch {values.get('torch', 'unknown')}{gpu}"


def say(line: str) -> None:
    """Tell how far it is, on standard error."""
    print(line, file=sys.stderr, flush=True)


_MACHINE = """
import json, torch
gpu = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__,
    "gpu": torch.cuda.get_device_name(0) if gpu else "",
    "gpu_memory_bytes": torch.cuda.get_device_properties(0).total_memory if gpu else 0,
}))
"""


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
