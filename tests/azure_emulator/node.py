"""A compute node: runs one job's real command, and does around it what the service does.

Started detached by `jobs.py`; it outlives the emulator and tells what it does in `status.json` of the job's
folder. What it was given is `node.json`; what it is told meanwhile is `control.json` (cancel, preempt) and the
files `hold-<Status>`, which keep it in that state while they are there.

Usage: python -m tests.azure_emulator.node JOB_FOLDER
"""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import os
import re
import shutil
import signal
import sys
import time
import traceback
from pathlib import Path
from typing import IO, Any

from tests.azure_emulator import node_errors, node_processes
from tests.azure_emulator.azurite import open_client
from tests.azure_emulator.job_files import Mirror, Place, Transfers
from tests.azure_emulator.node_errors import JobError
from tests.azure_emulator.node_records import now, read_json, write_json, write_text

_POLL_SECONDS = 0.1
_SEND_SECONDS = 1.0
_TERM_SECONDS = 20.0
_BUILD_LOG = "azureml-logs/20_image_build_log.txt"


class Cancelled(Exception):
    """Somebody, or the job's time limit, ended the job."""


class Preempted(Exception):
    """The node was taken away."""

    def __init__(self, restart: bool) -> None:
        super().__init__("preempted")
        self.restart = restart


class Node:
    """One job on one machine.

    Args:
        folder: the job's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._job: dict[str, Any] = read_json(folder / "node.json")
        self._transfers = Transfers(lambda: open_client(read_json(Path(self._job["storage"]))))
        artifacts = Place.from_json(self._job["artifacts"])
        self._kept = folder / "artifacts"
        self._work = folder / "work"
        self._logs = [Mirror(self._transfers, artifacts, self._kept)]
        for name in ("logs", "outputs"):
            place = Place(artifacts.container, f"{artifacts.path}/{name}")
            self._logs.append(Mirror(self._transfers, place, self._work / name))
        self._mounts: list[Mirror] = []
        self._uploads: list[Mirror] = []
        self._slots: list[IO[str]] = []
        self._sent = 0.0
        self._ran_since = 0.0
        self._log = node_processes.log_names(self._job["processes"])[0]
        self._python, self._packages = Path(sys.executable), list[str]()

    def run(self) -> int:
        """Take the job to its end and record it."""
        try:
            self._prepare()
            while True:
                try:
                    self._wait_for_slots()
                    self._run_command()
                    break
                except Preempted as error:
                    if not error.restart:
                        raise
                    self._free_slots()
                    self._say("Queued")
                    self._job["script"].pop("after", None)
            self._finalize(uploads=True)
            self._say("Completed", ended=True)
        except Cancelled:
            self._finalize()
            self._say("Canceled", ended=True)
        except Preempted:
            self._finalize()
            self._say("Failed", ended=True, error=node_errors.preempted())
        except JobError as error:
            self._finalize()
            self._say("Failed", ended=True, error=error.body)
        except Exception as error:  # what broke here is the emulator's fault, and the job must end all the same
            traceback.print_exc()
            self._say("Failed", ended=True, error=node_errors.service_error(str(error)))
        return 0

    # What a person sees

    def _say(self, status: str, *, ended: bool = False, error: dict[str, Any] | None = None) -> None:
        """Record the state, and stay in it as long as a scenario wants."""
        path = self._folder / "status.json"
        record = read_json(path, {})
        record["status"] = status
        if status == "Running" and "started" not in record:
            record["started"] = now()
        if ended:
            record |= {"ended": now(), "error": error}
        write_json(path, record)
        if ended:
            return
        seconds = self._job["script"].get("seconds", {}).get(status, self._job["phase_seconds"])
        self._wait(seconds if status != "Running" else 0.0)
        while (self._folder / f"hold-{status}").exists():
            self._wait(_POLL_SECONDS)

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while True:
            self._obey()
            left = deadline - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(left, _POLL_SECONDS))

    def _obey(self) -> None:
        """Do what somebody outside asked for."""
        control = read_json(self._folder / "control.json", {})
        if control.get("do") == "cancel":
            raise Cancelled
        if control.get("do") == "preempt":
            (self._folder / "control.json").unlink(missing_ok=True)
            raise Preempted(bool(control.get("restart")))

    # Before the command

    def _prepare(self) -> None:
        """Have the image, which stands for a virtual environment here."""
        self._say("Preparing")
        image = self._job["image"]
        failure = self._job["script"].get("image_build")
        log = self._kept / _BUILD_LOG
        if failure:
            write_text(log, f"Step 1/4 : FROM {image.get('base') or 'the base image'}\n{failure}\n")
            raise JobError(node_errors.image_build(_BUILD_LOG))
        if image["folder"]:
            from tests.azure_emulator import images

            self._python, self._packages = images.build(image, log)

    def _wait_for_slots(self) -> None:
        """Wait for as many nodes of the cluster as the job needs, after those who came before."""
        self._say("Queued")
        cluster = self._job["cluster"]
        folder = Path(cluster["folder"])
        folder.mkdir(parents=True, exist_ok=True)
        queue = (folder / "queue.lock").open("w")
        self._lock(queue)
        try:
            while len(self._slots) < cluster["needs"]:
                for number in range(cluster["nodes"]):
                    slot = (folder / f"node-{number}.lock").open("w")
                    try:
                        fcntl.flock(slot, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:
                        slot.close()
                        continue
                    self._slots.append(slot)
                    if len(self._slots) == cluster["needs"]:
                        break
                self._wait(_POLL_SECONDS if len(self._slots) < cluster["needs"] else 0.0)
        finally:
            queue.close()

    def _lock(self, file: IO[str]) -> None:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                self._wait(_POLL_SECONDS)

    def _free_slots(self) -> None:
        for slot in self._slots:
            slot.close()
        self._slots = []

    def _place_files(self) -> dict[str, str]:
        """Fetch code and inputs, restore mounted outputs; return what the command's placeholders stand for."""
        shutil.rmtree(self._work, ignore_errors=True)
        for name in ("logs", "outputs"):
            (self._work / name).mkdir(parents=True)
        if self._job["code"]:
            self._transfers.fetch_folder(Place.from_json(self._job["code"]), self._work)
        values: dict[str, str] = {}
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        for name, given in self._job["inputs"].items():
            values[f"inputs.{name}"] = self._input(name, given)
        self._mounts, self._uploads = [], []
        for name, wanted in self._job["outputs"].items():
            root = self._folder / "data" / "outputs" / name
            mounted = wanted["mode"] != "Upload"
            mirror = Mirror(self._transfers, Place.from_json(wanted), root, removes=mounted, settles=mounted)
            if wanted["type"] != "uri_file":
                root.mkdir(parents=True, exist_ok=True)
            else:
                root.parent.mkdir(parents=True, exist_ok=True)
            if mounted:
                mirror.restore()
            (self._mounts if mounted else self._uploads).append(mirror)
            values[f"outputs.{name}"] = str(root)
        return values

    def _input(self, name: str, given: dict[str, Any]) -> str:
        if "value" in given:
            return str(given["value"])
        place = Place.from_json(given)
        root = self._folder / "data" / "inputs" / name
        try:
            if given["type"] == "uri_file":
                self._transfers.fetch_file(place, root / Path(place.path).name)
                return str(root / Path(place.path).name)
            if not self._transfers.fetch_folder(place, root):
                raise FileNotFoundError(place.path)
        except FileNotFoundError as error:
            raise JobError(node_errors.no_data(name, given["uri"])) from error
        return str(root)

    # The command

    def _run_command(self) -> None:
        self._say("Running")
        values = self._place_files()
        command = self._job["script"].get("command") or self._job["command"]
        command = re.sub(r"\$\{\{\s*([\w.]+)\s*\}\}", lambda match: values[match[1]], command)
        given = self._job["variables"]
        variables = node_processes.container_variables(self._folder, self._python, self._packages, values, given)
        world = self._job["processes"]
        processes = node_processes.start(command, world, work=self._work, kept=self._kept, variables=variables)
        write_json(self._folder / "process.json", {"node": os.getpid(), "groups": [child.pid for child in processes]})
        self._ran_since = time.monotonic()
        try:
            while any(child.poll() is None for child in processes):
                self._wait(_POLL_SECONDS)
                self._watch()
                if any(child.poll() not in (None, 0) for child in processes):
                    break
        except Cancelled:
            node_processes.end(processes, _TERM_SECONDS)
            raise
        finally:
            node_processes.end(processes, 0.0)
        failed = next((child.returncode for child in processes if child.returncode), 0)
        if failed:
            raise JobError(node_errors.user_process(command, failed, self._log, self._log_tail()))

    def _watch(self) -> None:
        """Send what changed, and let the scenario and the time limit have their say."""
        if time.monotonic() - self._sent > _SEND_SECONDS:
            for mirror in (*self._logs, *self._mounts):
                mirror.send()
            self._sent = time.monotonic()
        ran = time.monotonic() - self._ran_since
        if ran > self._job["timeout_seconds"]:
            write_text(self._kept / "user_logs" / "time_limit.txt", "The job ran longer than its limits.timeout.\n")
            raise Cancelled
        after = self._job["script"].get("after")
        if after and self._is_due(after, ran):
            if after["do"] == "cancel":
                raise Cancelled
            raise Preempted(bool(after.get("restart")))

    def _is_due(self, after: dict[str, Any], ran: float) -> bool:
        if "file" in after:
            return any(
                fnmatch.fnmatchcase(name, after["file"])
                for mirror in (*self._mounts, *self._logs)
                for name in mirror.sent_names()
            )
        return bool(ran >= float(after.get("seconds", 0)))

    # After the command

    def _finalize(self, *, uploads: bool = False) -> None:
        """Send what is left; outputs that are uploaded at the end only when the command succeeded."""
        if uploads:
            with contextlib.suppress(Cancelled, Preempted):
                self._say("Finalizing")
        for mirror in (*self._mounts, *(self._uploads if uploads else ()), *self._logs):
            mirror.send(final=True)
        self._free_slots()
        shutil.rmtree(self._folder / "data", ignore_errors=True)
        shutil.rmtree(self._folder / "tmp", ignore_errors=True)

    def _log_tail(self) -> str:
        text = (self._kept / self._log).read_text(encoding="utf-8", errors="replace")
        return "\n".join(text.splitlines()[-15:])


def main(arguments: list[str]) -> int:
    """Run the job of a folder, unless a node has it already."""
    folder = Path(arguments[0])
    alive = (folder / "alive.lock").open("w")
    try:
        fcntl.flock(alive, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return 0
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    write_json(folder / "process.json", {"node": os.getpid(), "groups": []})
    (folder / "begun").touch()
    return Node(folder).run()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
