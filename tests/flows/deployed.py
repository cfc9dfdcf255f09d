"""The installation's Prefect, with the deployments of a clone, and how its API is asked as the UI does."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
import requests
from journey import ROOT, Journey, Served, eventually

from tasks.config_files import load_config

DEPLOYMENT = "fine-tune-and-deploy/local"


class Prefect:
    """The Prefect API of the installation, and a clone whose deployments it knows."""

    def __init__(self, journey: Journey) -> None:
        exports = journey.exports()
        self.url = exports["PREFECT_API_URL"]
        self.environment = journey.environment(**exports)
        # What a user has: no PYTHONPATH; the clone's own folder is what the worker works in.
        self.environment.pop("PYTHONPATH")
        self.clone = journey.folder / "clone"
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(self.clone)], check=True, timeout=60)
        self.deployed = self.command("--no-prompt", "deploy", "--all")

    def command(self, *arguments: str) -> str:
        """Run `prefect` in the clone and return what it printed."""
        ended = subprocess.run(
            ["prefect", *arguments],
            cwd=self.clone,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-3000:]
        return ended.stdout

    def get(self, path: str) -> Any:
        """Read from the API."""
        response = requests.get(f"{self.url}{path}", timeout=30)
        response.raise_for_status()
        return response.json()

    def post(self, path: str, **body: Any) -> Any:
        """Send to the API."""
        response = requests.post(f"{self.url}{path}", json=body, timeout=30)
        response.raise_for_status()
        return response.json()

    def deployment(self) -> dict[str, Any]:
        """The deployment of the default configuration."""
        return self.get(f"/deployments/name/{DEPLOYMENT}")

    def run(self, parameters: dict[str, Any]) -> str:
        """Start the deployment with other parameters, as the UI's form does; returns the run's id."""
        deployment = self.deployment()
        run = self.post(f"/deployments/{deployment['id']}/create_flow_run", parameters=parameters)
        return str(run["id"])

    def state(self, run_id: str) -> str:
        """The name of the run's state."""
        return str(self.get(f"/flow_runs/{run_id}")["state"]["name"])

    def await_state(self, run_id: str, *names: str, seconds: float = 240) -> str:
        """Wait until the run is in one of the states."""
        return eventually(lambda: (state := self.state(run_id)) in names and state, seconds, every=0.5)

    def task_runs(self, run_id: str) -> dict[str, list[str]]:
        """The states of the run's task runs by the task's name, oldest first."""
        found = self.post(
            "/task_runs/filter",
            flow_runs={"id": {"any_": [run_id]}},
            sort="EXPECTED_START_TIME_ASC",
            limit=200,
        )
        states: dict[str, list[str]] = {}
        for run in found:
            states.setdefault(run["name"].rpartition("-")[0], []).append(run["state"]["name"])
        return states

    def artifacts(self, run_id: str) -> dict[str, dict[str, Any]]:
        """The run's artifacts by key."""
        found = self.post("/artifacts/filter", artifacts={"flow_run_id": {"any_": [run_id]}})
        return {artifact["key"]: artifact for artifact in found}


@pytest.fixture(scope="session")
def prefect(journey: Journey, served: Served) -> Prefect:
    """Deployed from a clone, beside a worker that already runs."""
    if not (ROOT / ".git").exists():
        pytest.skip(f"{ROOT} is not a git repository that could be cloned")
    return Prefect(journey)


def parameters_of(journey: Journey, config: Path) -> dict[str, Any]:
    """A configuration as the form of the UI would send it."""
    document = load_config(config).model_dump(mode="json")
    document["platform"]["home"] = str(journey.home)
    return {"config": document}
