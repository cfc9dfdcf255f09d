"""A run or its training job is killed: the next run adopts what runs, and goes on from the last checkpoint."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import psutil
import pytest
from journey import Journey, Served, eventually, kill

pytestmark = pytest.mark.journey

LONG = {"num_train_epochs": 60, "save_steps": 20}


def trainer_of(journey: Journey, name: str) -> psutil.Process:
    """The one process that trains for a configuration."""
    folder = journey.jobs(name)[-1]["folder"]
    runner = psutil.Process(json.loads((folder / "process.json").read_text(encoding="utf-8"))["pid"])
    (trainer,) = runner.children()
    assert "trainer" in trainer.cmdline()
    return trainer


def run_states(journey: Journey, name: str) -> list[str]:
    """The names of the states of a configuration's runs in Prefect, oldest first."""
    from prefect.client.orchestration import SyncPrefectClient
    from prefect.client.schemas.sorting import FlowRunSort

    with SyncPrefectClient(journey.exports()["PREFECT_API_URL"]) as client:
        runs = client.read_flow_runs(sort=FlowRunSort.EXPECTED_START_TIME_ASC)
    return [str(run.state_name) for run in runs if run.name == name]


def test_killed_run_is_adopted(journey: Journey, served: Served) -> None:
    """After kill -9 of `phiflow run` during training, the same command adopts its job: one job, one process ever."""
    config = journey.configure("adopted", train=LONG)
    run = journey.start("run", config)
    eventually(lambda: journey.events("adopted", "checkpoint"), 180)
    trainer = trainer_of(journey, "adopted")
    runner = trainer.ppid()
    kill(run.pid)
    assert trainer.is_running()
    told = journey.json("run", config)
    (job,) = journey.jobs("adopted")
    assert job["attempt"] == 1
    assert (told["job"]["name"], told["job"]["attempt"]) == (job["name"], 1)
    process = json.loads((job["folder"] / "process.json").read_text(encoding="utf-8"))
    assert process["pid"] == runner
    submitted = next(step for step in told["steps"] if step["name"] == "submit_training")
    assert submitted["reused"] is True
    assert "adopted" in submitted["reason"]
    assert len(journey.events("adopted", "started")) == 1
    assert run_states(journey, "adopted") == ["Crashed", "Completed"]


@pytest.mark.slow
def test_killed_trainer_is_a_failed_run_and_then_a_second_attempt(journey: Journey, served: Served) -> None:
    """kill -9 of the trainer ends the run with one line and exit code 4; the next goes on from the checkpoint."""
    config = journey.configure("shot", train=LONG)
    run = journey.start("run", config)
    eventually(lambda: journey.events("shot", "checkpoint"), 180)
    trainer_of(journey, "shot").kill()
    _, errors = run.communicate(timeout=120)
    assert run.returncode == 4, errors
    assert "Traceback" not in errors
    (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
    assert "killed by signal 9" in line
    last = journey.events("shot", "checkpoint")[-1]["step"]
    told = journey.json("run", config)
    first, second = journey.jobs("shot")
    assert (first["attempt"], second["attempt"]) == (1, 2)
    assert told["job"]["attempt"] == 2
    submitted = next(step for step in told["steps"] if step["name"] == "submit_training")
    assert f"attempt 2 starts from checkpoint step {last}" in submitted["reason"]
    assert journey.events("shot", "started")[0]
    assert min(told["step"] for told in journey.events("shot", "progress")) > last
    assert run_states(journey, "shot") == ["Failed", "Completed"]


@pytest.mark.slow
def test_failure_inside_the_trainer_does_not_poison_the_name(journey: Journey, served: Served, tmp_path: Path) -> None:
    """A job that fails by itself is one line and exit code 4; what made it fail mended, the same command works."""
    model = tmp_path / "model"
    (origin,) = journey.home.glob("base-models/*/config.json")
    model.mkdir()
    for file in origin.parent.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    weights = model / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    config = journey.configure("mended", model={"base": str(model)})
    ended = journey.phiflow("run", config)
    assert ended.returncode == 4, ended.stderr
    assert "Traceback" not in ended.stderr
    weights.write_bytes(whole)
    assert journey.json("run", config)["run"]["state"] == "Completed"


@pytest.mark.slow
def test_two_attempts_after_a_bad_learning_rate(journey: Journey, served: Served) -> None:
    """Numbers that ruin the model are refused or failed in one line, and the good ones after them work."""
    config = journey.configure("ruined")
    ended = journey.phiflow("run", config, "--set", "train.learning_rate=1", "--set", "train.max_grad_norm=1000")
    assert ended.returncode in (3, 4), ended.stderr
    assert "Traceback" not in ended.stderr
    told = journey.json("run", config)
    assert told["run"]["state"] == "Completed"
    assert list(told["endpoint"]["traffic"].values()) == [100]


@pytest.mark.slow
def test_two_runs_at_once_share_one_job(journey: Journey, served: Served) -> None:
    """The same command twice at the same time makes one job, one version and one deployment; both succeed."""
    config = journey.configure("twins")
    runs = [journey.start("run", config, "--json") for _ in range(2)]
    told = []
    for run in runs:
        output, errors = run.communicate(timeout=300)
        assert run.returncode == 0, errors[-4000:]
        told.append(json.loads(output))
    assert len(journey.jobs("twins")) == 1
    assert told[0]["job"]["name"] == told[1]["job"]["name"]
    assert told[0]["model"]["version"] == told[1]["model"]["version"] == "1"
    assert len(journey.endpoint("twins")["deployments"]) == 1


@pytest.mark.slow
def test_interrupted_run_leaves_its_job_and_cancel_ends_it(journey: Journey, served: Served) -> None:
    """Ctrl-C leaves the job running and says so; `phiflow cancel` ends it with a checkpoint."""
    config = journey.configure("left", train=LONG | {"num_train_epochs": 400})
    run = journey.start("run", config)
    eventually(lambda: journey.events("left", "checkpoint"), 180)
    os.kill(run.pid, signal.SIGINT)
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "Traceback" not in errors
    assert f"phiflow cancel {config}" in errors
    trainer = trainer_of(journey, "left")
    ended = journey.phiflow("cancel", config)
    assert ended.returncode == 0, ended.stderr
    assert "cancelled" in ended.stdout
    assert not trainer.is_running()


@pytest.mark.slow
def test_stop_during_training_ends_the_run_its_job_and_every_service(journey: Journey, served: Served) -> None:
    """`phiflow stop` leaves nothing that would start again; the next run goes on from the checkpoint."""
    config = journey.configure("halted", train=LONG)
    run = journey.start("run", config)
    eventually(lambda: journey.events("halted", "checkpoint"), 180)
    trainer = trainer_of(journey, "halted")
    journey.phiflow("stop")
    run.communicate(timeout=60)
    assert run.returncode == 130
    assert not trainer.is_running()
    assert journey.processes() == []
    assert journey.json("status", config)["endpoint"] is None
    told = journey.json("run", config)
    assert told["job"]["attempt"] == 2
    assert told["run"]["state"] == "Completed"
