"""The flow as a Prefect deployment: made from a clone, run by the worker, cancelled and retried as in the UI."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from uuid import UUID

import pytest
import requests
from deployed import DEPLOYMENT, Prefect, parameters_of
from journey import Journey, eventually

pytestmark = pytest.mark.journey

DONE_ONCE = ("resolve_base_model", "prepare_data", "submit_training", "await_training")


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
    assert "data:image/png;base64," in str(artifacts["loss-curve"]["data"])
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
