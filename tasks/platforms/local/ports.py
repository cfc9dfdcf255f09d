"""The loopback ports of one state folder: the usual one when it is free, else another, remembered."""

from __future__ import annotations

import contextlib
import os
import socket
import tempfile
import time
from pathlib import Path
from typing import Any

from tasks.platforms.errors import ConflictError, PhiflowError
from tasks.platforms.local import files
from tasks.platforms.local.processes import SUPERVISED_HOME

LOOPBACK = "127.0.0.1"
_SEARCHED_PORTS = 200
# Between a claim and the moment its service listens; then the listener itself says that the port is taken.
_RESERVED_SECONDS = 60.0


def is_free(port: int) -> bool:
    """Say whether a server on this machine could listen on a loopback port now."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        # A listener on all addresses does not stop a bind to one of them everywhere, but it answers.
        if probe.connect_ex((LOOPBACK, port)) == 0:
            return False
    with socket.socket() as probe:
        # Without it, connections of a server that has just ended would hold its port for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def listener(port: int) -> tuple[str, str]:
    """Return who listens on a port, for a person, and the state folder it is supervised for, or ""."""
    import psutil

    with contextlib.suppress(psutil.Error):
        for connection in psutil.net_connections(kind="tcp"):
            if connection.status != psutil.CONN_LISTEN or getattr(connection.laddr, "port", None) != port:
                continue
            with contextlib.suppress(psutil.Error, OSError):
                if connection.pid:
                    process = psutil.Process(connection.pid)
                    home = process.environ().get(SUPERVISED_HOME, "")
                    return f"'{process.name()}' (process {process.pid})", home
    return "another process", ""


class PortBook:
    """The ports that the services of one state folder use, by service name.

    Args:
        home: the state folder; the book is its `ports.json`.
    """

    def __init__(self, home: Path) -> None:
        self._home = home.resolve()
        self._path = self._home / "ports.json"

    def read(self) -> dict[str, int]:
        """Return the remembered ports."""
        return {name: int(port) for name, port in files.read_json(self._path, {}).items()}

    def claim(self, name: str, preferred: int, *, setting: str = "") -> int:
        """Return the port a service listens on, or shall listen on, and remember it.

        The remembered port is kept while it is free or held by this state folder's own service; then the
        preferred one is tried, and the ones above it.

        Args:
            name: the service, as in "gateway".
            preferred: the port to take when nothing speaks against it.
            setting: the configuration key that fixed `preferred`, as in "chat.port"; then no other will do.
        Raises:
            ConflictError: the fixed port is in use by a stranger or by another of our services.
        """
        with files.file_lock(self._path.with_suffix(".lock"), 30.0, f"the port book of '{self._home}'"):
            book = self.read()
            others = {port: other for other, port in book.items() if other != name}
            if setting:
                self._require(preferred, others, setting)
                port = preferred
            else:
                port = book.get(name, 0)
                if not port or port in others or not self._is_ours_or_free(port):
                    port = self._find_free(preferred, others)
            if book.get(name) != port:
                kept = {other: used for used, other in others.items() if used != port}
                files.write_json(self._path, {**kept, name: port})
            return port

    def release(self, name: str) -> None:
        """Forget the port of a service that is gone for good."""
        with files.file_lock(self._path.with_suffix(".lock"), 30.0, f"the port book of '{self._home}'"):
            book = self.read()
            if book.pop(name, None) is not None:
                files.write_json(self._path, book)

    def _require(self, port: int, others: dict[int, str], setting: str) -> None:
        if is_free(port):
            return
        holder, home = listener(port)
        if home == str(self._home) and port not in others:
            return
        if home:
            service = f"service '{others[port]}'" if home == str(self._home) else f"state folder '{home}'"
            holder += f" of the {service}"
        raise ConflictError(
            f"Port {port} is in use by {holder}.", fix=f"Set {setting} to a free port, or stop that process."
        )

    def _is_ours_or_free(self, port: int) -> bool:
        return is_free(port) or listener(port)[1] == str(self._home)

    def _find_free(self, preferred: int, others: dict[int, str]) -> int:
        """Choose a port, and reserve it against the other state folders of this user until it is listened on."""
        path = Path(tempfile.gettempdir(), f"phiflow-{os.getuid()}", "ports.json")
        path.parent.mkdir(mode=0o700, exist_ok=True)  # the folder of the supervisors' sockets
        with files.file_lock(path.with_suffix(".lock"), 30.0, "the ports of this machine"):
            now = time.time()
            reserved = {
                port: claim for port, claim in _read_reserved(path).items() if now - claim["time"] < _RESERVED_SECONDS
            }
            for port in range(preferred, min(preferred + _SEARCHED_PORTS, 65536)):
                holder = reserved.get(str(port), {}).get("home", str(self._home))
                if port not in others and holder == str(self._home) and is_free(port):
                    files.write_json(path, reserved | {str(port): {"home": str(self._home), "time": now}})
                    return port
        raise ConflictError(
            f"No free port between {preferred} and {preferred + _SEARCHED_PORTS} on {LOOPBACK}.",
            fix="Stop a service that you no longer need.",
        )


def _read_reserved(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return dict(files.read_json(path, {}))
    except PhiflowError:
        return {}
