"""Keeps programs running after the command that started them: one supervisord per state folder.

What it adds to the `supervisor` package: definitions that need no escaping, starting twice at once is safe,
back-off for a program that keeps failing (in `launch`), and nothing left behind when supervisord is killed.
Jobs, which end by themselves, are not kept here but started with `processes.spawn_detached`.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import json
import os
import re
import shlex
import socket
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tasks.platforms.errors import NotFoundError, PhiflowError
from tasks.platforms.local import files, processes
from tasks.platforms.local.processes import ProcessId

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_START_SECONDS = 20.0
_LOCK_SECONDS = 120.0
_ANSWER_SECONDS = 10.0
_STRAY_GRACE_SECONDS = 10.0
# The longest socket path that Linux and macOS both take is 103 bytes.
_LONGEST_SOCKET_PATH = 100
# A service must not depend on the terminal that happened to start it first.
_NOT_INHERITED = ("PREFECT_", "MLFLOW_", "PHIFLOW_", "SUPERVISOR_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
_STATES = {0: "stopped", 10: "starting", 20: "running", 40: "stopping"}
_ALREADY_STARTED = 60

_MAIN_SECTIONS = """\
[unix_http_server]
file={socket}
chmod=0700

[supervisord]
identifier=phiflow
nodaemon=true
silent=true
logfile=supervisord.log
logfile_maxbytes=2MB
logfile_backups=1
pidfile=supervisord.pid

[rpcinterface:supervisor]
supervisor.rpcinterface_factory=supervisor.rpcinterface:make_main_rpcinterface
"""

# startsecs=0 hands all waiting between starts to `launch`: supervisord itself restarts without a pause
# whatever dies after startsecs, and without bound lengthens the pause for what dies before.
_PROGRAM_SECTION = """
[program:{name}]
command=/bin/sh programs/{name}.sh
environment={marker}="{name}",PHIFLOW_DEFINITION="{digest}"
autostart=true
autorestart=true
startsecs=0
startretries=1000000
stopasgroup=true
killasgroup=true
stopwaitsecs={stop_seconds}
redirect_stderr=true
stdout_logfile={log_file}
stdout_logfile_maxbytes=10MB
stdout_logfile_backups=2
"""


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
            raise ValueError(
                f"program name {self.name!r} is not lower-case letters, digits, '.', '_' and '-'"
            )
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


class _Transport(xmlrpc.client.Transport):
    """XML-RPC over a Unix socket."""

    def __init__(self, path: str, timeout: float) -> None:
        super().__init__()
        self._path = path
        self._timeout = timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection("localhost", timeout=self._timeout)
        connection.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.sock.settimeout(self._timeout)
        connection.sock.connect(self._path)
        return connection


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
        self._daemon_file = self._folder / "supervisord.json"
        self._strays_file = self._folder / "strays.json"

    # What a caller asks for

    def ensure_running(self) -> None:
        """Have supervisord run; after a crash, end what it left behind and start every program again."""
        if self._answers() and not self._strays_file.exists():
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
            self._render()
            added, altered, _ = self._call("reloadConfig")[0]
            if program.name in altered:
                self._end_group(program.name)
            if program.name in altered or program.name in added:
                self._reap([program.name])
                self._record_file(program.name).unlink(missing_ok=True)
                self._call("addProcessGroup", program.name)
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
            if self._answers():
                self._render()
                _, _, removed = self._call("reloadConfig")[0]
                if name in removed:
                    self._end_group(name)
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
        infos = {info["name"]: info for info in self._call("getAllProcessInfo")} if self._answers() else {}
        return {name: self._status(name, infos.get(name)) for name in self._names()}

    def stop_all(self) -> None:
        """End every program and supervisord, also what a killed supervisord left; definitions stay."""
        with self._lock():
            patience = max((self._read_definition(name)["stop_seconds"] for name in self._names()), default=0)
            daemon = processes.read_recorded(self._daemon_file)
            if daemon and self._answers():
                with contextlib.suppress(OSError, xmlrpc.client.Error, http.client.HTTPException):
                    # All at once; its own shutdown ends one program after the other.
                    self._call("stopAllProcesses", patience=patience)
                    self._call("shutdown")
                processes.wait_until_ended([daemon], 10.0)
            if daemon:
                processes.terminate_tree(daemon, patience + 5.0)
            self._reap(self._names(), everything=True)
            self._socket_path().unlink(missing_ok=True)
            self._daemon_file.unlink(missing_ok=True)

    # Definitions

    def _names(self) -> list[str]:
        return sorted(path.stem for path in self._programs.glob("*.json"))

    def _definition_file(self, name: str) -> Path:
        return self._programs / f"{name}.json"

    def _record_file(self, name: str) -> Path:
        return self._records / f"{name}.json"

    def _read_definition(self, name: str) -> dict[str, Any]:
        return files.read_json(self._definition_file(name))

    def _write_definition(self, program: Program) -> bool:
        """Write what `launch` reads to become the program, and say whether that changed."""
        secrets = program.env_file.read_bytes() if program.env_file else b""
        log_file = os.path.relpath(program.log_file.absolute(), self._folder)
        if re.search(r"\s[;#]|[\r\n]", log_file):
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
        launcher = [
            sys.executable,
            "-I",
            "-S",
            str(processes.LAUNCH),
            "--program",
            f"programs/{program.name}.json",
        ]
        script = f"exec {shlex.join(launcher)}\n"
        definition["digest"] = hashlib.sha256(json.dumps([definition, script]).encode()).hexdigest()[:16]
        self._records.mkdir(parents=True, exist_ok=True)
        path = self._definition_file(program.name)
        if files.read_json(path, {}) == definition:
            return False
        files.write_atomic(self._programs / f"{program.name}.sh", script)
        files.write_json(path, definition, files.SECRET_MODE)
        return True

    def _render(self) -> None:
        """Write supervisord's own configuration from the definitions."""
        text = _MAIN_SECTIONS.format(socket=_escape(str(self._socket_path())))
        for name in self._names():
            definition = self._read_definition(name)
            # One missing log folder would make supervisord refuse the configuration of every program.
            (self._folder / definition["log_file"]).parent.mkdir(parents=True, exist_ok=True)
            text += _PROGRAM_SECTION.format(
                name=name,
                marker=processes.SUPERVISED_PROGRAM,
                digest=definition["digest"],
                stop_seconds=definition["stop_seconds"],
                log_file=_escape(definition["log_file"]),
            )
        files.write_atomic(self._folder / "supervisord.conf", text)

    # supervisord

    def _lock(self) -> contextlib.AbstractContextManager[None]:
        return files.file_lock(self._folder / "lock", _LOCK_SECONDS, f"the services of '{self._home}'")

    def _socket_path(self) -> Path:
        """Return the socket in use, else a short path of this user alone; the state folder's may be long."""
        recorded = files.read_json(self._daemon_file, {}).get("socket")
        if recorded:
            return Path(recorded)
        name = hashlib.sha256(os.fsencode(self._home)).hexdigest()[:16] + ".sock"
        path = Path(tempfile.gettempdir(), f"phiflow-{os.getuid()}", name)
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH or re.search(r"\s[;#]|[\r\n]", str(path)):
            path = Path("/tmp", *path.parts[-2:])
        return path

    def _call(self, method: str, *arguments: Any, patience: float = 0.0) -> Any:
        transport = _Transport(str(self._socket_path()), _ANSWER_SECONDS + patience)
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as server:
            return getattr(server.supervisor, method)(*arguments)

    def _answers(self) -> bool:
        try:
            return self._call("getState")["statename"] == "RUNNING"
        except (OSError, http.client.HTTPException, xmlrpc.client.Error):
            return False

    def _ensure_running(self) -> bool:
        """Have supervisord run, with the lock held, and say whether it was started."""
        if self._answers():
            self._reap_strays()
            return False
        self._reap(self._names(), everything=True)
        self._socket_path().unlink(missing_ok=True)
        self._daemon_file.unlink(missing_ok=True)
        path = self._socket_path()
        _require_private(path.parent)
        path.unlink(missing_ok=True)
        self._render()
        log_file = self._folder / "supervisord.out"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        # `spawn_detached` takes this marker away, so it is put back behind its back.
        marked = ("/usr/bin/env", f"{processes.SUPERVISED_HOME}={self._home}")
        command = (sys.executable, "-P", "-m", "supervisor.supervisord", "-n", "-c", "supervisord.conf")
        daemon = processes.spawn_detached(
            [*marked, *command], cwd=self._folder, log_file=log_file, env=environment
        )
        files.write_json(self._daemon_file, {**daemon.as_json(), "socket": str(path)})
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if not processes.is_alive(daemon) or time.monotonic() > deadline:
                processes.terminate_tree(daemon)
                raise PhiflowError(
                    f"The supervisor of '{self._home}' did not start.",
                    fix=f"Read '{log_file}'.",
                    detail=tuple(log_file.read_text(errors="replace").splitlines()[-5:]),
                )
            time.sleep(0.02)
        return True

    # Programs of a running supervisord

    def _start(self, name: str) -> bool:
        try:
            return bool(self._call("startProcess", name, False))
        except xmlrpc.client.Fault as fault:
            if fault.faultCode == _ALREADY_STARTED:
                return False
            raise PhiflowError(
                f"Service '{name}' could not be started: {fault.faultString}.",
                fix=f"Read '{self._folder / 'supervisord.log'}'.",
            ) from fault

    def _stop(self, name: str) -> None:
        patience = (
            self._read_definition(name)["stop_seconds"] if self._definition_file(name).exists() else 60.0
        )
        self._call("stopProcessGroup", name, patience=patience)

    def _end_group(self, name: str) -> None:
        self._stop(name)
        self._call("removeProcessGroup", name)

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
        strays: set[ProcessId] = set()
        for name in names:
            with contextlib.suppress(KeyError, TypeError, ValueError, PhiflowError):
                processes.terminate_tree(
                    ProcessId.from_json(files.read_json(self._record_file(name), {})), _STRAY_GRACE_SECONDS
                )
        for process, name in processes.find_marked(self._home).items():
            if process.pid in own:
                strays.add(process)
            elif everything or name in names:
                processes.terminate_tree(process, _STRAY_GRACE_SECONDS)
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


def _escape(value: str) -> str:
    return value.replace("%", "%%")


def _require_private(folder: Path) -> None:
    """Have a folder that only this user can enter, and refuse one that somebody else put there."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    status = folder.lstat()
    if status.st_uid != os.getuid() or status.st_mode & 0o077 or folder.is_symlink():
        raise PhiflowError(
            f"'{folder}' is not private to this user, so the services' socket cannot be put there.",
            fix="Remove that folder, or set TMPDIR to a folder of your own.",
        )
