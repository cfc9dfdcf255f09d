"""How long `phiflow --help` takes, beside an empty Python process on the same machine at the same time.

Usage: python tests/benchmarks/help_time.py [ROUNDS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

ROUNDS = 15
COMMANDS = {
    "phiflow --help": [str(Path(sys.executable).parent / "phiflow"), "--help"],
    "python -c pass": [sys.executable, "-c", "pass"],
}


def seconds_of(command: list[str]) -> float:
    """Wall-clock seconds of one process."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def main(rounds: int) -> None:
    """Measure the commands in turn, so that a busy machine slows both, and print what was seen."""
    for command in COMMANDS.values():
        seconds_of(command)
    seen: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, command in COMMANDS.items():
            seen[name].append(seconds_of(command))
    for name, seconds in seen.items():
        print(f"{name}: median {statistics.median(seconds):.3f} s, {min(seconds):.3f} to {max(seconds):.3f} s")
    first, second = (statistics.median(seconds) for seconds in seen.values())
    print(f"ratio of the medians {first / second:.1f}, {rounds} rounds")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)
