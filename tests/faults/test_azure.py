"""Faults on Azure Machine Learning, scripted in the emulator: nothing that bills is made twice, and a run recovers."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest
from azure_journey import AzureJourney, Deployed
from journey import eventually, kill

pytestmark = [pytest.mark.journey, pytest.mark.slow]

LONG = {"num_train_epochs": 60, "save_steps": 20}


def put_anew(azure: AzureJourney, kind: str, name: str) -> list[str]:
    """The names of what was made of a kind for a configuration, one for each time the service made one."""
    return azure.made(kind, f"{name}-" if kind == "jobs" else "v")


def state_of(azure: AzureJourney, name: str) -> str:
    """The state of a configuration's one job, as the service last told it."""
    told = ""
    for exchange in azure.exchanges():
        if re.search(rf"/jobs/{name}-[^/]*$", exchange["path"]) and exchange["status"] in (200, 201):
            body = exchange["response"]["body"]
            told = body["properties"].get("status", told) if isinstance(body, dict) else told
    return told


def deployments_of(azure: AzureJourney, name: str) -> list[str]:
    """The deployments that were made at a configuration's endpoint."""
    found = []
    for exchange in azure.exchanges():
        match = re.search(rf"/onlineEndpoints/{name}-[0-9a-f]+/deployments/([^/]+)$", exchange["path"])
        if exchange["method"] == "PUT" and match and exchange["status"] == 201:
            found.append(match[1])
    return found


def require_one_of_each(azure: AzureJourney, name: str) -> None:
    """One job and one deployment were ever made."""
    assert len(put_anew(azure, "jobs", name)) == 1, put_anew(azure, "jobs", name)
    assert len(deployments_of(azure, name)) == 1, deployments_of(azure, name)


@pytest.mark.parametrize("when", ["queued", "running", "deploying"])
def test_killed_run_is_adopted(azure: AzureJourney, deployed: Deployed, when: str) -> None:
    """After kill -9 while the job waits or trains, or the deployment is made, the same command makes nothing new."""
    name = f"killed-{when}"
    config = azure.configure(name)
    if when == "queued":
        azure.behave("slow", f"{name}-.*", seconds={"Queued": 20.0})
        reached = lambda: state_of(azure, name) == "Queued"  # noqa: E731
    elif when == "running":
        config = azure.configure(name, train=LONG)
        reached = lambda: state_of(azure, name) == "Running"  # noqa: E731
    else:
        azure.behave("deployment-slow", f"{name}-.*", seconds=20.0)
        reached = lambda: bool(deployments_of(azure, name))  # noqa: E731
    run = azure.start("run", config)
    eventually(reached, 240)
    kill(run.pid)
    told = azure.json("run", config, timeout=400)
    assert told["run"]["state"] == "Completed"
    assert told["job"]["attempt"] == 1
    require_one_of_each(azure, name)


def test_two_runs_at_once_share_one_job(azure: AzureJourney, deployed: Deployed) -> None:
    """Two runs of one configuration started together: one job, one deployment, and both end well."""
    config = azure.configure("twice")
    runs = [azure.start("run", config, "--json") for _ in range(2)]
    ended = [run.communicate(timeout=400) for run in runs]
    assert [run.returncode for run in runs] == [0, 0], [errors[-2000:] for _, errors in ended]
    documents = [json.loads(output) for output, _ in ended]
    assert documents[0]["job"]["name"] == documents[1]["job"]["name"]
    require_one_of_each(azure, "twice")


def test_failed_job_is_one_line_and_then_a_second_attempt(azure: AzureJourney, deployed: Deployed) -> None:
    """A job that fails ends the run with its cause and exit code 4; the next run is attempt 2."""
    config = azure.configure("failing")
    azure.behave("job-failed", "failing-.*")
    ended = azure.phiflow("run", config)
    assert ended.returncode == 4, ended.stderr[-3000:]
    assert "Traceback" not in ended.stderr
    (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
    assert "failing-" in line
    told = azure.json("run", config)
    assert told["job"]["attempt"] == 2
    assert len(put_anew(azure, "jobs", "failing")) == 2


def test_preempted_job_goes_on_from_its_checkpoint(azure: AzureJourney, deployed: Deployed) -> None:
    """A job whose node is taken is followed by attempt 2 in the same run, from the last checkpoint."""
    config = azure.configure("preempted", train=LONG, compute={"tier": "low_priority", "name": "cheap"})
    azure.behave("preempted", "preempted-.*", seconds=8.0)
    ended = azure.phiflow("run", config, "--json", timeout=400)
    assert ended.returncode == 0, ended.stderr[-4000:]
    told = json.loads(ended.stdout)
    assert told["job"]["attempt"] == 2
    assert len(put_anew(azure, "jobs", "preempted")) == 2
    assert re.search(r"checkpoint", ended.stderr), ended.stderr[-4000:]


def test_cancelled_run_cancels_its_job(azure: AzureJourney, deployed: Deployed) -> None:
    """`phiflow cancel` ends the run in a terminal and its job in the workspace; a crash would have left it."""
    config = azure.configure("stopped", train=LONG)
    run = azure.start("run", config)
    eventually(lambda: state_of(azure, "stopped") == "Running", 240)
    ended = azure.phiflow("cancel", config)
    assert ended.returncode == 0, ended.stderr
    assert "stopped-" in ended.stdout
    _, errors = run.communicate(timeout=60)
    assert run.returncode == 130, errors
    assert "phiflow cancel" in errors
    assert "az ml online-endpoint delete" in errors
    eventually(lambda: not azure.json("status", config)["jobs"], 60)


# A fault on each call that makes something; the path is that of the one resource.
CALLS = {
    "environment": ("PUT", r"/environments/phiflow-training/versions/"),
    "compute": ("PUT", r"/computes/{cluster}$"),
    "code": ("PUT", r"/codes/[^/]+/versions/"),
    "job": ("PUT", r"/jobs/{name}-"),
    "model": ("PUT", r"/models/{name}/versions/"),
    "endpoint": ("PUT", r"/onlineEndpoints/{name}-[0-9a-f]+$"),
    "deployment": ("PUT", r"/deployments/v1-"),
    "traffic": ("PUT", r"/onlineEndpoints/{name}-[0-9a-f]+$"),
}
FAULTS: dict[str, dict[str, Any]] = {
    "409": {"do": "status", "status": 409},
    "429": {"do": "status", "status": 429, "headers": {"Retry-After": "1"}},
    "500": {"do": "status", "status": 500},
    "503": {"do": "status", "status": 503},
    "403": {"do": "status", "status": 403},
    "response lost": {"do": "lost"},
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_fault_on_a_call(azure: AzureJourney, deployed: Deployed, call: str, fault: str) -> None:
    """Each fault on each call that makes something: recovered, or one line that names it; nothing is made twice."""
    name = f"f-{call[:5]}-{fault[:3].replace(' ', '')}"
    cluster = f"c-{call[:4]}-{fault[:3]}x"
    config = azure.configure(name, compute={"name": cluster})
    method, path = CALLS[call]
    path = path.format(name=name, cluster=cluster)
    azure.script(method=method, path=path, nth=2 if call == "traffic" else 1, times=1, **FAULTS[fault])
    ended = azure.phiflow("run", config, "--json", timeout=400)
    azure.control("DELETE", "/_emulator/scenarios")
    assert "Traceback" not in ended.stderr
    if ended.returncode:
        assert ended.returncode == 4, ended.stderr[-3000:]
        (line,) = (line for line in ended.stderr.splitlines() if line.startswith("error: "))
        assert fault in ("403", "409") or call == "environment", line
        told = azure.json("run", config, timeout=400)  # what the person does next
    else:
        told = json.loads(ended.stdout)
    assert told["run"]["state"] == "Completed"
    require_one_of_each(azure, name)
    assert len(azure.made("computes", cluster)) == 1


def test_stuck_deployment_ends_in_one_line(azure: AzureJourney, deployed: Deployed) -> None:
    """A deployment whose creation never ends is told with the setting that bounds it, and holds no traffic."""
    config = azure.configure("stuck", serving={"start_timeout_seconds": 6})
    azure.behave("deployment-stuck", "stuck-.*")
    ended = azure.phiflow("run", config, timeout=200)
    assert ended.returncode == 4, ended.stderr[-3000:]
    assert "serving.start_timeout_seconds" in ended.stderr
    assert azure.json("status", config)["endpoint"]["traffic"] in ({}, None)


def test_emulator_keeps_its_state(azure: AzureJourney, deployed: Deployed) -> None:
    """After the emulator itself was killed and started again, the same command finds everything."""
    azure.kill_emulator()
    azure.start_emulator()
    told = azure.json("run", deployed.config)
    assert told["job"] == deployed.first["job"]
    assert told["endpoint"]["traffic"] == deployed.first["endpoint"]["traffic"]


def test_interrupted_smoke_run_is_torn_down(azure: AzureJourney, deployed: Deployed) -> None:
    """Ctrl-C in the middle of a smoke run deletes what it made and says so."""
    config = azure.configure("smoky", train=LONG)
    import signal
    import sys

    from journey import ROOT

    before = set(azure.made("jobs", "smoke-x"))
    run = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "flows.smoke",
            str(config),
            "--max-cost",
            "3",
            "--evidence",
            str(azure.folder / "smoky"),
        ],
        env=azure.environment(),
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    eventually(lambda: set(azure.made("jobs", "smoke-x")) - before, 240)
    run.send_signal(signal.SIGINT)
    _, errors = run.communicate(timeout=200)
    assert run.returncode == 4, errors[-3000:]
    (job,) = set(azure.made("jobs", "smoke-x")) - before
    told = json.loads((azure.folder / "smoky.json").read_text())
    torn_down = told["steps"][-1]
    assert torn_down["outcome"] == "ok", torn_down
    assert torn_down["seen"][job] == "cancelled"
    assert any("cluster" in line for line in torn_down["seen"]["deleted"])
