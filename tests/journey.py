"""One installation shared by the tests of whole journeys: its state folder, its command, its configurations.

Every test uses a configuration of its own name, so that environments, services and the base model are
shared while jobs, models and endpoints are not.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import psutil
import pytest
import requests
import yaml

ROOT = Path(__file__).resolve().parents[1]
T = TypeVar("T")

# Learns 40 short answers well enough for the gate in a few seconds; most of a run is the start of processes.
SETTINGS: dict[str, Any] = {
    "model": {"base": "builtin/tiny-phi3"},
    "train": {
        "num_train_epochs": 8,
        "learning_rate": 3e-3,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 16,
        "max_length": 64,
        "packing": False,
        "gradient_checkpointing": False,
        "eval_strategy": "no",
        "save_steps": 20,
        "logging_steps": 5,
        "num_samples": 3,
        "num_eval_generations": 4,
        "max_new_tokens_eval": 24,
    },
    "gate": {"min_examples": 2},
    "rollout": {"steps": [50, 100], "hold_seconds": 1, "num_probes": 3},
}


def eventually(what: Callable[[], T], seconds: float = 60, every: float = 0.2) -> T:
    """Poll until the value is true and return it; a failed connection counts as not yet."""
    deadline = time.monotonic() + seconds
    seen: Any = None
    while time.monotonic() < deadline:
        try:
            seen = what()
        except requests.RequestException as error:
            seen = error
        else:
            if seen:
                return seen
        time.sleep(every)
    raise AssertionError(f"not within {seconds:g} s; last seen: {seen!r}")


def records(number: int, first: int = 0, topic: str = "item") -> list[dict[str, Any]]:
    """Short questions with answers that follow a pattern, each of them different."""
    return [
        {
            "messages": [
                {"role": "user", "content": f"Where is {topic} {i}?"},
                {"role": "assistant", "content": f"The {topic} {i} is on shelf {i % 7} of room {i % 3}."},
            ]
        }
        for i in range(first, first + number)
    ]


class Journey:
    """A state folder, a folder with configurations, and the `phiflow` command in it."""

    def __init__(self) -> None:
        # A folder of its own, short: sockets and configuration paths are below it.
        self.folder = Path(tempfile.mkdtemp(prefix="phiflow-"))
        self.home = self.folder / "home"
        self.closes_first: list[Callable[[], None]] = []
        self._closed = False

    def environment(self, **more: str) -> dict[str, str]:
        """What a user's shell has: nothing of Prefect's or MLflow's."""
        kept = {k: v for k, v in os.environ.items() if not k.startswith(("PREFECT_", "MLFLOW_", "PHIFLOW_"))}
        bin_folder = str(Path(sys.executable).parent)
        path = f"{bin_folder}{os.pathsep}{kept.get('PATH', os.defpath)}"
        return {**kept, "PHIFLOW_HOME": str(self.home), "PYTHONPATH": str(ROOT), "PATH": path, **more}

    def phiflow(self, *arguments: str | Path, timeout: float = 300, **more: str) -> subprocess.CompletedProcess[str]:
        """Run the command to its end."""
        return subprocess.run(
            [sys.executable, "-m", "flows", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(**more),
            capture_output=True,
            text=True,
            timeout=timeout,
        )

    def start(self, *arguments: str | Path) -> subprocess.Popen[str]:
        """Start the command and leave it running, in a group of its own."""
        return subprocess.Popen(
            [sys.executable, "-m", "flows", *map(str, arguments)],
            cwd=self.folder,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def json(self, *arguments: str | Path, exit_code: int = 0, timeout: float = 300) -> dict[str, Any]:
        """Run the command with --json and return its one document."""
        ended = self.phiflow(*arguments, "--json", timeout=timeout)
        assert ended.returncode == exit_code, f"exit code {ended.returncode}\n{ended.stderr[-4000:]}"
        return json.loads(ended.stdout)

    def write_data(self, name: str, rows: Sequence[dict[str, Any]]) -> Path:
        """Write records as a data file."""
        path = self.folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    def configure(self, name: str, rows: Sequence[dict[str, Any]] | None = None, **sections: Any) -> Path:
        """Write a configuration and its data; `sections` are laid over the small settings, key by key."""
        self.write_data(name, records(40) if rows is None else rows)
        config: dict[str, Any] = {"name": name, "data": {"source": f"{name}.jsonl"}}
        for section in {**SETTINGS, **sections}:
            config[section] = {**config.get(section, {}), **SETTINGS.get(section, {}), **sections.get(section, {})}
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(config), encoding="utf-8")
        return path

    def jobs(self, name: str) -> list[dict[str, Any]]:
        """The training jobs of a configuration, each attempt one, oldest first."""
        files = self.home.glob(f"jobs/{name}-*/job.json")
        found = [json.loads(path.read_text(encoding="utf-8")) | {"folder": path.parent} for path in files]
        training = [job for job in found if job["kind"] == "training"]
        return sorted(training, key=lambda job: (job["folder"] / "train.json").stat().st_mtime)

    def events(self, name: str, event: str) -> list[dict[str, Any]]:
        """The events of one kind that the last training job of a configuration has written so far."""
        jobs = self.jobs(name)
        path = jobs[-1]["folder"] / "logs" / "events.jsonl" if jobs else None
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path and path.exists() else []
        found = (json.loads(line) for line in lines if line.endswith("\n"))
        return [told for told in found if told["event"] == event]

    def key(self, name: str) -> str:
        """The bearer key of an endpoint."""
        return (self.home / "endpoints" / name / "key").read_text(encoding="utf-8").strip()

    def endpoint(self, name: str) -> dict[str, Any]:
        """What the endpoint's own file says: deployments, traffic, an unfinished rollout."""
        return json.loads((self.home / "endpoints" / name / "endpoint.json").read_text(encoding="utf-8"))

    def ask(self, url: str, name: str, **headers: str) -> requests.Response:
        """One short chat completion from an endpoint."""
        body = {"messages": [{"role": "user", "content": "Where is item 3?"}], "max_tokens": 4, "temperature": 0}
        headers = {"Authorization": f"Bearer {self.key(name)}", **headers}
        return requests.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=60)

    def exports(self) -> dict[str, str]:
        """What `phiflow env` tells a shell to export."""
        ended = self.phiflow("env")
        assert ended.returncode == 0, ended.stderr
        pairs = (line.removeprefix("export ").partition("=") for line in ended.stdout.splitlines())
        return {name: value for name, _, value in pairs}

    def processes(self) -> list[psutil.Process]:
        """Every process that names this state folder in its command line or environment."""
        found = []
        for process in psutil.process_iter():
            try:
                text = " ".join([*process.cmdline(), *process.environ().values()])
                if process.pid != os.getpid() and process.status() != psutil.STATUS_ZOMBIE and str(self.home) in text:
                    found.append(process)
            except (psutil.Error, OSError):
                continue
        return found

    def service(self, name: str) -> int:
        """The pid of a supervised program."""
        record = self.home / "supervisor" / "run" / f"{name}.json"
        return int(json.loads(record.read_text(encoding="utf-8"))["pid"])

    def close(self) -> None:
        """Stop everything, delete the folder, and say what still runs."""
        if self._closed:
            return
        self._closed = True
        for close in self.closes_first:
            close()
        stopped = self.phiflow("stop", timeout=120) if self.home.exists() else None
        left = self.processes()
        told = []
        for process in left:
            with contextlib.suppress(psutil.Error):  # it may have ended by itself
                told.append(f"{process.pid} {' '.join(process.cmdline())[-300:]}")
                process.send_signal(signal.SIGKILL)
        if not os.environ.get("PHIFLOW_TEST_KEEP"):
            shutil.rmtree(self.folder, ignore_errors=True)
        assert stopped is None or stopped.returncode == 0, stopped.stderr
        assert not left, f"still running after phiflow stop: {told}"


@functools.cache
def _shared() -> Journey:
    return Journey()


@pytest.fixture(scope="session")
def journey() -> Iterator[Journey]:
    """The one installation of this test session."""
    yield _shared()
    _shared().close()


class Client:
    """Sends five requests a second to an endpoint for as long as the block lasts, and keeps every outcome."""

    def __init__(self, journey: Journey, url: str, name: str) -> None:
        self._ask = functools.partial(journey.ask, url, name)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send)
        self.failures: list[str] = []
        self.served_by: Counter[str] = Counter()

    def _send(self) -> None:
        with ThreadPoolExecutor(16) as pool:
            while not self._stop.wait(0.2):
                pool.submit(self._one)

    def _one(self) -> None:
        try:
            response = self._ask()
        except requests.RequestException as error:
            self.failures.append(repr(error))
            return
        if response.ok and response.json()["choices"]:
            self.served_by[response.headers["azureml-model-deployment"]] += 1
        else:
            self.failures.append(f"{response.status_code} {response.text[:200]}")

    def __enter__(self) -> Client:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def kill(pid: int) -> None:
    """End a process the hard way and wait until it is gone."""
    process = psutil.Process(pid)
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 10)


class Served:
    """A configuration that has been run once, with the document and the log of that run."""

    def __init__(self, journey: Journey) -> None:
        self.name = "shelves"
        self.config = journey.configure(self.name, gate={"champion_tolerance": 10.0})
        ended = journey.phiflow("run", self.config, "--json", timeout=600)
        assert ended.returncode == 0, ended.stderr[-4000:]
        self.first: dict[str, Any] = json.loads(ended.stdout)
        self.log = ended.stderr
        self.url: str = self.first["endpoint"]["url"]
        self.chat_url: str = self.first["chat"]["url"]


@functools.cache
def _served() -> Served:
    return Served(_shared())


@pytest.fixture(scope="session")
def served(journey: Journey) -> Served:
    """A model behind an endpoint and a chat app; tests may give it further versions, each better than nothing."""
    return _served()
