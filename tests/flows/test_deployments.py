"""The flow as a Prefect deployment: made from a clone, run by the worker, cancelled and retried as in the UI."""

from __future__ import annotations

import json
import socket
import subprocess
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import requests
from journey import ROOT, Journey, Served, eventually

from tasks.config_files import load_config

pytestmark = pytest.mark.journey

DEPLOYMENT = "fine-tune-and-deploy/local"
DONE_ONCE = ("resolve_base_model", "prepare_data", "submit_training", "await_training")


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


@pytest.fixture(scope="module")
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


def test_deployment_has_a_form_and_a_sleeping_schedule(journey: Journey, prefect: Prefect) -> None:
    """`prefect deploy --all` from a clone makes a nested form with the values of the file, and a paused schedule."""
    deployment = prefect.deployment()
    schema = deployment["parameter_openapi_schema"]
    definitions = schema["definitions"]
    assert schema["properties"]["config"]["$ref"].endswith("/PipelineConfig")
    sections = definitions["PipelineConfig"]["properties"]
    assert {"data", "model", "train", "gate", "serving", "rollout", "chat"} <= set(sections)
    assert "hold_seconds" in definitions["RolloutConfig"]["properties"]
    assert definitions["RolloutConfig"]["properties"]["hold_seconds"]["description"]
    config = deployment["parameters"]["config"]
    assert config["name"] == "phiflow-demo"
    assert config["platform"]["home"] == str(journey.home)
    assert not Path(config["data"]["source"]).is_absolute()
    (schedule,) = deployment["schedules"]
    assert schedule["active"] is False
    assert schedule["schedule"]["cron"] == "0 2 * * *"


@pytest.mark.slow
def test_failed_run_is_retried_from_the_step_that_failed(journey: Journey, prefect: Prefect) -> None:
    """After the UI's Retry, what the run already did is not done again, and it ends Completed with all artifacts."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        config = journey.configure("retried", chat={"port": port})
        run_id = prefect.run(parameters_of(journey, config))
        assert prefect.await_state(run_id, "Failed", "Completed", "Crashed") == "Failed"
        failed = prefect.task_runs(run_id)
    assert failed["serve_chat"] == ["Failed"]
    message = prefect.get(f"/flow_runs/{run_id}")["state"]["message"]
    assert f"Port {port} is in use" in message
    # The body that the UI's button sends.
    state = {"type": "SCHEDULED", "name": "AwaitingRetry", "message": "Retry from the UI"}
    prefect.post(f"/flow_runs/{run_id}/set_state", state=state)
    prefect.await_state(run_id, "Running", "Completed")
    assert prefect.await_state(run_id, "Failed", "Completed", "Crashed") == "Completed"
    assert prefect.get(f"/flow_runs/{run_id}")["run_count"] == 2
    retried = prefect.task_runs(run_id)
    for name in DONE_ONCE:
        assert retried[name][0] == "Completed", (name, retried[name])
        assert set(retried[name][1:]) <= {"Cached"}, (name, retried[name])
    assert retried["serve_chat"][-1] == "Completed"
    assert [job["attempt"] for job in journey.jobs("retried")] == [1]
    (deployment,) = journey.endpoint("retried")["deployments"]
    assert deployment.startswith("v1-")
    _check_artifacts(prefect, run_id, f"http://127.0.0.1:{port}")


def _check_artifacts(prefect: Prefect, run_id: str, chat_url: str) -> None:
    artifacts = prefect.artifacts(run_id)
    assert set(artifacts) >= {"training-progress", "training-job", "report", "loss-curve", "mlflow", "chat"}
    assert artifacts["training-progress"]["type"] == "progress"
    assert artifacts["training-progress"]["data"] == 100.0
    assert chat_url in str(artifacts["chat"]["data"])
    assert "data:image/svg+xml;base64," in str(artifacts["loss-curve"]["data"])
    report = str(artifacts["report"]["data"])
    for wanted in ("# Completed", "| loss |", "## Gate", "## Traffic", "## Sample answers", "100%"):
        assert wanted in report, wanted
    assert requests.get(chat_url, timeout=10).status_code == 200


def test_cancelled_run_cancels_its_job(journey: Journey, prefect: Prefect) -> None:
    """The UI's Cancel during training ends the run Cancelled, its job with it, and the next run goes on."""
    config = journey.configure("cancelled", train={"num_train_epochs": 400, "save_steps": 20})
    run_id = prefect.run(parameters_of(journey, config))
    eventually(lambda: journey.events("cancelled", "checkpoint"), 180)
    prefect.post(f"/flow_runs/{run_id}/set_state", state={"type": "CANCELLING"})
    assert prefect.await_state(run_id, "Cancelled", "Completed", "Failed", "Crashed") == "Cancelled"
    (job,) = journey.jobs("cancelled")
    eventually((job["folder"] / "exit.json").exists, 60)
    assert (job["folder"] / "cancel.json").exists()
    assert not [p for p in journey.processes() if job["name"] in " ".join(p.cmdline())]
    step = journey.events("cancelled", "checkpoint")[-1]["step"]
    told = journey.json("plan", config)
    assert "submit attempt 2" in told["job"]["action"]
    assert step >= 20


@pytest.mark.slow
def test_cancelled_rollout_restores_the_traffic(journey: Journey, prefect: Prefect) -> None:
    """The UI's Cancel in the middle of a rollout gives all traffic back to the version before."""
    config = journey.configure("withdrawn", gate={"champion_tolerance": 10.0}, rollout={"hold_seconds": 60})
    (old,) = journey.json("run", config)["endpoint"]["traffic"]
    parameters = parameters_of(journey, config)
    parameters["config"]["train"]["seed"] = 3
    run_id = prefect.run(parameters)
    eventually(lambda: 0 < journey.endpoint("withdrawn")["traffic"][old] < 100, 240)
    prefect.post(f"/flow_runs/{run_id}/set_state", state={"type": "CANCELLING"})
    assert prefect.await_state(run_id, "Cancelled", "Completed", "Failed", "Crashed") == "Cancelled"
    eventually(lambda: not journey.endpoint("withdrawn").get("rollout"), 60)
    state = journey.endpoint("withdrawn")
    assert state["traffic"][old] == 100
    assert len(journey.jobs("withdrawn")) == 2


@pytest.mark.slow
def test_deployment_runs_with_the_values_of_its_file(journey: Journey, prefect: Prefect) -> None:
    """`prefect deployment run` with nothing else ends Completed: the clone's data, the worker, the chat app."""
    printed = prefect.command("deployment", "run", DEPLOYMENT)
    run_id = next(word for word in printed.replace("/", " ").split() if _is_uuid(word))
    assert prefect.await_state(run_id, "Completed", "Failed", "Crashed", seconds=420) == "Completed"
    told = journey.json("status", prefect.clone / "deployments" / "local.yaml")
    response = requests.post(f"{told['chat']['url']}/score", json={"question": "What is phiflow?"}, timeout=60)
    assert response.status_code == 200
    assert response.json()["answer"]


def _is_uuid(word: str) -> bool:
    try:
        return str(UUID(word)) == word
    except ValueError:
        return False


@pytest.mark.slow
def test_refused_run_is_completed_with_that_name(journey: Journey, prefect: Prefect) -> None:
    """When the gate says no, Prefect shows a Completed run named Refused, with the report, and no traffic moved."""
    config = journey.configure("refused", train={"learning_rate": 1e-9}, gate={"min_improvement": 0.01})
    ended = journey.phiflow("run", config, "--json")
    assert ended.returncode == 3, ended.stderr
    told = json.loads(ended.stdout)
    state = prefect.get(f"/flow_runs/{told['run']['id']}")["state"]
    assert (state["type"], state["name"]) == ("COMPLETED", "Refused")
    assert told["gate"]["passed"] is False
    assert told["gate"]["reason"] in state["message"]
    assert "# Refused" in prefect.artifacts(told["run"]["id"])["report"]["data"]
    assert journey.endpoint("refused")["traffic"] == {}
