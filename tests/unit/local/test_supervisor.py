"""The supervisor of a state folder, over real programs and real kills."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.platforms.errors import NotFoundError
from tasks.platforms.local import files, processes
from tasks.platforms.local.processes import ProcessId
from tasks.platforms.local.supervisor import Program, Supervisor

Wait = Callable[..., Any]

# Listens on a port and answers with its pid: a second one on the same port cannot start.
SERVER = """
import os, socket, sys
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
while True:
    connection, _ = server.accept()
    connection.sendall(str(os.getpid()).encode())
    connection.close()
"""


def ask(port: int) -> int:
    """Return the pid of the server on a port, 0 when none answers."""
    import socket

    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            return int(connection.recv(32) or 0)
    except OSError:
        return 0


class Services:
    """A supervisor over a state folder, and short ways to define programs in it."""

    def __init__(self, home: Path, free_port: Callable[[], int]) -> None:
        self.home = home
        self.supervisor = Supervisor(home)
        self._free_port = free_port

    def program(self, name: str, *command: str, **options: Any) -> Program:
        log_file = self.home / "logs" / f"{name}.log"
        return Program(name=name, command=command, cwd=self.home, log_file=log_file, **options)

    def server(self, name: str, **options: Any) -> tuple[Program, int]:
        port = self._free_port()
        return self.program(name, sys.executable, "-c", SERVER, str(port), **options), port

    def log(self, name: str) -> str:
        path = self.home / "logs" / f"{name}.log"
        return path.read_text() if path.exists() else ""

    def supervisord(self) -> ProcessId | None:
        return processes.read_recorded(self.home / "supervisor" / "supervisord.json")

    def running(self) -> set[ProcessId]:
        return set(processes.find_marked(self.home))


@pytest.fixture
def services(tmp_path: Path, free_port: Callable[[], int]) -> Iterator[Services]:
    """A state folder whose path is long and holds what supervisord's configuration would misread."""
    home = tmp_path / ("a 100%s ; #home's [x] " + "long" * 25)
    home.mkdir()
    services = Services(home, free_port)
    yield services
    services.supervisor.stop_all()
    assert not services.running()


def test_a_program_runs_and_is_left_alone_until_its_definition_changes(services: Services, wait_for: Wait) -> None:
    """The same definition changes nothing; a changed one restarts this program and no other."""
    first, port = services.server("first")
    second, other_port = services.server("second")
    assert services.supervisor.ensure_program(first) is True
    assert services.supervisor.ensure_program(second) is True
    pid, other_pid = wait_for(lambda: ask(port)), wait_for(lambda: ask(other_port))
    assert services.supervisor.ensure_program(first) is False
    assert Supervisor(services.home).ensure_program(second) is False
    assert (ask(port), ask(other_port)) == (pid, other_pid)

    changed = services.program("first", *first.command, environment={"A": "1"})
    assert services.supervisor.ensure_program(changed) is True
    assert wait_for(lambda: ask(port)) != pid
    assert ask(other_port) == other_pid
    status = services.supervisor.programs()
    assert status["second"].state == "running" and status["second"].pid == other_pid
    assert status["second"].uptime_seconds > 0 and status["second"].restarts == 0


def test_it_starts_fast_and_adopts_faster(services: Services) -> None:
    """Asking again for what runs costs no more than a call over a socket."""
    services.supervisor.ensure_running()
    began = time.monotonic()
    for _ in range(5):
        services.supervisor.ensure_running()
    assert (time.monotonic() - began) / 5 < 0.1


def test_any_text_reaches_a_program_unchanged(services: Services, wait_for: Wait) -> None:
    """Arguments and variables with percent signs, quotes, semicolons and line breaks need no escaping."""
    text = "100% %(here)s \"q\" 'a' ; # \\ $HOME\nü"
    script = "import os, sys, json; print(json.dumps([sys.argv[1], os.environ['TEXT'], os.getcwd()]), flush=True)"
    program = services.program(
        "echo", sys.executable, "-c", f"{script}; import time; time.sleep(60)", text, environment={"TEXT": text}
    )
    services.supervisor.ensure_program(program)
    assert json.loads(wait_for(lambda: services.log("echo"))) == [text, text, str(services.home)]


def test_secrets_reach_a_program_by_file_and_a_new_one_restarts_it(services: Services, wait_for: Wait) -> None:
    """They are in no command line and no file that others can read; changed content means a restart."""
    secrets = services.home / "secrets.json"
    files.write_secret(secrets, '{"KEY": "hush-1"}')
    program = services.program("app", "sh", "-c", 'echo "key=$KEY"; sleep 60', env_file=secrets)
    services.supervisor.ensure_program(program)
    wait_for(lambda: "key=hush-1" in services.log("app"))
    assert services.supervisor.ensure_program(program) is False
    files.write_secret(secrets, '{"KEY": "hush-2"}')
    assert services.supervisor.ensure_program(program) is True
    wait_for(lambda: "key=hush-2" in services.log("app"))
    for path in (services.home / "supervisor").rglob("*"):
        assert not path.is_file() or b"hush" not in path.read_bytes()
    assert not any("hush" in word for one in services.running() for word in psutil.Process(one.pid).cmdline())


def test_the_starting_terminal_does_not_leak_into_programs(
    services: Services, monkeypatch: pytest.MonkeyPatch, wait_for: Wait
) -> None:
    """Variables that steer Prefect, MLflow or Python in the first caller's shell are not inherited."""
    for name in ("PREFECT_API_URL", "MLFLOW_TRACKING_URI", "PHIFLOW_TOKEN", "PYTHONPATH"):
        monkeypatch.setenv(name, "leaked")
    monkeypatch.setenv("KEPT", "kept")
    services.supervisor.ensure_program(services.program("env", "sh", "-c", "env; echo end; sleep 60"))
    wait_for(lambda: "\nend" in services.log("env"))
    assert "leaked" not in services.log("env")
    assert "KEPT=kept" in services.log("env")


def test_a_killed_program_comes_back(services: Services, wait_for: Wait) -> None:
    """kill -9 again and again: each time it answers from a new process, and the restarts are counted."""
    program, port = services.server("server")
    services.supervisor.ensure_program(program)
    seen = {wait_for(lambda: ask(port))}
    for _ in range(2):
        os.kill(ask(port), signal.SIGKILL)
        seen.add(wait_for(lambda: ask(port), 20))
    assert len(seen) == 3
    wait_for(lambda: services.supervisor.programs()["server"].restarts == 2)


def test_a_program_that_keeps_failing_waits_between_starts(services: Services, wait_for: Wait) -> None:
    """It is tried again, ever more rarely, and its status says that it waits."""
    program = services.program("broken", "sh", "-c", "echo tried; exit 1")
    services.supervisor.ensure_program(program)
    wait_for(lambda: services.log("broken").count("tried") == 3)
    wait_for(lambda: services.supervisor.programs()["broken"].state == "waiting")
    assert services.supervisor.programs()["broken"].restarts in (2, 3)
    assert services.log("broken").count("tried") == 3
    assert "next start in" in services.log("broken")


def test_a_restart_is_immediate_whatever_it_waits_for(services: Services, wait_for: Wait) -> None:
    """A person's restart forgets the failures; a name that is not there is refused with those that are."""
    repaired = services.home / "repaired"
    program = services.program("app", "sh", "-c", f'test -e "{repaired}" || exit 1; echo good; sleep 60')
    services.supervisor.ensure_program(program)
    wait_for(lambda: services.supervisor.programs()["app"].state == "waiting", 20)
    repaired.touch()
    services.supervisor.restart("app")
    wait_for(lambda: "good" in services.log("app"), 5)
    assert services.supervisor.programs()["app"].restarts == 0
    for name in ("nobody", "../app"):
        with pytest.raises(NotFoundError):
            services.supervisor.restart(name)


def test_a_removed_program_is_gone_with_all_it_started(
    services: Services, wait_for: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its children end too, it is forgotten, and removing it again says there was none."""
    monkeypatch.setattr("tasks.platforms.local.supervisor._STRAY_GRACE_SECONDS", 0.5)
    program = services.program("app", "sh", "-c", "trap '' TERM; setsid sleep 60 & echo up; wait", stop_seconds=1)
    services.supervisor.ensure_program(program)
    wait_for(lambda: "up" in services.log("app"))
    assert len(services.running()) >= 3
    assert services.supervisor.remove_program("app") is True
    assert services.supervisor.remove_program("app") is False
    assert services.supervisor.programs() == {}
    assert services.running() == {services.supervisord()}


def test_after_the_supervisor_is_killed_everything_starts_again_once(services: Services, wait_for: Wait) -> None:
    """What it left behind is ended first: the same port is served again, by a new process."""
    program, port = services.server("server")
    services.supervisor.ensure_program(program)
    pid, daemon = wait_for(lambda: ask(port)), services.supervisord()
    assert daemon
    os.kill(daemon.pid, signal.SIGKILL)
    wait_for(lambda: not processes.is_alive(daemon))
    assert services.supervisor.programs()["server"].state == "stopped"
    assert services.supervisor.ensure_program(program) is True
    assert wait_for(lambda: ask(port)) != pid
    assert pid not in {process.pid for process in services.running()}
    assert len(services.running()) == 2


def test_stopping_leaves_nothing_even_when_the_supervisor_was_killed(services: Services, wait_for: Wait) -> None:
    """Programs, their children that left the group, and supervisord are gone; definitions stay."""
    program, port = services.server("server")
    services.supervisor.ensure_program(program)
    services.supervisor.ensure_program(services.program("tree", "sh", "-c", "setsid sleep 60 & echo up; wait"))
    wait_for(lambda: ask(port) and "up" in services.log("tree"))
    everything, daemon = services.running(), services.supervisord()
    assert len(everything) >= 4 and daemon
    os.kill(daemon.pid, signal.SIGKILL)
    services.supervisor.stop_all()
    services.supervisor.stop_all()
    assert not any(processes.is_alive(process) for process in everything)
    assert {status.state for status in services.supervisor.programs().values()} == {"stopped"}
    services.supervisor.ensure_running()
    assert wait_for(lambda: ask(port))


def test_a_stuck_supervisor_is_replaced(services: Services, wait_for: Wait, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that is alive and does not answer is ended with what it runs, and a new one takes over."""
    monkeypatch.setattr("tasks.platforms.local.supervisord._ANSWER_SECONDS", 0.5)
    program, port = services.server("server")
    services.supervisor.ensure_program(program)
    pid, daemon = wait_for(lambda: ask(port)), services.supervisord()
    assert daemon
    os.kill(daemon.pid, signal.SIGSTOP)
    monkeypatch.setattr("tasks.platforms.local.supervisor._STRAY_GRACE_SECONDS", 0.5)
    services.supervisor.ensure_running()
    assert not processes.is_alive(daemon)
    assert wait_for(lambda: ask(port)) != pid


def test_callers_at_once_share_one_supervisor(services: Services, root: Path, wait_for: Wait) -> None:
    """Several processes that start the same program at the same time end up with one of each."""
    program, port = services.server("server")
    script = (
        "import sys; from pathlib import Path; from tasks.platforms.local.supervisor import Program, Supervisor\n"
        "home = Path(sys.argv[1])\n"
        "program = Program(name='server', command=tuple(sys.argv[2:]), cwd=home, log_file=home / 'logs/server.log')\n"
        "print(Supervisor(home).ensure_program(program))"
    )
    command = [sys.executable, "-c", script, str(services.home), *program.command]
    callers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) for _ in range(3)]
    assert sorted(caller.communicate()[0].strip() for caller in callers) == ["False", "False", "True"]
    assert wait_for(lambda: ask(port))
    assert len(services.running()) == 2


def test_it_outlives_the_terminal_that_started_it(services: Services, root: Path, wait_for: Wait) -> None:
    """When the starter's whole session is hung up and killed, programs go on and still come back."""
    program, port = services.server("server")
    script = (
        "import sys, time; from pathlib import Path; from tasks.platforms.local.supervisor import Program, Supervisor\n"
        "home = Path(sys.argv[1])\n"
        "program = Program(name='server', command=tuple(sys.argv[2:]), cwd=home, log_file=home / 'logs/server.log')\n"
        "Supervisor(home).ensure_program(program); print('up', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(services.home), *program.command]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root, start_new_session=True) as terminal:
        assert terminal.stdout and terminal.stdout.readline() == b"up\n"
        os.killpg(terminal.pid, signal.SIGHUP)
        os.killpg(terminal.pid, signal.SIGKILL)
    pid = wait_for(lambda: ask(port))
    os.kill(pid, signal.SIGKILL)
    assert wait_for(lambda: ask(port) not in (0, pid), 20)


def test_a_job_that_a_program_started_is_not_stopped_with_it(
    services: Services, root: Path, tmp_path: Path, wait_for: Wait
) -> None:
    """A detached job leaves the program's family, so that stopping the services does not end the training."""
    script = (
        "import sys, time; from pathlib import Path; from tasks.platforms.local import processes\n"
        "job = processes.spawn_detached(['sleep', '60'], cwd=Path('/'), log_file=Path(sys.argv[1]))\n"
        "print(job.pid, job.started, flush=True); time.sleep(60)"
    )
    program = services.program(
        "worker", sys.executable, "-c", script, str(tmp_path / "job.log"), environment={"PYTHONPATH": str(root)}
    )
    services.supervisor.ensure_program(program)
    pid, started = wait_for(lambda: services.log("worker")).split()
    job = ProcessId(int(pid), started)
    try:
        services.supervisor.stop_all()
        assert processes.is_alive(job)
    finally:
        processes.terminate_tree(job, 1.0)


def test_a_program_may_repair_the_supervisor_it_lost(services: Services, root: Path, wait_for: Wait) -> None:
    """It does not end itself; the next command from outside ends it, so that one of it remains."""
    script = (
        "import sys, time; from pathlib import Path; from tasks.platforms.local.supervisor import Supervisor\n"
        "home = Path(sys.argv[1]); go = home / 'go'\n"
        "while not go.exists(): time.sleep(0.02)\n"
        "go.unlink(); Supervisor(home).ensure_running(); (home / 'repaired').touch(); time.sleep(60)"
    )
    program = services.program(
        "worker", sys.executable, "-c", script, str(services.home), environment={"PYTHONPATH": str(root)}
    )
    services.supervisor.ensure_program(program)
    worker = wait_for(lambda: services.supervisor.programs()["worker"].pid)
    daemon = services.supervisord()
    assert daemon
    os.kill(daemon.pid, signal.SIGKILL)
    wait_for(lambda: not processes.is_alive(daemon))
    (services.home / "go").touch()
    wait_for((services.home / "repaired").exists)
    assert worker in {process.pid for process in services.running()}
    services.supervisor.ensure_running()
    assert worker not in {process.pid for process in services.running()}
    assert len(services.running()) == 2


@pytest.mark.parametrize("name", ["", "../x", "A", "a b", "a%"])
def test_a_program_name_is_checked(services: Services, name: str) -> None:
    """A name that could leave the folder or break the configuration is refused."""
    with pytest.raises(ValueError, match="program name"):
        services.program(name, "true")
