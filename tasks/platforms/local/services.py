"""What must outlive a run, and where it listens: MLflow, Prefect, the gateway, model servers, the chat app.

Each is a supervised program on loopback; its usual port when that is free, else another, remembered.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.platforms.errors import PhiflowError, QuotaError
from tasks.platforms.local import processes
from tasks.platforms.local.files import write_json
from tasks.platforms.local.jobs import tail
from tasks.platforms.local.ports import PortBook
from tasks.platforms.local.state import KEEP_BYTECODE, Home
from tasks.platforms.local.supervisor import Program, ProgramStatus, Supervisor

if TYPE_CHECKING:
    from requests import Response

HOST = "127.0.0.1"
PREFECT_PORT, MLFLOW_PORT, GATEWAY_PORT, CHAT_PORT = 4200, 5000, 8000, 8080
WORK_POOL = "phiflow"
_POLL_SECONDS = 0.2
_START_SECONDS = 120.0
_INTERRUPT_SECONDS = 30.0
_RESTARTS_THAT_MEAN_BROKEN = 3
_FULL_DISK = ("No space left on device", "Disk quota exceeded", "database or disk is full")


class Services:
    """The supervised programs of one state folder."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._ports = PortBook(home.root)
        self.supervisor = Supervisor(home.root)
        self._stopped_file = home.folder("services") / ".stopped"

    def start(
        self,
        name: str,
        command: list[str],
        *,
        environment: dict[str, str] | None = None,
        env_file: Path | None = None,
        stop_seconds: int = 10,
    ) -> bool:
        """Run a program from now on; True when it was started or its definition changed."""
        self._stopped_file.unlink(missing_ok=True)
        self.supervisor.ensure_running()
        program = Program(
            name=name,
            command=tuple(command),
            cwd=self._home.folder("services", name),
            environment={
                "PHIFLOW_HOME": str(self._home.root),
                "NO_PROXY": os.environ.get("NO_PROXY", ""),
                **KEEP_BYTECODE,
                **(environment or {}),
            },
            env_file=env_file,
            log_file=self.log_file(name),
            stop_seconds=stop_seconds,
        )
        return self.supervisor.ensure_program(program)

    def remove(self, name: str) -> None:
        """End a program for good; its log stays."""
        self.supervisor.remove_program(name)
        self._ports.release(name)

    def log_file(self, name: str) -> Path:
        """Where the program writes."""
        return self._home.folder("logs") / f"{name}.log"

    def status(self, name: str) -> ProgramStatus | None:
        """The program as it is now, or None when it is not defined."""
        return self.supervisor.programs().get(name)

    def port(self, name: str, preferred: int, setting: str = "") -> int:
        """The program's port, the same one every time if nobody else took it; `setting` fixed it, if given."""
        return self._ports.claim(name, preferred, setting=setting)

    def mlflow(self, python: Path) -> str:
        """Start or adopt the MLflow server and wait until it answers."""
        port = self.port("mlflow", MLFLOW_PORT)
        store = self._home.folder("mlflow")
        # File artifacts, not proxied ones: a model of many gigabytes is copied once, not sent over HTTP.
        command = [
            *(str(python), "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"),
            *("--backend-store-uri", f"sqlite:///{store / 'mlflow.db'}", "--no-serve-artifacts"),
            *("--default-artifact-root", str(self._home.folder("mlflow", "artifacts"))),
        ]
        environment = {
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "DO_NOT_TRACK": "true",
            # Eight idle processes for background jobs that nothing here submits.
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        self.start("mlflow", command, environment=environment)
        url = f"http://{HOST}:{port}"
        self.wait_until_answers("mlflow", f"{url}/health")
        return url

    def is_mlflow_running(self) -> bool:
        """Whether the MLflow server is up; starts nothing."""
        found = self.status("mlflow")
        return found is not None and found.state == "running"

    def gateway(self) -> str:
        """Start or adopt the gateway and wait until it answers."""
        port = self.port("gateway", GATEWAY_PORT)
        command = [sys.executable, "-m", "tasks.platforms.local.gateway", "--home", str(self._home.root)]
        environment = {"PYTHONPATH": str(Path(__file__).resolve().parents[3])}
        self.start("gateway", [*command, "--port", str(port)], environment=environment)
        url = f"http://{HOST}:{port}"
        self.wait_until_answers("gateway", f"{url}/healthz")
        return url

    def prefect(self) -> str:
        """Start or adopt the Prefect server and a worker; returns the API's address."""
        port = self.port("prefect-server", PREFECT_PORT)
        api = f"http://{HOST}:{port}/api"
        shared = {"PREFECT_HOME": str(self._home.folder("prefect")), "DO_NOT_TRACK": "1"}
        bin_folder = Path(sys.executable).parent
        prefect = str(bin_folder / "prefect")
        self.start(
            "prefect-server",
            [prefect, "server", "start", "--host", HOST, "--port", str(port)],
            environment={
                **shared,
                # --port alone leaves the UI calling 4200.
                "PREFECT_SERVER_API_PORT": str(port),
                "PREFECT_SERVER_API_HOST": HOST,
                "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
                "PREFECT_API_URL": api,
            },
        )
        self.wait_until_answers("prefect-server", f"{api}/health")
        self.start(
            "prefect-worker",
            [prefect, "worker", "start", "--pool", WORK_POOL, "--type", "process", "--name", "this-machine"],
            environment={
                **shared,
                "PREFECT_API_URL": api,
                "PATH": f"{bin_folder}:/usr/local/bin:/usr/bin:/bin",
            },
            stop_seconds=40,
        )
        return api

    def prefect_environment(self) -> dict[str, str]:
        """Start or adopt Prefect and return the variables that point a process at it."""
        return {"PREFECT_API_URL": self.prefect(), "PREFECT_HOME": str(self._home.folder("prefect"))}

    def mlflow_url(self) -> str:
        """Where the MLflow server listens, or will."""
        return f"http://{HOST}:{self.port('mlflow', MLFLOW_PORT)}"

    @property
    def home(self) -> Path:
        """The state folder."""
        return self._home.root

    def stop(self) -> list[str]:
        """End every program, until something is started again; returns their names."""
        names = sorted(self.supervisor.programs())
        self.supervisor.stop_all()
        self._stopped_file.touch()
        return names

    @contextlib.contextmanager
    def known_run(self) -> Iterator[None]:
        """Within this block `interrupt_runs` reaches this process."""
        record = self._home.folder("runs") / f"{os.getpid()}.json"
        write_json(record, processes.current().as_json())
        try:
            yield
        finally:
            record.unlink(missing_ok=True)

    def interrupt_runs(self) -> int:
        """End the runs in terminals, which would start again what is being stopped; returns how many."""
        recorded = (processes.read_recorded(path) for path in self._home.folder("runs").glob("*.json"))
        runs = [process for process in recorded if process]
        for process in runs:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
        for process in processes.wait_until_ended(runs, _INTERRUPT_SECONDS):
            processes.terminate_tree(process)
        return len(runs)

    def revive(self) -> bool:
        """Start again what a crash ended; False when a person stopped it, or nothing is defined."""
        if self._stopped_file.exists() or not self.supervisor.programs():
            return False
        self.supervisor.ensure_running()
        return True

    def table(self) -> list[dict[str, str]]:
        """Every service with its state and address."""
        ports = self._ports.read()
        return [
            {"name": name, "state": status.state, "url": f"http://{HOST}:{ports[name]}" if name in ports else ""}
            for name, status in sorted(self.supervisor.programs().items())
        ]

    def wait_until_answers(
        self,
        name: str,
        url: str,
        timeout_seconds: float = _START_SECONDS,
        accept: Callable[[Response], bool] | None = None,
    ) -> None:
        """Poll until the address answers 2xx (or as `accept` says).

        Raises:
            PhiflowError: with what the program last wrote, when it did not in time or keeps ending.
        """
        import requests

        deadline = time.monotonic() + timeout_seconds
        restarts = self._restarts(name)
        while True:
            try:
                response = requests.get(url, timeout=5)
                if accept(response) if accept else response.ok:
                    return
            except requests.RequestException:
                pass
            if time.monotonic() > deadline or self._restarts(name) - restarts >= _RESTARTS_THAT_MEAN_BROKEN:
                raise self._not_answering(name, url)
            time.sleep(_POLL_SECONDS)

    def _restarts(self, name: str) -> int:
        status = self.status(name)
        return status.restarts if status else 0

    def _not_answering(self, name: str, url: str) -> PhiflowError:
        lines = [line for line in tail(self.log_file(name)) if not line.startswith("launch: ")]
        if any(sign in line for line in lines for sign in _FULL_DISK):
            message = f"{name} cannot work in {self._home.root}: the disk is full."
            return QuotaError(message, fix="Free some space and run the same command again.")
        # The last line of a Python traceback that is not indented says what went wrong.
        said = next((line.strip() for line in reversed(lines) if line[:1].strip()), "it wrote nothing")
        return PhiflowError(f"{name} does not answer at {url}: {said}", fix=f"Read {self.log_file(name)}.")
