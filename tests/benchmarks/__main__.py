"""Measures phiflow against what a person would use instead, on this machine, and prints ratios with their spread.

python -m tests.benchmarks {trainer,data,help} [options]      (from .venv; see --help of each)
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys

from tasks.platforms.errors import PhiflowError
from tests.benchmarks.runner import BenchmarkError

BENCHMARKS = {
    "trainer": ("trainer_speed", "the trainer against the tutorial's script: tokens a second, memory, held-out loss"),
    "data": ("data_preparation", "chats to packed, masked tokens, against TRL's own preparation"),
    "help": ("help_time", "phiflow --help against an empty Python"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one benchmark."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(dest="benchmark", required=True)
    given = list(sys.argv[1:] if arguments is None else arguments)
    for name, (module, about) in BENCHMARKS.items():
        command = commands.add_parser(name, help=about, description=about)
        command.add_argument("--json", action="store_true", help="one JSON document on standard output")
        if given[:1] == [name]:
            importlib.import_module(f"tests.benchmarks.{module}").add_options(command)
    options = parser.parse_args(given)
    try:
        report = importlib.import_module(f"tests.benchmarks.{BENCHMARKS[options.benchmark][0]}").run(options)
    except (BenchmarkError, PhiflowError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(json.dumps(report.values, indent=1) if options.json else "\n".join(report.lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
