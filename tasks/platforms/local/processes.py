"""Processes by identity: a pid and its start, so that a reused pid is never mistaken for the one recorded."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil

from tasks.platforms.errors import PhiflowError
from tasks.platforms.local import files, launch

LAUNCH = Path(launch.__file__).resolve()
# What marks the processes of a supervised program and all they start; a detached process leaves it behind.
SUPERVISED_HOME = "PHIFLOW_SUPERVISED_HOME"
SUPERVISED_PROGRAM = "PHIFLOW_SUPERVISED_PROGRAM"
_LOW_PRIORITY = 10
_POLL_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process on this machine, in this boot.

    Attributes:
        started: an opaque token of its start, from `launch.start_token`.
    """

    pid: int
    started: str

    def as_json(self) -> dict[str, Any]:
        """Return the form that `from_json` reads."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> ProcessId:
        """Rebuild an identity; further keys are ignored."""
        return cls(int(value["pid"]), str(value["started"]))


def identify(pid: int) -> ProcessId | None:
    """Return the identity of the process that has this pid now, or None."""
    started = launch.start_token(pid)
    return ProcessId(pid, started) if started else None


def current() -> ProcessId:
    """Return the identity of this process."""
    return ProcessId(os.getpid(), launch.start_token(os.getpid()))


def is_alive(process: ProcessId) -> bool:
    """Say whether this very process still runs; a zombie has ended."""
    if not process.started or launch.start_token(process.pid) != process.started:
        return False
    try:
        return psutil.Process(process.pid).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
    except psutil.AccessDenied:
        return True


def read_recorded(path: Path) -> ProcessId | None:
    """Return the process that a JSON file records under "pid" and "started", when it is still alive."""
    try:
        process = ProcessId.from_json(files.read_json(path, {}))
    except (KeyError, TypeError, ValueError, PhiflowError):
        return None
    return process if is_alive(process) else None


def find_marked(home: Path) -> dict[ProcessId, str]:
    """Return the live processes that belong to the services of a state folder, with their program's name.

    The name is "" for the supervisor itself.
    """
    found = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            environment = process.environ()
            identity = identify(process.pid) if environment.get(SUPERVISED_HOME) == str(home) else None
            if identity and is_alive(identity):
                found[identity] = environment.get(SUPERVISED_PROGRAM, "")
    return found


def lineage() -> set[int]:
    """Return the pids of this process and of its ancestors."""
    with contextlib.suppress(psutil.Error):
        return {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    return {os.getpid()}


def _tree(root: ProcessId) -> set[ProcessId]:
    """Return the live processes of a root's tree and process group; none of a stranger that took its pid."""
    pids = {root.pid}
    alive = is_alive(root)
    if not alive and psutil.pid_exists(root.pid) and launch.start_token(root.pid) != root.started:
        return set()
    if alive:
        with contextlib.suppress(psutil.Error):
            pids |= {child.pid for child in psutil.Process(root.pid).children(recursive=True)}
    # A group keeps its leader's pid from being reused, so what is in it is the recorded process's own.
    for pid in psutil.pids():
        with contextlib.suppress(OSError):
            if os.getpgid(pid) == root.pid:
                pids.add(pid)
    members = (identify(pid) for pid in pids - lineage())
    return {member for member in members if member and is_alive(member)}


def _send(members: Iterable[ProcessId], number: signal.Signals) -> None:
    for member in members:
        with contextlib.suppress(OSError):
            if launch.start_token(member.pid) == member.started:
                os.kill(member.pid, number)


def wait_until_ended(processes: Iterable[ProcessId], timeout_seconds: float) -> set[ProcessId]:
    """Wait for processes to end and return those that still run after the wait."""
    deadline = time.monotonic() + timeout_seconds
    remaining = {process for process in processes if is_alive(process)}
    while remaining and time.monotonic() < deadline:
        time.sleep(_POLL_SECONDS)
        remaining = {process for process in remaining if is_alive(process)}
    return remaining


def terminate_tree(process: ProcessId, grace_seconds: float = 10.0) -> None:
    """End a process, all it started and its process group: politely first, then with SIGKILL.

    The root is asked first, so that it can end its own in order; what is left when it has gone, or after half
    the grace, is asked too. Safe to call when it has ended already, and when its pid belongs to another now.
    The calling process and its ancestors are spared.
    """
    members = _tree(process)
    if process in members:
        _send([process], signal.SIGTERM)
        wait_until_ended([process], grace_seconds / 2)
        members |= _tree(process)
    members = {member for member in members if is_alive(member)}
    _send(members, signal.SIGTERM)
    wait_until_ended(members, grace_seconds / 2)
    kill_deadline = time.monotonic() + 5.0
    remaining = {member for member in members | _tree(process) if is_alive(member)}
    while remaining and time.monotonic() < kill_deadline:
        _send(remaining, signal.SIGKILL)
        wait_until_ended(remaining, 0.5)
        remaining = {member for member in remaining | _tree(process) if is_alive(member)}


def spawn_detached(
    command: Sequence[str],
    *,
    cwd: Path,
    log_file: Path,
    env: Mapping[str, str] | None = None,
    env_file: Path | None = None,
    exit_file: Path | None = None,
    low_priority: bool = False,
) -> ProcessId:
    """Start a process that outlives the caller, in its own session, writing to a log file.

    It is nobody's child, so no tree that is ended later takes it along. Its identity is that of the small
    parent that records its exit (see `launch`), which is the leader of its process group.

    Args:
        env: the whole environment; None for the caller's own.
        env_file: JSON file, mode 600, with further variables: what must stay out of `ps` and of logs.
        exit_file: where {"returncode", "ended"} is written at the end; a stale one is removed first.
        low_priority: leave the processor to others when they want it.
    Raises:
        PhiflowError: the process could not be started.
    """
    environment = dict(os.environ if env is None else env)
    environment.pop(SUPERVISED_HOME, None)
    environment.pop(SUPERVISED_PROGRAM, None)
    starter = [sys.executable, "-I", "-S", str(LAUNCH), "--detach"]
    if env_file:
        starter += ["--env-file", str(env_file.absolute())]
    if exit_file:
        exit_file.unlink(missing_ok=True)
        exit_file.parent.mkdir(parents=True, exist_ok=True)
        starter += ["--exit-file", str(exit_file.absolute())]
    if low_priority:
        starter += ["--nice", str(_LOW_PRIORITY)]
    try:
        log_file.parent.mkdir(parents=True, exist_ok=True)
        with log_file.open("ab") as log:
            started = subprocess.run(
                [*starter, "--", *command],
                cwd=cwd,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                check=False,
            )
    except OSError as error:
        raise PhiflowError(
            f"Could not start '{command[0]}' in '{cwd}': {error.strerror}.",
            fix=f"Check that both this folder and '{log_file.parent}' can be used.",
        ) from error
    pid, _, token = started.stdout.strip().partition(" ")
    if not pid or not token:
        raise PhiflowError(f"Could not start '{command[0]}'.", fix=f"Read '{log_file}'.")
    return ProcessId(int(pid), token)


def read_exit(exit_file: Path) -> int | None:
    """Return how a detached process ended, below zero for a signal; None while there is no record."""
    record = files.read_json(exit_file, None)
    return None if record is None else int(record["returncode"])
