"""Processes by identity, and the launcher that starts them."""

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

from tasks.platforms.local import files, launch, processes
from tasks.platforms.local.processes import ProcessId

Wait = Callable[..., Any]


class Started:
    """Starts detached processes in a folder and ends them after the test."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "logs" / "job.log"
        self.exit_file = folder / "exit.json"
        self.all: list[ProcessId] = []

    def __call__(self, *command: str, **options: Any) -> ProcessId:
        options.setdefault("exit_file", self.exit_file)
        self.all.append(processes.spawn_detached(command, cwd=self.folder, log_file=self.log, **options))
        return self.all[-1]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Started]:
    """Start detached processes in a folder with a space and a percent sign in its name."""
    folder = tmp_path / "a 100% folder"
    folder.mkdir()
    started = Started(folder)
    yield started
    for process in started.all:
        processes.terminate_tree(process, 1.0)


def test_a_process_knows_itself() -> None:
    """The identity of this process is alive and survives JSON."""
    this = processes.current()
    assert processes.is_alive(this)
    assert ProcessId.from_json(json.loads(json.dumps(this.as_json()))) == this


def test_a_reused_pid_is_somebody_else() -> None:
    """A record with this pid and another start is dead, and ending it harms nobody."""
    with subprocess.Popen(["sleep", "60"]) as innocent:
        stale = ProcessId(innocent.pid, "another-start")
        assert not processes.is_alive(stale)
        processes.terminate_tree(stale, 0.2)
        assert innocent.poll() is None
        innocent.kill()


def test_a_zombie_has_ended(wait_for: Wait) -> None:
    """A process that has exited and was not waited for counts as dead."""
    with subprocess.Popen(["sleep", "60"]) as child:
        identity = processes.identify(child.pid)
        assert identity and processes.is_alive(identity)
        child.kill()
        wait_for(lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE)
        assert not processes.is_alive(identity)


def test_a_recorded_process_is_found_while_it_lives(tmp_path: Path) -> None:
    """A record file leads to a live process; a missing, damaged or outdated one leads to none."""
    path = tmp_path / "record.json"
    assert processes.read_recorded(path) is None
    files.write_json(path, {**processes.current().as_json(), "more": 1})
    assert processes.read_recorded(path) == processes.current()
    files.write_json(path, {"pid": os.getpid(), "started": "another"})
    assert processes.read_recorded(path) is None
    path.write_text("{")
    assert processes.read_recorded(path) is None


@pytest.mark.parametrize(
    ("command", "returncode"),
    [(["sh", "-c", "exit 3"], 3), (["sh", "-c", "kill -9 $$"], -9), (["no-such-command"], 127)],
)
def test_how_a_detached_process_ended_is_recorded(
    start: Started, wait_for: Wait, command: list[str], returncode: int
) -> None:
    """Its exit status, or the signal below zero, is on file although nobody waited for it."""
    files.write_json(start.exit_file, {"returncode": 77, "ended": 0})
    start(*command)
    record = wait_for(lambda: files.read_json(start.exit_file, None))
    assert record["returncode"] == processes.read_exit(start.exit_file) == returncode
    assert abs(record["ended"] - time.time()) < 30


def test_a_detached_process_outlives_its_caller(start: Started, root: Path, wait_for: Wait) -> None:
    """It has its own session, is no descendant, and goes on when its starter's whole tree is killed."""
    script = (
        "import sys, time; from pathlib import Path; from tasks.platforms.local import processes\n"
        "folder = Path(sys.argv[1])\n"
        "job = processes.spawn_detached(['sleep', '60'], cwd=folder, log_file=folder / 'l')\n"
        "print(job.pid, job.started, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(start.folder)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as caller:
        assert caller.stdout
        pid, started = caller.stdout.readline().split()
        job = ProcessId(int(pid), started)
        start.all.append(job)
        identity = processes.identify(caller.pid)
        assert identity
        processes.terminate_tree(identity, 2.0)
    assert processes.is_alive(job)
    assert os.getsid(job.pid) == os.getpgid(job.pid) == job.pid


def test_a_killed_launcher_takes_its_command_along(start: Started, wait_for: Wait) -> None:
    """kill -9 of the recording parent ends the command and leaves no record: that is 'killed'."""
    job = start("sleep", "60")
    (child,) = wait_for(lambda: psutil.Process(job.pid).children())
    os.kill(job.pid, signal.SIGKILL)
    wait_for(lambda: (not processes.is_alive(job) and not child.is_running()) or child.status() == "zombie")
    assert processes.read_exit(start.exit_file) is None


def test_sigterm_reaches_the_command_which_may_end_in_order(start: Started, wait_for: Wait) -> None:
    """The launcher passes SIGTERM on, waits, and records the status that the command chose."""
    done = start.folder / "done"
    job = start("sh", "-c", f"trap 'touch \"{done}\"; exit 5' TERM; echo ready; while :; do sleep 0.05; done")
    wait_for(lambda: "ready" in start.log.read_text())
    processes.terminate_tree(job, 10.0)
    assert done.exists()
    assert processes.read_exit(start.exit_file) == 5


def test_what_ignores_sigterm_is_killed_with_all_it_started(start: Started, wait_for: Wait) -> None:
    """A tree in which everyone ignores SIGTERM is gone after the grace."""
    job = start("sh", "-c", "trap '' TERM; (sleep 61; true) & (sleep 62; true) & echo ready; wait; sleep 63")
    wait_for(lambda: "ready" in start.log.read_text())
    tree = [processes.identify(child.pid) for child in psutil.Process(job.pid).children(recursive=True)]
    assert len(tree) >= 3
    began = time.monotonic()
    processes.terminate_tree(job, 0.6)
    assert time.monotonic() - began < 5
    assert not any(processes.is_alive(process) for process in [job, *filter(None, tree)])


def test_the_group_of_a_dead_leader_is_ended_too(tmp_path: Path, wait_for: Wait) -> None:
    """When only the recorded process was killed, what it left in its process group is still found."""
    with subprocess.Popen(
        ["sh", "-c", "sleep 64 & echo $!; wait"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as leader:
        assert leader.stdout
        identity, orphan = processes.identify(leader.pid), processes.identify(int(leader.stdout.readline()))
        assert identity and orphan
        leader.kill()
    assert processes.is_alive(orphan)
    processes.terminate_tree(identity, 1.0)
    assert not processes.is_alive(orphan)


def test_secrets_come_from_a_file_and_are_in_no_command_line(start: Started, wait_for: Wait) -> None:
    """The command sees the variable; `ps` and the launcher's own environment don't show it."""
    secrets = start.folder / "secrets.json"
    files.write_secret(secrets, json.dumps({"API_KEY": "hush-1234"}))
    job = start("sh", "-c", 'test "$API_KEY" = hush-1234 && echo seen; sleep 60', env_file=secrets)
    wait_for(lambda: "seen" in start.log.read_text())
    tree = [psutil.Process(job.pid), *psutil.Process(job.pid).children(recursive=True)]
    shown = [word for process in tree for word in process.cmdline() if "test " not in word]
    assert not any("hush-1234" in word for word in shown)


def test_a_secrets_file_that_others_can_read_is_refused(start: Started, wait_for: Wait) -> None:
    """The command is not started, and the log says which mode the file has and what to do."""
    secrets = start.folder / "secrets.json"
    secrets.write_text("{}")
    secrets.chmod(0o644)
    start("touch", "started", env_file=secrets)
    wait_for(lambda: processes.read_exit(start.exit_file) == launch.CANNOT_EXECUTE)
    assert "mode 644" in start.log.read_text() and "chmod 600" in start.log.read_text()
    assert not (start.folder / "started").exists()


def test_low_priority_is_low(start: Started, wait_for: Wait) -> None:
    """A low-priority process has a raised nice value."""
    job = start("sleep", "60", low_priority=True)
    (child,) = wait_for(lambda: psutil.Process(job.pid).children())
    assert child.nice() == psutil.Process().nice() + 10


def test_the_wait_before_a_start_grows_with_failures_and_ends_with_health() -> None:
    """Two starts are immediate, then the wait doubles up to its limit; a long life resets it."""
    assert launch.respawn_delay([], 1000.0) == 0
    assert launch.respawn_delay([999.0], 1000.0) == 0
    assert [launch.respawn_delay([1000.0 - n for n in range(count, 0, -1)], 1000.0) for count in range(2, 8)] == [
        1.0,
        2.0,
        4.0,
        8.0,
        12.0,
        12.0,
    ]
    assert launch.respawn_delay([1.0, 2.0, 3.0, 4.0], 1000.0) == 0
