"""`phiflow down` on this machine: what ends with each scope, for real, and that the files stay."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flows.cli import main
from tasks.config_files import load_config
from tasks.platforms.connect import connect, local_services
from tasks.platforms.local.files import write_json
from tasks.platforms.local.services import Services

SLEEP = [sys.executable, "-c", "import time; time.sleep(600)"]
# Holds the lock of a job that runs, until it is told to end.
JOB = """
import fcntl, sys, time
file = open(sys.argv[1], "w")
fcntl.flock(file, fcntl.LOCK_EX)
print("up", flush=True)
time.sleep(600)
"""


@dataclass
class Machine:
    """A state folder in which things run, and what a person types."""

    home: Path
    file: Path
    services: Services
    capsys: Any = None

    def down(self, scope: str) -> dict[str, Any]:
        """The command with --yes; its document."""
        with pytest.raises(SystemExit) as ended:
            main(["down", str(self.file), "--scope", scope, "--yes", "--json"])
        assert ended.value.code in (0, None)
        document: dict[str, Any] = json.loads(self.capsys.readouterr().out)
        return document

    def running(self) -> set[str]:
        """The programs that run."""
        return {one["name"] for one in self.services.table() if one["state"] != "stopped"}


@pytest.fixture
def machine(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Machine]:
    """Two endpoints whose names begin alike, each with a server and a chat app, and the gateway."""
    home, file = tmp_path / "home", tmp_path / "run.yaml"
    values = {"name": "support", "platform": {"home": str(home)}, "data": {"source": str(file)}}
    file.write_text(json.dumps(values), encoding="utf-8")
    services = local_services(str(home))
    for endpoint in ("support", "support-v2"):
        deployment = "v1-0123abcd"
        record = {"url": "", "server": "openai", "model_name": "m", "model_version": "1", "created": 0.0}
        state = {"name": endpoint, "deployments": {deployment: record}, "traffic": {deployment: 100}}
        write_json(home / "endpoints" / endpoint / "endpoint.json", state)
        write_json(home / "chat" / endpoint / "chat.json", {"url": ""})
        (home / "chat" / endpoint / "history.sqlite").write_text("asked")
        services.start(f"server-{endpoint}-{deployment}", SLEEP)
        services.start(f"chat-{endpoint}", SLEEP)
    services.start("gateway", SLEEP)
    yield Machine(home, file, services, capsys)
    services.supervisor.stop_all()


def run_job(machine: Machine, name: str, run_name: str) -> subprocess.Popen[str]:
    """A job that runs."""
    folder = machine.home / "jobs" / name
    record = {"name": name, "key": name, "attempt": 1, "kind": "evaluation", "data_digest": "d", "url": ""}
    write_json(folder / "job.json", record | {"runs": ["r"], "run_name": run_name})
    process = subprocess.Popen([sys.executable, "-c", JOB, folder / "alive.lock"], stdout=subprocess.PIPE, text=True)
    write_json(folder / "process.json", {"pid": process.pid})
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


OTHERS = {"server-support-v2-v1-0123abcd", "chat-support-v2", "gateway"}


@pytest.mark.slow
def test_each_scope_ends_its_own_and_no_more(machine: Machine) -> None:
    """chat, endpoint and compute end what is this configuration's; the second time there is nothing."""
    told = machine.down("chat")
    assert [one["kind"] for one in told["deleted"]] == ["chat app"]
    assert machine.running() == {*OTHERS, "server-support-v1-0123abcd"}
    assert (machine.home / "chat" / "support" / "history.sqlite").exists()
    with connect(load_config(machine.file).platform).lease_endpoint("support", "a run", 1):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as ended:
            patch.setattr("tasks.platforms.local.tear_down._LEASE_SECONDS", 0.1)
            main(["down", str(machine.file), "--scope", "endpoint", "--yes", "--json"])
        assert ended.value.code == 4
        assert "being changed by a run" in machine.capsys.readouterr().err
    told = machine.down("endpoint")
    assert [one["kind"] for one in told["deleted"]] == ["endpoint"]
    assert machine.running() == OTHERS
    assert not (machine.home / "endpoints" / "support").exists()
    ours, theirs = run_job(machine, "support-1", "support"), run_job(machine, "other-1", "other")
    told = machine.down("compute")
    assert [one["name"] for one in told["deleted"]] == ["support-1"]
    assert ours.wait(10) != 0
    assert theirs.poll() is None
    for scope in ("chat", "endpoint", "compute"):
        assert machine.down(scope)["deleted"] == []
    theirs.kill()


def test_all_ends_everything_and_says_what_the_files_are(machine: Machine) -> None:
    """After scope all nothing runs; the state folder is named with its size and how to delete it."""
    job = run_job(machine, "other-1", "other")
    told = machine.down("all")
    assert [one["kind"] for one in told["deleted"]] == ["chat app", "endpoint", "job", "services"]
    assert machine.running() == set()
    assert job.wait(10) != 0
    (left,) = told["left"]
    assert (left["name"], left["bills"], left["fix"]) == (str(machine.home), False, f"rm -rf {machine.home}")
    assert " of disk" in left["reason"]
    assert (machine.home / "endpoints" / "support-v2" / "endpoint.json").exists()
    assert machine.down("all")["deleted"] == []


@pytest.mark.slow
def test_what_ends_is_said_before(machine: Machine) -> None:
    """The version that serves is named, and that nothing will answer."""
    endpoints = connect(load_config(machine.file).platform)
    endpoints.freeze_endpoint("support", "a holiday")
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.stdin", io.StringIO())
        main(["down", str(machine.file), "--scope", "endpoint"])
    assert ended.value.code == 2
    said = machine.capsys.readouterr().out
    assert "version 1 serves, with 1 deployment(s); nothing will answer" in said
    assert "frozen: a holiday" in said
