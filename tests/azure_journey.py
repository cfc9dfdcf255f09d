"""The shared installation, pointed at an emulator of Azure Machine Learning that the tests own.

State folder, environments and Prefect are those of `journey`; workspace, jobs and endpoints are the emulator's, which
begins as an empty subscription: `phiflow up` makes the workspace.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from journey import ROOT, Journey, _shared, eventually, kill, records

AZURITE_FOLDERS = (ROOT / "node_modules" / ".bin", ROOT / ".phiflow-azure" / "node" / "node_modules" / ".bin")
_PLATFORM = {"kind": "azure", "poll_seconds": 0.2, "location": "westeurope"}

# Statuses of a PUT that made something; 0 is an answer that was lost on its way.
MADE = (0, 201)


class AzureJourney(Journey):
    """The command in an environment in which Azure is the emulator."""

    def __init__(self, local: Journey) -> None:
        self.folder = local.folder
        self.home = local.home
        self.state = local.folder / "azure"
        self.log = self.state / "exchanges.jsonl"
        self.process: subprocess.Popen[bytes] | None = None
        self.reach: dict[str, str] = {}
        self.url = ""
        self.identity: dict[str, str] = {}
        self.start_emulator()
        self.up = self.bring_up()
        # Each folder of tests has a `journey` fixture of its own, and whichever ends first closes the shared one.
        local.closes_first.append(self.close)

    def start_emulator(self) -> None:
        """Start it on what it kept before, if anything, and wait until it answers."""
        self.state.mkdir(exist_ok=True)
        ready = self.state / "ready.json"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "tests.azure_emulator", "--state", str(self.state / "emulator")]
        command += ["--log", str(self.log), "--ready", str(ready), "--home", str(self.home), "--empty"]
        with (self.state / "emulator.log").open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=super().environment(), stdout=log, stderr=log, start_new_session=True
            )
        process = self.process
        eventually(lambda: ready.exists() or process.poll() is not None, 60)
        assert ready.exists(), (self.state / "emulator.log").read_text()[-3000:]
        told = json.loads(ready.read_text(encoding="utf-8"))
        self.url, self.reach = told["url"], told["env"]

    def bring_up(self) -> dict[str, Any]:
        """Make the workspace and what belongs to it; later configurations have the identity that was written."""
        config = self.configure("foundation")
        told = self.json("up", config)
        self.identity = yaml.safe_load(config.read_text(encoding="utf-8"))["platform"]["identity"]
        return told

    def inventory(self) -> list[str]:
        """The ids of all that is in the subscription."""
        return [str(entry) for entry in self.control("GET", "/_emulator/inventory").json()["value"]]

    def kill_emulator(self) -> None:
        """End it the hard way; what it runs goes on."""
        assert self.process is not None
        kill(self.process.pid)

    def environment(self, **more: str) -> dict[str, str]:
        path = os.pathsep.join(dict.fromkeys([*self.reach.get("PYTHONPATH", "").split(os.pathsep), str(ROOT)]))
        return {**super().environment(), **self.reach, "PYTHONPATH": path, **more}

    def configure(self, name: str, rows: Any = None, **sections: Any) -> Path:
        known = {"identity": self.identity} if self.identity else {}
        platform = {**_PLATFORM, **known, **sections.pop("platform", {})}
        compute = {"size": "Standard_E16s_v3", **sections.pop("compute", {})}
        # Other data than the local journeys', which would find it prepared on this machine.
        rows = records(41) if rows is None else rows
        return super().configure(name, rows, platform=platform, compute=compute, **sections)

    def exchanges(self) -> list[dict[str, Any]]:
        """Every request that the emulator answered, oldest first."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True) if self.log.exists() else []
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def made(self, kind: str, name: str) -> list[str]:
        """The names of the resources of a kind that were put, each as often as a PUT made it."""
        pattern = re.compile(rf"/{kind}/({re.escape(name)}[^/]*)$")
        found = []
        for exchange in self.exchanges():
            match = pattern.search(exchange["path"])
            if exchange["method"] == "PUT" and match and exchange["status"] in MADE:
                found.append(match[1])
        return found

    def script(self, *, do: str, method: str, path: str, **more: Any) -> None:
        """Have the emulator do something else with requests that match, as often as `times` says."""
        match = {"method": method, "path": path} | {key: more.pop(key) for key in ("nth", "times") if key in more}
        body = {"match": match, "do": do, **more}
        self.control("POST", "/_emulator/scenarios", json=body)

    def behave(self, kind: str, scenario: str, name: str, **more: Any) -> None:
        """Have the next `job` or `deployment` of a name go through one of the emulator's scenarios."""
        body = {"match": {"kind": kind, "name": name}, "do": scenario, **more}
        self.control("POST", "/_emulator/scenarios", json=body)

    def control(self, method: str, path: str, **more: Any) -> requests.Response:
        """Speak to the emulator itself."""
        ca = self.reach["REQUESTS_CA_BUNDLE"]
        response = requests.request(method, f"{self.url}{path}", verify=ca, timeout=30, **more)
        response.raise_for_status()
        return response

    def close(self) -> None:
        if self.process is None or self.process.poll() is not None:
            return
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


def find_azurite() -> bool:
    """Whether Azurite can be started; puts it on the PATH where it is installed beside the project."""
    for folder in AZURITE_FOLDERS:
        if (folder / "azurite-blob").exists():
            os.environ["PATH"] = f"{folder}{os.pathsep}{os.environ.get('PATH', '')}"
    return shutil.which("azurite-blob") is not None


@functools.cache
def _azure() -> AzureJourney:
    return AzureJourney(_shared())


@pytest.fixture(scope="session")
def azure(journey: Journey) -> Iterator[AzureJourney]:
    """The one emulator of this test session."""
    if not find_azurite():
        pytest.skip("Azurite is not installed: npm install azurite@3.35")
    yield _azure()
    _azure().close()


class Deployed:
    """A configuration that has been run once on Azure, with the document and the log of that run."""

    def __init__(self, azure: AzureJourney) -> None:
        self.name = "cupboards"
        self.config = azure.configure(self.name, gate={"champion_tolerance": 10.0})
        self.num_before = len(azure.exchanges())
        started = time.monotonic()
        ended = azure.phiflow("run", self.config, "--json", timeout=600, PREFECT_LOGGING_LEVEL="DEBUG")
        self.seconds = time.monotonic() - started
        assert ended.returncode == 0, ended.stderr[-6000:]
        self.first: dict[str, Any] = json.loads(ended.stdout)
        self.log = ended.stderr
        self.exchanges = azure.exchanges()
        self.chat_url: str = self.first["chat"]["url"]


@functools.cache
def _deployed() -> Deployed:
    return Deployed(_azure())


@pytest.fixture(scope="session")
def deployed(azure: AzureJourney) -> Deployed:
    """A model behind an endpoint of the emulator and a chat app."""
    return _deployed()
