"""How long `phiflow --help` takes, beside an empty Python process on the same machine at the same time."""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.benchmarks.runner import Numbers, Report, Side, alternate, median, ratio

COMMANDS = {
    "phiflow --help": [str(Path(sys.executable).parent / "phiflow"), "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """The number of rounds."""
    parser.add_argument("--rounds", type=int, default=15, help="default: %(default)s")


def run(options: argparse.Namespace) -> Report:
    """Measure the commands in turn."""
    sides = [Side(name, lambda _, command=command: _seconds_of(command)) for name, command in COMMANDS.items()]
    for side in sides:
        side.measure(Path())
    with tempfile.TemporaryDirectory() as folder:
        seen = alternate(sides, options.rounds, Path(folder))
    first, second = seen.values()
    found = ratio(first, second, "seconds")
    lines = [f"{name}: median {median(rounds, 'seconds'):.3f} s" for name, rounds in seen.items()]
    lines.append(f"ratio of the medians {found}, {options.rounds} rounds")
    return Report(lines, {"rounds": seen, "ratio": [found.value, found.least, found.most]})


def _seconds_of(command: list[str]) -> Numbers:
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return {"seconds": time.perf_counter() - begun}
