"""Keeps programs running after the command that started them: one supervisord per state folder.

What it adds to the `supervisor` package: definitions that need no escaping, starting twice at once is safe,
back-off for a program that keeps failing (in `launch`), and nothing left behind when supervisord is killed.
Jobs, which end by themselves, are not kept here but started with `processes.spawn_detached`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shlex
import sys
import time
import xmlrpc.client
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.platforms.errors import NotFoundError, PhiflowError
from tasks.platforms.local import files, processes
from tasks.platforms.local.processes import ProcessId
from tasks.platforms.local.supervisord import NoAnswer, Supervisord, can_be_named

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_LOCK_SECONDS = 120.0
_STRAY_GRACE_SECONDS = 10.0
_ENDED_AT_ONCE = 16
_STATES = {0: "stopped", 10: "starting", 20: "running", 40: "stopping"}
_ALREADY_STARTED = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A service to keep running.

    Attributes:
        environment: variables on top of the machine's own; readable by this user alone.
        env_file: JSON file, mode 600, of variables that are secrets; a changed content restarts the program.
        stop_seconds: how long it may take to end in order before it is killed.
    """

    name: str
    command: tuple[str, ...]
    cwd: Path
    log_file: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    env_file: Path | None = None
    stop_seconds: int = 10

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"program name {self.name!r} is not lower-case letters, digits, '.', '_' and '-'")
        if not self.command:
            raise ValueError(f"program {self.name!r} has no command")


@dataclass(frozen=True, slots=True)
class ProgramStatus:
    """How a program is doing.

    Attributes:
        state: running, starting, waiting (for its next start, after failures), failing, stopping or stopped.
        pid: 0 when no process runs.
        restarts: since its definition last changed.
    """

    state: str
    pid: int
    uptime_seconds: float
    restarts: int


class Supervisor:
    """The programs of one state folder.

    Args:
        home: the state folder; everything of the supervisor is under `home/supervisor`.
    """

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()
        self._folder = self._home / "supervisor"
        self._programs = self._folder / "programs"
        self._records = self._folder / "run"
        self._daemon = Supervisord(self._home, self._folder)
        self._strays_file = self._folder / "strays.json"

    # What a caller asks for

    def ensure_running(self) -> None:
        """Have supervisord run; after a crash, end what it left behind and start every program again."""
        if self._daemon.answers() and not self._strays_file.exists():
            return
        with self._lock():
            self._ensure_running()

    def ensure_program(self, program: Program) -> bool:
        """Have a program run with exactly this definition, and say whether it was (re)started for it.

        A running program with the same definition is left alone; a changed one restarts only that program.
        """
        with self._lock():
            changed = self._write_definition(program)
            fresh = self._ensure_running()
            added, altered = self._reload()
            if program.name in altered:
                self._end_group(program.name)
            if program.name in altered or program.name in added:
                self._reap([program.name])
                self._record_file(program.name).unlink(missing_ok=True)
                self._daemon.call("addProcessGroup", program.name)
                self._start(program.name)
                return True
            # A supervisord that was started just now has read the definition and may have started it already.
            return self._start(program.name) or changed or fresh

    def remove_program(self, name: str) -> bool:
        """End a program and forget it; say whether there was one."""
        with self._lock():
            known = self._definition_file(name).exists()
            for path in (self._definition_file(name), self._programs / f"{name}.sh"):
                path.unlink(missing_ok=True)
            if self._daemon.answers():
                self._reload()
            self._reap([name])
            self._record_file(name).unlink(missing_ok=True)
            return known

    def restart(self, name: str) -> None:
        """Stop a program and start it again now, whatever it waits for.

        Raises:
            NotFoundError: there is no such program.
        """
        with self._lock():
            if not self._definition_file(name).exists():
                known = ", ".join(self._names()) or "none"
                raise NotFoundError(f"No service is named '{name}'.", fix=f"The services are: {known}.")
            self._ensure_running()
            self._stop(name)
            self._reap([name])
            self._record_file(name).unlink(missing_ok=True)
            self._start(name)

    def programs(self) -> dict[str, ProgramStatus]:
        """Return how every known program is doing; starts nothing."""
        infos = {}
        with contextlib.suppress(*NoAnswer):
            infos = {info["name"]: info for info in self._daemon.call("getAllProcessInfo")}
        return {name: self._status(name, infos.get(name)) for name in self._names()}

    def commands(self) -> dict[str, tuple[str, ...]]:
        """The command of every known program, running or not."""
        return {name: tuple(definition["command"]) for name, definition in self._definitions().items()}

    def stop_all(self) -> None:
        """End every program and supervisord, also what a killed supervisord left; definitions stay."""
        with self._lock():
            daemon = self._daemon.recorded()
            if daemon:
                self._stop_programs()
                self._reap(self._names())
                # It has nothing left to end and nothing to save.
                processes.terminate_tree(daemon, 0.0)
            self._reap(self._names(), everything=True)
            self._daemon.forget()

    def _stop_programs(self) -> None:
        """Ask all programs at once to end, and wait for them as long as the slowest may take."""
        patience = max((value["stop_seconds"] for value in self._definitions().values()), default=0)
        with contextlib.suppress(*NoAnswer):
            pids = [info["pid"] for info in self._daemon.call("getAllProcessInfo") if info["pid"]]
            running = [process for process in map(processes.identify, pids) if process]
            self._daemon.call("stopAllProcesses", False)
            # supervisord itself would notice the end of the last one up to a second later.
            processes.wait_until_ended(running, patience)

    # Definitions

    def _names(self) -> list[str]:
        return sorted(path.stem for path in self._programs.glob("*.json"))

    def _definition_file(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise NotFoundError(f"No service can be named '{name}'.")
        return self._programs / f"{name}.json"

    def _record_file(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _read_definition(self, name: str) -> dict[str, Any]:
        return files.read_json(self._definition_file(name))

    def _write_definition(self, program: Program) -> bool:
        """Write what `launch` reads to become the program, and say whether that changed."""
        secrets = program.env_file.read_bytes() if program.env_file else b""
        log_file = os.path.relpath(program.log_file.absolute(), self._folder)
        if not can_be_named(log_file):
            raise ValueError(f"log file name {log_file!r} holds ' ;', ' #' or a line break")
        definition = {
            "command": list(program.command),
            "cwd": str(program.cwd.absolute()),
            "environment": dict(program.environment),
            "env_file": str(program.env_file.absolute()) if program.env_file else "",
            "env_file_digest": hashlib.sha256(secrets).hexdigest(),
            "log_file": log_file,
            "stop_seconds": program.stop_seconds,
            "record": str(self._record_file(program.name)),
        }
        launcher = [sys.executable, "-I", "-S", str(processes.LAUNCH)]
        script = f"exec {shlex.join([*launcher, '--program', f'programs/{program.name}.json'])}\n"
        definition["digest"] = hashlib.sha256(json.dumps([definition, script]).encode()).hexdigest()[:16]
        self._records.mkdir(parents=True, exist_ok=True)
        path = self._definition_file(program.name)
        if files.read_json(path, {}) == definition:
            return False
        files.write_atomic(self._programs / f"{program.name}.sh", script)
        files.write_json(path, definition, files.SECRET_MODE)
        return True

    def _definitions(self) -> dict[str, dict[str, Any]]:
        return {name: self._read_definition(name) for name in self._names()}

    # Programs of a running supervisord

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return files.file_lock(self._folder / "lock", _LOCK_SECONDS, f"the services of '{self._home}'")

    def _ensure_running(self) -> bool:
        """Have supervisord run, with the lock held, and say whether it was started."""
        if self._daemon.answers():
            self._reap_strays()
            return False
        self._reap(self._names(), everything=True)
        self._daemon.start(self._definitions())
        return True

    def _reload(self) -> tuple[list[str], list[str]]:
        """Have supervisord read the definitions and end what has none; return the names added and changed."""
        self._daemon.configure(self._definitions())
        added, changed, removed = self._daemon.call("reloadConfig")[0]
        for name in removed:
            self._end_group(name)
        return added, changed

    def _start(self, name: str) -> bool:
        try:
            return bool(self._daemon.call("startProcess", name, False))
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == _ALREADY_STARTED:
                return False
            raise PhiflowError(
                f"Service '{name}' could not be started: {fault.faultString}.",
                fix=f"Read '{self._folder / 'supervisord.log'}'.",
            ) from fault

    def _stop(self, name: str) -> None:
        patience = self._read_definition(name)["stop_seconds"] if self._definition_file(name).exists() else 60.0
        self._daemon.call("stopProcessGroup", name, patience_seconds=patience)

    def _end_group(self, name: str) -> None:
        self._stop(name)
        self._daemon.call("removeProcessGroup", name)

    def _status(self, name: str, info: Mapping[str, Any] | None) -> ProgramStatus:
        record = files.read_json(self._record_file(name), {"count": 0, "starts": [], "waits_until": 0.0})
        restarts = max(record["count"] - 1, 0)
        state = _STATES.get(info["state"], "failing") if info else "stopped"
        if not info or not info["pid"]:
            return ProgramStatus(state, 0, 0.0, restarts)
        if record["waits_until"] > time.time():
            state = "waiting"
        # No record yet: it was started a moment ago.
        started = record["starts"][-1] if record["starts"] else time.time()
        return ProgramStatus(state, info["pid"], max(time.time() - started, 0.0), restarts)

    # What was left behind

    def _reap(self, names: list[str], *, everything: bool = False) -> None:
        """End what runs of these programs, by their records first, then by the mark in the environment.

        A process that this one runs under cannot be ended; it is remembered for the next command.
        """
        own = processes.lineage()
        recorded = []
        for name in names:
            with contextlib.suppress(KeyError, TypeError, ValueError, PhiflowError):
                recorded.append(ProcessId.from_json(files.read_json(self._record_file(name), {})))
        _end_all(recorded)
        marked = processes.find_marked(self._home)
        strays = {process for process in marked if process.pid in own}
        _end_all([process for process in marked if process not in strays and (everything or marked[process] in names)])
        if everything and strays:
            files.write_json(self._strays_file, [process.as_json() for process in strays])

    def _reap_strays(self) -> None:
        recorded = [ProcessId.from_json(value) for value in files.read_json(self._strays_file, [])]
        own = processes.lineage()
        for process in recorded:
            if process.pid not in own:
                processes.terminate_tree(process, _STRAY_GRACE_SECONDS)
        if not any(process.pid in own for process in recorded):
            self._strays_file.unlink(missing_ok=True)


def _end_all(roots: Sequence[ProcessId]) -> None:
    """End process trees side by side: one that takes its whole grace must not delay the others."""
    if roots:
        with ThreadPoolExecutor(min(len(roots), _ENDED_AT_ONCE)) as pool:
            list(pool.map(lambda root: processes.terminate_tree(root, _STRAY_GRACE_SECONDS), roots))
