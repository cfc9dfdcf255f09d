"""The ports of a state folder."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tasks.platforms.errors import ConflictError
from tasks.platforms.local.ports import PortBook
from tasks.platforms.local.processes import SUPERVISED_HOME

FreePort = Callable[[], int]
LISTEN = "import socket, sys, time; s = socket.create_server((sys.argv[1], int(sys.argv[2]))); print('up', flush=True)"


@contextmanager
def listener(port: int, *, host: str = "127.0.0.1", home: str = "") -> Iterator[int]:
    """Have another process listen on a port, for a state folder's supervisor when one is given."""
    command = [sys.executable, "-c", f"{LISTEN}; time.sleep(60)", host, str(port)]
    environment = {**os.environ, SUPERVISED_HOME: home}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout and process.stdout.readline() == b"up\n"
        yield process.pid
        process.kill()


def test_the_usual_port_is_taken_when_free_and_remembered(tmp_path: Path, free_port: FreePort) -> None:
    """A service keeps its first port, also when another is preferred later."""
    port = free_port()
    assert PortBook(tmp_path).claim("mlflow", port) == port
    assert PortBook(tmp_path).claim("mlflow", free_port()) == port
    assert PortBook(tmp_path).read() == {"mlflow": port}


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_that_a_stranger_holds_is_avoided(tmp_path: Path, free_port: FreePort, host: str) -> None:
    """A foreign listener, on loopback or everywhere, is noticed: also on the remembered port."""
    port = free_port()
    PortBook(tmp_path).claim("mlflow", port)
    with listener(port, host=host):
        moved = PortBook(tmp_path).claim("mlflow", port)
        assert moved > port
        assert PortBook(tmp_path).claim("mlflow", port) == moved


def test_a_port_that_our_own_service_holds_is_kept(tmp_path: Path, free_port: FreePort) -> None:
    """A listener that this state folder's supervisor runs is the service itself; another folder's is not."""
    home = tmp_path / "home"
    home.mkdir()
    port = free_port()
    with listener(port, home=str(home)):
        PortBook(home).claim("chat", port)
    PortBook(home).claim("mlflow", free_port())
    kept = PortBook(home).claim("chat", port)
    with listener(kept, home=str(home)):
        assert PortBook(home).claim("chat", port) == kept
        assert PortBook(home).claim("chat", kept, setting="chat.port") == kept
    with listener(kept, home=str(tmp_path / "other")):
        assert PortBook(home).claim("chat", port) != kept


def test_a_fixed_port_in_use_is_an_error_that_names_the_holder(tmp_path: Path, free_port: FreePort) -> None:
    """Port, process and the key to set are in one line, and nothing is remembered."""
    port = free_port()
    with listener(port) as pid, pytest.raises(ConflictError) as caught:
        PortBook(tmp_path).claim("chat", port, setting="chat.port")
    message = str(caught.value)
    assert f"Port {port} is in use by " in message and f"(process {pid})" in message
    assert "Set chat.port" in message and "\n" not in message
    assert PortBook(tmp_path).read() == {}


def test_a_fixed_port_wins_over_the_remembered_one(tmp_path: Path, free_port: FreePort) -> None:
    """A port from the configuration replaces what was remembered, for this service and for others."""
    old, fixed = free_port(), free_port()
    book = PortBook(tmp_path)
    book.claim("chat", old)
    book.claim("mlflow", fixed)
    assert book.claim("chat", fixed, setting="chat.port") == fixed
    assert book.read() == {"chat": fixed}
    assert book.claim("mlflow", fixed) != fixed


def test_claims_at_once_get_different_ports(tmp_path: Path, root: Path, free_port: FreePort) -> None:
    """Several processes that want the same port at the same time all get one of their own."""
    port = free_port()
    script = (
        "import sys; from pathlib import Path; from tasks.platforms.local.ports import PortBook\n"
        "print(PortBook(Path(sys.argv[1])).claim(sys.argv[2], int(sys.argv[3])))"
    )
    claimers = [
        subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path), name, str(port)], stdout=subprocess.PIPE, cwd=root
        )
        for name in ("a", "b", "c")
    ]
    ports = [int(claimer.communicate()[0]) for claimer in claimers]
    assert len(set(ports)) == 3
    assert sorted(PortBook(tmp_path).read().values()) == sorted(ports)


def test_a_released_port_is_forgotten(tmp_path: Path, free_port: FreePort) -> None:
    """After a release, another service may take the port."""
    port = free_port()
    book = PortBook(tmp_path)
    book.claim("old", port)
    book.release("old")
    assert book.claim("new", port) == port


def test_sockets_of_an_ended_server_do_not_hold_its_port(tmp_path: Path, free_port: FreePort) -> None:
    """A connection that waits out its time does not make the port look taken."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as server:
        client = socket.create_connection(("127.0.0.1", port))
        connection, _ = server.accept()
        connection.close()
        client.close()
    assert PortBook(tmp_path).claim("mlflow", port) == port
