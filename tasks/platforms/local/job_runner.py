"""Runs one job detached: records itself, waits for a slot, runs the command, records how it ended.

Started by `jobs.py` as a script, standard library only. It outlives whoever started it; SIGTERM is
passed on to the command, which then writes a checkpoint.

Usage: job_runner.py JOB_FOLDER SLOTS_FOLDER NUM_SLOTS -- COMMAND...
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, Any

LOW_PRIORITY = 5  # a serving model keeps its latency while a job trains
_SLOT_POLL_SECONDS = 0.5


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write the file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value), encoding="utf-8")
    os.replace(temporary, path)


def take_slot(folder: Path, num_slots: int) -> IO[str]:
    """Wait for a free slot; the returned file's lock is the slot, freed by the kernel when we end."""
    folder.mkdir(parents=True, exist_ok=True)
    while True:
        for number in range(num_slots):
            slot = (folder / f"slot-{number}.lock").open("w")
            try:
                fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return slot
            except BlockingIOError:
                slot.close()
        time.sleep(_SLOT_POLL_SECONDS)


def die_with_parent() -> None:
    """Ask Linux to end the command when this process is killed, so that a lost job writes a checkpoint."""
    os.nice(LOW_PRIORITY)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def main(arguments: list[str]) -> int:
    """Run the job of the given folder and return its exit status."""
    split = arguments.index("--")
    job, slots, num_slots = Path(arguments[0]), Path(arguments[1]), int(arguments[2])
    alive = (job / "alive.lock").open("w")
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0  # the job has its one process already
    child: subprocess.Popen[bytes] | None = None
    stopping = False

    def stop(number: int, frame: object) -> None:
        nonlocal stopping
        stopping = True
        if child is None:
            write_json(job / "exit.json", {"returncode": -number, "ended": time.time()})
            os._exit(128 + number)
        child.send_signal(number)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    write_json(job / "process.json", {"pid": os.getpid(), "started": time.time()})
    slot = take_slot(slots, num_slots)
    write_json(job / "slot.json", {"slot": slot.name, "started": time.time()})
    # The command holds both locks too: a job whose runner was killed is alive until its command has ended.
    locks = (alive.fileno(), slot.fileno())
    child = subprocess.Popen(arguments[split + 1 :], preexec_fn=die_with_parent, pass_fds=locks)
    if stopping:
        child.send_signal(signal.SIGTERM)
    returncode = child.wait()
    write_json(job / "exit.json", {"returncode": returncode, "ended": time.time()})
    return max(returncode, 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
