"""The sweep as a Prefect deployment; and by a real Prefect server and MLflow, which jobs and models are nobody's."""

from __future__ import annotations

import json
import signal
from typing import Any

import pytest
from deployed import Prefect, parameters_of
from journey import Journey, Served, eventually

from tasks.config import LocalPlatformConfig
from tasks.config_files import load_config
from tasks.platforms.connect import connect
from tasks.platforms.upkeep import LeftoverKind

pytestmark = pytest.mark.journey

SWEEP = "/deployments/name/sweep/sweep"
# So that what other tests made is left alone.
ONLY_JOBS = {"soak_hours": 1000, "checkpoint_hours": 1000, "keep_last": 1000, "job_hours": 0}


def test_sweep_has_a_form_and_a_sleeping_schedule(journey: Journey, prefect: Prefect) -> None:
    """`prefect deploy --all` makes one deployment that sweeps, reports only, and does not run by itself."""
    deployment = prefect.get(SWEEP)
    assert deployment["parameters"]["delete"] is False
    assert deployment["parameters"]["config"]["platform"]["home"] == str(journey.home)
    properties = deployment["parameter_openapi_schema"]["properties"]
    assert properties["config"]["$ref"].endswith("/PipelineConfig")
    assert properties["delete"]["type"] == "boolean"
    assert [schedule["active"] for schedule in deployment["schedules"]] == [False]


@pytest.mark.slow
def test_job_of_a_killed_run_is_swept_and_that_of_a_live_one_is_not(journey: Journey, prefect: Prefect) -> None:
    """While its run lives a job is wanted; after a kill -9 the worker's sweep cancels it, and shows it in a table."""
    config = journey.configure("abandoned", train={"num_train_epochs": 400, "save_steps": 20}, retention=ONLY_JOBS)
    run = journey.start("run", config)
    eventually(lambda: journey.events("abandoned", "checkpoint"), 180)
    (job,) = journey.jobs("abandoned")
    told = journey.json("sweep", config)
    assert [one for one in told["leftovers"] if one["kind"] == "job"] == []
    run.send_signal(signal.SIGKILL)
    run.wait(30)
    parameters = {**parameters_of(journey, config), "delete": True}
    sweep = prefect.post(f"/deployments/{prefect.get(SWEEP)['id']}/create_flow_run", parameters=parameters)
    assert prefect.await_state(sweep["id"], "Completed", "Failed", "Crashed") == "Completed"
    table = prefect.artifacts(sweep["id"])["leftovers"]
    assert job["name"] in table["data"]
    assert "deleted" in table["data"]
    assert json.loads((job["folder"] / "cancel.json").read_text())["by"] == "phiflow sweep"
    assert journey.json("sweep", config)["leftovers"] == []


@pytest.mark.slow
def test_swept_model_is_trained_again_when_it_is_wanted(journey: Journey, served: Served) -> None:
    """A version beyond the last leaves the registry with its files; the next run of its content trains it again."""
    sections: dict[str, Any] = {
        "gate": {"champion_tolerance": 10.0},
        "rollout": {"keep_previous": 0},
        "retention": {"keep_last": 1},
    }
    first = journey.configure("pruned", **sections)
    assert journey.json("run", first)["model"]["version"] == "1"
    assert journey.json("run", first, "--set", "train.seed=3")["model"]["version"] == "2"
    platform = connect(LocalPlatformConfig(home=str(journey.home)))
    found = platform.find_leftovers(load_config(first))
    (model,) = (one for one in found if one.kind == LeftoverKind.MODEL and one.location.startswith("pruned:"))
    assert model.location == "pruned:1"
    (version,) = (one for one in platform.models.registered() if (one.name, one.version) == ("pruned", "1"))  # type: ignore[attr-defined]
    platform.remove_leftover(model)
    assert not [one for one in platform.find_leftovers(load_config(first)) if one.location == "pruned:1"]
    assert not (journey.home / "jobs" / version.job / "model").exists()
    again = journey.json("run", first)
    assert (again["model"]["version"], again["job"]["attempt"]) == ("3", 2)
