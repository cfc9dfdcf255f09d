"""An emulator of Azure Machine Learning on this machine: the real SDK against it, jobs and endpoints run for real.

    python -m tests.azure_emulator --state DIR --log FILE --ready FILE

When it listens, the ready file has its address and, as `env`, the variables with which a process reaches it.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from pathlib import Path

from tests.azure_emulator.azurite import NoAzuriteError
from tests.azure_emulator.server import Emulator


def main(arguments: list[str]) -> int:
    """Run until SIGTERM or Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.azure_emulator", description=__doc__.splitlines()[0])
    parser.add_argument("--state", required=True, help="folder of everything it keeps; used again, it goes on")
    parser.add_argument("--log", required=True, help="file that gets a line of JSON for each exchange")
    parser.add_argument("--ready", required=True, help="file that is written when it listens")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, kept with the state")
    parser.add_argument("--empty", action="store_true", help="begin with a subscription that has nothing in it")
    parser.add_argument("--home", default=os.environ.get("PHIFLOW_HOME") or ".phiflow", help="has built environments")
    parser.add_argument("--monitor-lag", type=float, default=3.0, help="seconds until metrics show a request")
    parser.add_argument("--server-source", default="", help="folder with a stand-in for deployments/server")
    options = parser.parse_args(arguments)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    try:
        emulator = Emulator(options)
        emulator.start()
    except NoAzuriteError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    _write(Path(options.ready), json.dumps({"url": emulator.url, "pid": os.getpid(), "env": emulator.env}, indent=1))
    ended.wait()
    emulator.stop()
    return 0


def _write(file: Path, text: str) -> None:
    """Whole or not at all; it has a secret of this emulator, so it is for its owner only."""
    temporary = file.with_name(f".{file.name}.{os.getpid()}")
    temporary.touch(mode=0o600)
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, file)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
