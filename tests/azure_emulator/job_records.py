"""The jobs' folders: what a node is given, how it does, and who runs it after the emulator was away."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from tasks.platforms.local.processes import spawn_detached
from tests.azure_emulator import node_errors
from tests.azure_emulator.node_records import now, read_json, write_json

ENDED = ("Completed", "Failed", "Canceled")
_ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 30.0


class JobRecords:
    """What is known of the jobs of one emulator.

    Args:
        folder: holds one folder for each job.
        environment: the variables with which a process reaches the emulator.
    """

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self._folder = folder
        self._environment = environment

    def folder(self, name: str) -> Path:
        """A job's folder; not created."""
        return self._folder / name

    def launch(self, name: str, spec: dict[str, Any]) -> None:
        """Give a node the job."""
        folder = self.folder(name)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "node.json", spec)
        self._spawn(folder)

    def status(self, name: str) -> dict[str, Any]:
        """The node's record, with `status`; a node that is gone without a word has lost the job."""
        folder = self.folder(name)
        record = read_json(folder / "status.json", None) or {"status": "Starting"}
        if record["status"] in ENDED:
            return dict(record)
        if not self._is_alive(folder):
            record = read_json(folder / "status.json", None) or {"status": "Starting"}
            if record["status"] not in ENDED and not self._starts(folder):
                self.end_processes(name)
                record |= {"status": "Failed", "ended": now(), "error": node_errors.preempted()}
                write_json(folder / "status.json", record)
            return dict(record)
        if read_json(folder / "control.json", {}).get("do") == "cancel":
            record["status"] = "CancelRequested"
        return dict(record)

    def cancel(self, name: str) -> None:
        """Ask the node to end the job."""
        if self.status(name)["status"] not in ENDED:
            write_json(self.folder(name) / "control.json", {"do": "cancel"})

    def preempt(self, name: str, *, restart: bool) -> None:
        """Take the node away; the service starts the job again, or leaves it failed."""
        write_json(self.folder(name) / "control.json", {"do": "preempt", "restart": restart})

    def hold(self, name: str, status: str, *, held: bool) -> None:
        """Keep the job in a state, or let it go on."""
        path = self.folder(name) / f"hold-{status}"
        if held:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        else:
            path.unlink(missing_ok=True)

    def kill_node(self, name: str) -> None:
        """End the node and the command at once, as when a machine burns."""
        pid = (read_json(self.folder(name) / "process.json", None) or {}).get("node", 0)
        if pid and self._is_alive(self.folder(name)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.end_processes(name)

    def end_processes(self, name: str) -> None:
        """End what a node that is gone left running."""
        record = read_json(self.folder(name) / "process.json", None) or {}
        for group in record.get("groups", []):
            # A number that meanwhile belongs to something else is not one of this job's working folder.
            if _works_in(group, self.folder(name)):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(group, signal.SIGKILL)

    def suspend(self) -> None:
        """End all nodes because the emulator ends in order; `resume` starts their jobs again."""
        for folder in self._folder.glob("*/"):
            if self._is_alive(folder):
                (folder / "suspended").touch()
                self.kill_node(folder.name)

    def resume(self) -> None:
        """Give nodes to the jobs that were suspended, or never got one; jobs that run are adopted as they are."""
        for folder in sorted(self._folder.glob("*/")):
            record = read_json(folder / "status.json", None)
            ended = record is not None and record["status"] in ENDED
            if ended or not (folder / "node.json").exists() or self._is_alive(folder):
                continue
            if record is None or (folder / "suspended").exists():
                self._spawn(folder)

    def remove(self, name: str) -> None:
        """Forget an ended job."""
        shutil.rmtree(self.folder(name), ignore_errors=True)

    def _spawn(self, folder: Path) -> None:
        (folder / "begun").unlink(missing_ok=True)
        (folder / "spawned").touch()
        (folder / "suspended").unlink(missing_ok=True)
        variables = {**os.environ, **self._environment}
        # The node's own imports are the emulator's; the job's command gets a clean set.
        path = os.pathsep.join(filter(None, [str(_ROOT), self._environment.get("PYTHONPATH", "")]))
        spawn_detached(
            [sys.executable, "-m", "tests.azure_emulator.node", str(folder)],
            cwd=_ROOT,
            log_file=folder / "node.txt",
            env={**variables, "PYTHONPATH": path},
        )

    @staticmethod
    def _is_alive(folder: Path) -> bool:
        with contextlib.suppress(FileNotFoundError), (folder / "alive.lock").open("r") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    @staticmethod
    def _starts(folder: Path) -> bool:
        """Whether a node may still be on its way to its first word."""
        if (folder / "suspended").exists():
            return True
        with contextlib.suppress(FileNotFoundError):
            age = time.time() - (folder / "spawned").stat().st_mtime
            return age < _START_SECONDS and not (folder / "begun").exists()
        return True  # it is being launched at this moment


def _works_in(pid: int, folder: Path) -> bool:
    with contextlib.suppress(OSError):
        return Path(os.readlink(f"/proc/{pid}/cwd")).is_relative_to(folder)
    return False
