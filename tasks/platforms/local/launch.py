"""Start one command: secrets from a file, priority, exit record, respawn delay. Standard library only.

Run as a file by any Python, so that it needs nothing installed:

    launch.py [--env-file SECRETS.json] [--exit-file F] [--nice N] [--detach] -- COMMAND ...
    launch.py --program PROGRAM.json

Without an exit file the command replaces this process (exec). With one, this process stays as its parent,
passes SIGTERM and SIGINT on, and writes {"returncode", "ended"} when it ends; a returncode below zero is the
signal that ended it. When this process is killed the command dies with it (on Linux; elsewhere, whoever ends
the job ends its process group), so "no record and no process" always means killed.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

CANNOT_EXECUTE = 127
# A program that lived shorter than this is failing, and each failure in a row doubles the wait before the
# next start; the longest wait keeps a repaired program's return within 20 seconds.
HEALTHY_SECONDS = 60.0
LONGEST_DELAY_SECONDS = 12.0


def start_token(pid: int) -> str:
    """Return what tells this process from any earlier or later one with the same pid; "" when there is none.

    On Linux the boot and the clock tick of its start, which no change of the wall clock can move.
    """
    if sys.platform == "linux":
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
            boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""
        # The command's name, in parentheses, may hold spaces; field 22 counts from before it.
        return f"{boot[:8]}-{stat.rpartition(')')[2].split()[19]}"
    environment = {**os.environ, "LC_ALL": "C"}
    listing = ["ps", "-o", "lstart=", "-p", str(pid)]
    shown = subprocess.run(listing, capture_output=True, text=True, env=environment)
    return " ".join(shown.stdout.split())


def _fail(message: str) -> NoReturn:
    print(f"launch: {message}", file=sys.stderr, flush=True)
    raise SystemExit(CANNOT_EXECUTE)


def _write(path: Path, value: dict[str, Any]) -> None:
    """Write JSON atomically; this file stands alone, so it brings its own few lines for it."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _read_env_file(path: Path) -> dict[str, str]:
    try:
        mode = path.stat().st_mode & 0o777
        if mode & 0o077:
            _fail(f"the secrets file '{path}' has mode {mode:o}; run: chmod 600 '{path}'")
        values = json.loads(path.read_text(encoding="utf-8"))
        return {str(name): str(value) for name, value in values.items()}
    except (OSError, ValueError, AttributeError) as error:
        _fail(f"cannot read the secrets file '{path}': {error}")


def _execute(command: Sequence[str], environment: dict[str, str]) -> NoReturn:
    sys.stdout.flush()
    # Python ignores it, and what a process ignores is inherited.
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    try:
        os.execvpe(command[0], list(command), environment)
    except OSError as error:
        _fail(f"cannot start '{command[0]}': {error.strerror}")


def _death_with_parent() -> Callable[[], None]:
    """Return what makes Linux kill the calling process when its parent, now this process, ends in any way."""
    if sys.platform != "linux":
        return lambda: None
    import ctypes

    parent = os.getpid()
    library = ctypes.CDLL(None, use_errno=True)
    set_parent_death_signal = 1

    def arrange() -> None:
        library.prctl(set_parent_death_signal, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(CANNOT_EXECUTE)

    return arrange


def _run_and_record(command: Sequence[str], environment: dict[str, str], exit_file: Path) -> int:
    """Run the command to its end, write how it ended, and return its exit status."""
    die_with_parent = _death_with_parent()
    forwarded = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}
    # Held back until there is a child to pass them to: one that comes during the start is not lost.
    signal.pthread_sigmask(signal.SIG_BLOCK, forwarded)

    def prepare() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
        die_with_parent()

    try:
        child = subprocess.Popen(command, env=environment, preexec_fn=prepare)
    except OSError as error:
        _fail(f"cannot start '{command[0]}': {error.strerror}")
    for number in forwarded:
        signal.signal(number, lambda received, _: child.send_signal(received))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, forwarded)
    returncode = child.wait()
    _write(exit_file, {"returncode": returncode, "ended": time.time()})
    return returncode if returncode >= 0 else 128 - returncode


def respawn_delay(starts: Sequence[float], now: float) -> float:
    """Return the seconds to wait before a start, from the times of the starts before it.

    The first two starts are immediate; then 1, 2, 4, 8 and at most 12 seconds while each life was short.
    """
    failures = 0
    later = now
    for start in reversed(starts):
        if later - start > HEALTHY_SECONDS:
            break
        failures += 1
        later = start
    return 0.0 if failures < 2 else min(2.0 ** (failures - 2), LONGEST_DELAY_SECONDS)


def _run_program(definition: Path) -> NoReturn:
    """Become the supervised program that a definition file describes, recording this process first."""
    try:
        program = json.loads(definition.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        _fail(f"cannot read '{definition}': {error}")
    record_file = Path(program["record"])
    try:
        record = json.loads(record_file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {"count": 0, "starts": []}
    now = time.time()
    delay = respawn_delay(record["starts"], now)
    process = {"pid": os.getpid(), "started": start_token(os.getpid()), "count": record["count"] + 1}
    # A full disk must not keep a service down; what is lost is one record, and the environment marks it too.
    with contextlib.suppress(OSError):
        starts = [*record["starts"][-9:], now + delay]
        _write(record_file, {**process, "starts": starts, "waits_until": now + delay})
    if delay:
        print(f"launch: the last starts all ended soon; next start in {delay:g} s", flush=True)
        time.sleep(delay)
    environment = {**os.environ, **program["environment"]}
    if program["env_file"]:
        environment |= _read_env_file(Path(program["env_file"]))
    try:
        os.chdir(program["cwd"])
    except OSError as error:
        _fail(f"cannot enter '{program['cwd']}': {error.strerror}")
    _execute(program["command"], environment)


def main() -> int:
    """Parse the command line and start the command."""
    parser = argparse.ArgumentParser(prog="launch", description="Start one command.")
    parser.add_argument("--program", type=Path, help="definition file of a supervised program")
    parser.add_argument("--env-file", type=Path, help="JSON object of extra environment variables, mode 600")
    parser.add_argument("--exit-file", type=Path, help="where to record how the command ended")
    parser.add_argument("--nice", type=int, default=0, help="lower the priority by this much, 0 to 19")
    parser.add_argument("--detach", action="store_true", help="continue in the background and print the pid")
    parser.add_argument("command", nargs="*")
    options = parser.parse_args()
    if options.program:
        _run_program(options.program)
    if not options.command:
        _fail("no command given; write it after --")
    if options.detach:
        pid = os.fork()
        if pid:
            print(pid, start_token(pid), flush=True)
            # Not exit(): the child shares what is buffered and must be left alone.
            os._exit(0)
        os.setsid()
        # The pipe on which the pid was printed ends here; from now on all output goes to the log.
        os.dup2(2, 1)
    try:
        environment = dict(os.environ)
        if options.env_file:
            environment |= _read_env_file(options.env_file)
        if options.nice:
            os.nice(options.nice)
        if options.exit_file:
            return _run_and_record(options.command, environment, options.exit_file)
        _execute(options.command, environment)
    except SystemExit:
        if options.exit_file:
            _write(options.exit_file, {"returncode": CANNOT_EXECUTE, "ended": time.time()})
        raise


if __name__ == "__main__":
    sys.exit(main())
