"""One supervisord of the `supervisor` package: its configuration, its start, its socket and its answers.

What is to run, and what to do about what a killed one left behind, is `supervisor`'s business.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import socket
import sys
import tempfile
import time
import xmlrpc.client
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.platforms.errors import PhiflowError
from tasks.platforms.local import files, processes
from tasks.platforms.local.processes import ProcessId

_START_SECONDS = 20.0
_ANSWER_SECONDS = 10.0
# The longest socket path that Linux and macOS both take is 103 bytes.
_LONGEST_SOCKET_PATH = 100
# A service must not depend on the terminal that happened to start it first.
_NOT_INHERITED = ("PREFECT_", "MLFLOW_", "PHIFLOW_", "SUPERVISOR_", "PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")

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

# Anything that goes wrong between a caller and supervisord.
NoAnswer = (OSError, http.client.HTTPException, xmlrpc.client.Error)


def can_be_named(path: str) -> bool:
    """Say whether supervisord's configuration can hold a path; it takes ' ;' and ' #' for comments."""
    return not re.search(r"\s[;#]|[\r\n]", path)


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


class Supervisord:
    """The supervisord of one state folder.

    Args:
        home: the state folder, which marks all its processes.
        folder: where its configuration and logs are; also its working directory, so that no path in its
            configuration has to be absolute and could hold what it would misread.
    """

    def __init__(self, home: Path, folder: Path) -> None:
        self._home = home
        self._folder = folder
        self._record = folder / "supervisord.json"

    def call(self, method: str, *arguments: Any, patience_seconds: float = 0.0) -> Any:
        """Call a method of supervisord's XML-RPC interface.

        Raises:
            NoAnswer: it does not run, or refused; a refusal is an `xmlrpc.client.Fault`.
        """
        transport = _Transport(str(self._socket()), _ANSWER_SECONDS + patience_seconds)
        with xmlrpc.client.ServerProxy("http://localhost", transport=transport) as server:
            return getattr(server.supervisor, method)(*arguments)

    def answers(self) -> bool:
        """Say whether it runs and takes calls."""
        try:
            return self.call("getState")["statename"] == "RUNNING"
        except NoAnswer:
            return False

    def recorded(self) -> ProcessId | None:
        """Return its process while that is alive, whether it answers or not."""
        return processes.read_recorded(self._record)

    def configure(self, programs: Mapping[str, Mapping[str, Any]]) -> None:
        """Write its configuration; it takes notice at the next start or `reloadConfig`.

        Args:
            programs: by name, each with "digest", "stop_seconds" and "log_file" relative to the folder.
        """
        text = _MAIN_SECTIONS.format(socket=_escape(str(self._socket())))
        for name, program in programs.items():
            # One missing log folder would make it refuse the configuration of every program.
            (self._folder / program["log_file"]).parent.mkdir(parents=True, exist_ok=True)
            text += _PROGRAM_SECTION.format(
                name=name,
                marker=processes.SUPERVISED_PROGRAM,
                digest=program["digest"],
                stop_seconds=program["stop_seconds"],
                log_file=_escape(program["log_file"]),
            )
        files.write_atomic(self._folder / "supervisord.conf", text)

    def start(self, programs: Mapping[str, Mapping[str, Any]]) -> None:
        """Start it, detached, with these programs, and wait until it answers; none may be running."""
        self.forget()
        path = self._socket()
        _require_private(path.parent)
        path.unlink(missing_ok=True)
        self.configure(programs)
        log_file = self._folder / "supervisord.out"
        environment = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_INHERITED)}
        # `spawn_detached` takes the marker of supervised processes away; these are to carry it.
        marked = ("/usr/bin/env", f"{processes.SUPERVISED_HOME}={self._home}")
        command = (sys.executable, "-P", "-m", "supervisor.supervisord", "-n", "-c", "supervisord.conf")
        daemon = processes.spawn_detached([*marked, *command], cwd=self._folder, log_file=log_file, env=environment)
        files.write_json(self._record, {**daemon.as_json(), "socket": str(path)})
        deadline = time.monotonic() + _START_SECONDS
        while not self.answers():
            if not processes.is_alive(daemon) or time.monotonic() > deadline:
                processes.terminate_tree(daemon)
                raise PhiflowError(
                    f"The supervisor of '{self._home}' did not start.",
                    fix=f"Read '{log_file}' and 'supervisord.log' beside it.",
                    detail=tuple(log_file.read_text(errors="replace").splitlines()[-5:]),
                )
            time.sleep(0.02)

    def forget(self) -> None:
        """Remove what is left of one that has ended: its socket and its record."""
        self._socket().unlink(missing_ok=True)
        self._record.unlink(missing_ok=True)

    def _socket(self) -> Path:
        """Return the socket in use, else a short path of this user alone; the state folder's may be long."""
        recorded = files.read_json(self._record, {}).get("socket")
        if recorded:
            return Path(recorded)
        name = hashlib.sha256(os.fsencode(self._home)).hexdigest()[:16] + ".sock"
        path = Path(tempfile.gettempdir(), f"phiflow-{os.getuid()}", name)
        if len(os.fsencode(path)) > _LONGEST_SOCKET_PATH or not can_be_named(str(path)):
            path = Path("/tmp", *path.parts[-2:])
        return path


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
