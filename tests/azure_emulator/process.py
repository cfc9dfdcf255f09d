"""An emulator as tests have it: its own process, asked for counts, given scenarios, killed, started again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil
import requests

ROOT = Path(__file__).resolve().parents[2]
_START_SECONDS = 60.0
_STOP_SECONDS = 60.0


class EmulatorProcess:
    """One emulator with its state in a folder.

    Args:
        state: the folder; with the one of before, the emulator goes on.
        options: more of the command line.
    """

    def __init__(self, state: Path, *options: str) -> None:
        self.state = state
        self.log = state / "exchanges.jsonl"
        self._options = options
        self._ready = state / "ready.json"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""
        self.env: dict[str, str] = {}
        self._session = requests.Session()
        self._token = ""

    def start(self) -> EmulatorProcess:
        """Start it, and wait until it listens."""
        self.state.mkdir(parents=True, exist_ok=True)
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.azure_emulator", "--state", str(self.state / "emulator")]
        command += ["--log", str(self.log), "--ready", str(self._ready), *self._options]
        with (self.state / "output.txt").open("ab") as output:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._ready.exists():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"The emulator did not start: {self.output()}")
            time.sleep(0.02)
        told = json.loads(self._ready.read_text(encoding="utf-8"))
        self.url, self.env = told["url"], told["env"]
        self._session = requests.Session()
        self._session.trust_env = False
        self._session.verify = self.env["REQUESTS_CA_BUNDLE"]
        self._token = ""
        return self

    def stop(self) -> int:
        """End it in order; returns its exit code."""
        assert self._process is not None
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_STOP_SECONDS)

    def kill(self) -> None:
        """End it at once, as a crash does; its storage and its jobs go on."""
        assert self._process is not None
        self._process.kill()
        self._process.wait(_STOP_SECONDS)

    def output(self) -> str:
        """What it wrote; nothing when all went well."""
        return (self.state / "output.txt").read_text(encoding="utf-8", errors="replace")

    def environment(self) -> dict[str, str]:
        """This process's variables with the emulator's: for a process that is to reach it."""
        return {**os.environ, **self.env}

    def run(self, script: str, *arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
        """Run Python code in a fresh process that has only the emulator's variables to reach it by."""
        return subprocess.run(
            [sys.executable, "-c", script, *arguments],
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def send(self, method: str, path: str, body: Any = None, **headers: str) -> requests.Response:
        """Send a request with a token for Resource Manager, to a path with its api-version."""
        self._token = self._token or self.token()
        return self._send(method, path, body, {"Authorization": f"Bearer {self._token}", **headers})

    def token(self, resource: str = "") -> str:
        """A token as a process of this machine is given it."""
        headers = {"X-IDENTITY-HEADER": self.env["IDENTITY_HEADER"]}
        path = f"/identity/token?api-version=2019-08-01&resource={resource or self.url}"
        answer = self._send("GET", path, headers=headers)
        return str(answer.json()["access_token"])

    def set_secret(self, name: str, value: str) -> None:
        """Keep a secret in the workspace's key vault."""
        headers = {"Authorization": f"Bearer {self.token('https://vault.azure.net')}"}
        answer = self._send("PUT", f"/secrets/{name}?api-version=7.4", {"value": value}, headers)
        assert answer.status_code == 200, answer.text

    def configure(self, document: str, settings: dict[str, Any] | None = None) -> None:
        """Have the emulated cloud be so, as in `configure("subscription", {"state": "Disabled"})`; see `control.py`.
        Without settings it is as it was."""
        method = "DELETE" if settings is None else "PUT"
        answer = self._send(method, f"/_emulator/{quote(document)}", settings)
        assert answer.status_code < 300, answer.text
        self._token = ""  # those of before say who was signed in then

    def add_scenario(self, do: str, *, match: dict[str, Any] | None = None, **settings: Any) -> None:
        """Set a scenario; see `scenarios.py`."""
        answer = self._send("POST", "/_emulator/scenarios", {"match": match or {}, "do": do, **settings})
        assert answer.status_code == 201, answer.text

    def waiting_scenarios(self) -> list[dict[str, Any]]:
        """The scenarios that have not come to their end."""
        value: list[dict[str, Any]] = self._send("GET", "/_emulator/scenarios").json()["value"]
        return value

    def count(self, operation: str = "", *, path: str = "") -> int:
        """How often an operation such as `PUT W/jobs/{name}` was asked for since the last `reset`; `path` is a regular
        expression for the request's."""
        counts = self.exchanges(path=path)["counts"]
        return int(counts.get(operation, 0) if operation else sum(counts.values()))

    def exchanges(self, *, path: str = "", method: str = "") -> dict[str, Any]:
        """`counts` by operation, and `exchanges`: time, operation, method, path, status, scenario of each."""
        answer = self._send("GET", f"/_emulator/exchanges?path={quote(path)}&method={method}")
        value: dict[str, Any] = answer.json()
        return value

    def inventory(self) -> list[str]:
        """The ids of everything that exists in the subscription; see `inventory.py`."""
        value: list[dict[str, Any]] = self._send("GET", "/_emulator/inventory").json()["value"]
        return [str(one["id"]) for one in value]

    def control(self, method: str, path: str, body: Any = None) -> requests.Response:
        """Ask something of the emulator itself, below /_emulator/."""
        answer = self._send(method, f"/_emulator/{path}", body)
        assert answer.ok, answer.text
        return answer

    def reset(self) -> None:
        """Forget scenarios, counts and what `configure` set; resources stay."""
        self.configure("settings")
        self._send("DELETE", "/_emulator/scenarios")
        self._send("DELETE", "/_emulator/exchanges")

    def refused_names(self) -> list[str]:
        """The host names that processes with this emulator's variables wanted and did not get."""
        file = Path(self.env["PHIFLOW_EMULATOR_REFUSED"])
        return file.read_text(encoding="utf-8").split() if file.exists() else []

    def forget_refused_names(self) -> None:
        """Begin the list of refused names anew."""
        Path(self.env["PHIFLOW_EMULATOR_REFUSED"]).unlink(missing_ok=True)

    def storage_process(self) -> psutil.Process | None:
        """The process that keeps the blobs, if it runs."""
        file = self.state / "emulator" / "azurite" / "process.json"
        if not file.exists():
            return None
        try:
            return psutil.Process(json.loads(file.read_text())["pid"])
        except psutil.NoSuchProcess:
            return None

    def _send(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> requests.Response:
        return self._session.request(method, f"{self.url}{path}", json=body, headers=headers, timeout=60)
