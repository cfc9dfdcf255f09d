"""Faults on Azure Machine Learning, scripted in the emulator: nothing that bills is made twice, and a run recovers."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from typing import Any

import pytest
from azure_journey import MADE, AzureJourney, Deployed
from journey import ROOT, eventually, kill

pytestmark = [pytest.mark.journey, pytest.mark.slow]

LONG = {"num_train_epochs": 60, "save_steps": 20}


def put_anew(azure: AzureJourney, kind: str, name: str) -> list[str]:
    """The names of what was made of a kind for a configuration, one for each time the service made one."""
    return azure.made(kind, f"{name}-" if kind == "jobs" else "v")


def state_of(azure: AzureJourney, name: str) -> str:
    """The state of a configuration's one job, as the service last told it."""
    told = ""
    for exchange in azure.exchanges():
        if re.search(rf"/(jobs/{name}-[^/]*|runs/{name}-[^/]*/details)$", exchange["path"]):
            body = exchange["response"]["body"]
            found = body.get("status") or body.get("properties", {}).get("status") if isinstance(body, dict) else ""
            told = found or told
    return told


def deployments_of(azure: AzureJourney, name: str) -> list[str]:
    """The deployments that were made at a configuration's endpoint."""
    found = []
    for exchange in azure.exchanges():
        match = re.search(rf"/onlineEndpoints/{name}-[0-9a-f]+/deployments/([^/]+)$", exchange["path"])
        if exchange["method"] == "PUT" and match and exchange["status"] in MADE:
            found.append(match[1])
    return found


def require_one_of_each(azure: AzureJourney, name: str, *, redone: bool = False) -> None:
    """One job and one deployment were ever made; or again, after a rollout that failed had deleted its own."""
    assert len(put_anew(azure, "jobs", name)) == 1, put_anew(azure, "jobs", name)
    deleted = [
        exchange
        for exchange in azure.exchanges()
        if exchange["method"] == "DELETE"
        and exchange["status"] == 202
        and re.search(rf"/onlineEndpoints/{name}-[0-9a-f]+/deployments/", exchange["path"])
    ]
    made = deployments_of(azure, name)
    assert len(made) - len(deleted) == 1, (made, len(deleted))
    assert redone or not deleted
    assert len(set(made)) == 1


@pytest.mark.parametrize("when", ["queued", "running", "deploying"])
def test_killed_run_is_adopted(azure: AzureJourney, deployed: Deployed, when: str) -> None:
    """After kill -9 while the job waits or trains, or the deployment is made, the same command makes nothing new."""
    name = f"killed-{when}"
    config = azure.configure(name)
    if when == "queued":
        azure.behave("job", "slow", f"{name}-.*", seconds={"Queued": 20.0})
        reached = lambda: state_of(azure, name) == "Queued"  # noqa: E731
    elif when == "running":
        config = azure.configure(name, train=LONG)
        reached = lambda: state_of(azure, name) == "Running"  # noqa: E731
    else:
        azure.behave("deployment", "creating", f"{name}-.*", seconds=20.0)
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
    azure.behave("job", "failed", "failing-.*")
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
    azure.behave("job", "preempted", "preempted-.*", after={"seconds": 8.0})
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
    assert "phiflow down --scope endpoint" in errors
    eventually(lambda: not azure.json("status", config)["jobs"], 60)


# The calls of a run that make or change something, in their order; the environment is there already.
CALLS = {
    "compute": ("PUT", r"/computes/{cluster}$", 1),
    "code": ("PUT", r"/codes/[^/]+/versions/", 1),
    "job": ("PUT", r"/jobs/{name}-", 1),
    "endpoint": ("PUT", r"/onlineEndpoints/{name}-[0-9a-f]+$", 1),
    "model": ("PUT", r"/models/{name}/versions/", 1),
    "deployment": ("PUT", r"/onlineEndpoints/{name}-[0-9a-f]+/deployments/v1-", 1),
    "traffic": ("PUT", r"/onlineEndpoints/{name}-[0-9a-f]+$", 2),
}
FAULTS: dict[str, dict[str, Any]] = {
    "429": {"do": "status", "status": 429, "headers": {"Retry-After": "1"}},
    "500": {"do": "status", "status": 500},
    "503": {"do": "status", "status": 503},
    "response lost": {"do": "lost"},
    "409": {"do": "status", "status": 409},
    "403": {"do": "status", "status": 403},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_on_each_call(azure: AzureJourney, deployed: Deployed, fault: str) -> None:
    """Each call that makes something fails once: recovered, or one line and the same command; nothing twice."""
    name, cluster = f"fault-{fault[:3].strip()}", f"cluster-{fault[:3].strip()}x"
    config = azure.configure(name, compute={"name": cluster}, train={"seed": list(FAULTS).index(fault) + 10})
    for method, path, nth in CALLS.values():
        azure.script(method=method, path=path.format(name=name, cluster=cluster), nth=nth, times=1, **FAULTS[fault])
    lines = []
    for _ in range(len(CALLS) + 1):
        ended = azure.phiflow("run", config, "--json", timeout=400)
        assert "Traceback" not in ended.stderr, ended.stderr[-4000:]
        if ended.returncode == 0:
            break
        assert ended.returncode == 4, ended.stderr[-3000:]
        lines += [line for line in ended.stderr.splitlines() if line.startswith("error: ")]
    left = azure.control("GET", "/_emulator/scenarios").json()["value"]
    azure.control("DELETE", "/_emulator/scenarios")
    assert json.loads(ended.stdout)["run"]["state"] == "Completed", lines
    assert not left, f"never happened: {left}"
    # What only a person can mend, or a stranger caused, may end a run; the rest must not.
    assert not lines or fault in ("403", "409"), lines
    assert len(lines) <= len(CALLS)
    require_one_of_each(azure, name, redone=bool(lines))
    assert set(azure.made("computes", cluster)) == {cluster}


def test_stuck_deployment_ends_in_one_line(azure: AzureJourney, deployed: Deployed) -> None:
    """A deployment whose creation never ends is told with the setting that bounds it, and holds no traffic."""
    config = azure.configure("stuck", serving={"start_timeout_seconds": 6})
    azure.behave("deployment", "creating", "stuck-.*")
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
    before, evidence = set(azure.made("jobs", "smoke-x")), azure.folder / "smoky"
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
    told = json.loads(evidence.with_suffix(".json").read_text())
    torn_down = told["steps"][-1]
    assert torn_down["outcome"] == "ok", torn_down
    assert torn_down["seen"][job] == "cancelled"
    assert any("cluster" in line for line in torn_down["seen"]["deleted"])
