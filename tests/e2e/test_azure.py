"""The journey on Azure Machine Learning: the command, the real SDK, HTTPS, and an emulator of the service."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import requests
from azure_journey import AzureJourney, Deployed
from journey import ROOT

from tests.azure_contract.calls import count_calls
from tests.azure_contract.exchange import logged

pytestmark = pytest.mark.journey


def test_first_run_reaches_a_chat_answer(azure: AzureJourney, deployed: Deployed) -> None:
    """One command takes data to a served answer: through the endpoint, the chat app and `phiflow chat`."""
    first = deployed.first
    assert first["run"]["state"] == "Completed"
    assert first["job"]["name"].startswith(f"{deployed.name}-")
    assert first["job"]["state"] == "completed"
    (deployment,) = first["endpoint"]["deployments"]
    assert deployment["percent"] == 100
    assert first["endpoint"]["url"].startswith("https://")
    told = azure.json("chat", "Where is item 3?", "--config", deployed.config)
    assert told["deployment"] == deployment["name"]
    assert told["answer"].strip()
    answer = requests.post(f"{deployed.chat_url}/score", json={"question": "Where is item 3?"}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert answer.json()["answer"].strip() == told["answer"].strip()


def test_second_run_makes_nothing(azure: AzureJourney, deployed: Deployed) -> None:
    """The same command again adopts all there is: no job, deployment or model is put, and it takes seconds."""
    before = len(azure.exchanges())
    started = time.monotonic()
    again = azure.json("run", deployed.config)
    seconds = time.monotonic() - started
    assert again["job"] == deployed.first["job"]
    assert again["endpoint"] == deployed.first["endpoint"]
    assert again["model"] == deployed.first["model"]
    asked = azure.exchanges()[before:]
    put = [exchange["path"] for exchange in asked if exchange["method"] in ("PUT", "PATCH", "DELETE")]
    assert [path for path in put if "/Microsoft.MachineLearningServices/" in path] == []
    for step in again["steps"]:
        assert step["state"] == "Completed", step
    assert seconds < 40


def test_management_calls_are_few(azure: AzureJourney, deployed: Deployed) -> None:
    """A first run asks Azure Resource Manager at most 120 times, besides polling."""
    calls = count_calls(list(logged(azure.log))[deployed.num_before : len(deployed.exchanges)])
    assert 20 < calls.asked.total() <= 120, calls.table()


def test_every_exchange_is_as_published(azure: AzureJourney, deployed: Deployed) -> None:
    """Each request of the SDK and each response of the emulator is one that Microsoft's descriptions allow."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.azure_contract", str(azure.log)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    if ended.returncode == 2:
        pytest.skip(ended.stderr.strip())
    assert ended.returncode == 0, ended.stdout[-6000:]


def test_no_name_outside_this_machine_is_looked_up(azure: AzureJourney, deployed: Deployed) -> None:
    """Neither the command, nor the SDK, nor a job asks for any name but the emulator's."""
    refused = Path(azure.reach["PHIFLOW_EMULATOR_REFUSED"])
    assert not refused.exists() or refused.read_text(encoding="utf-8") == ""


@pytest.mark.slow
def test_status_plan_and_data_look_without_making(azure: AzureJourney, deployed: Deployed) -> None:
    """The commands that look tell the workspace's names and leave the workspace as it is."""
    before = len(azure.exchanges())
    status = azure.json("status", deployed.config)
    plan = azure.json("plan", deployed.config)
    other = azure.json("plan", azure.configure("unseen"))
    assert status["endpoint"] == deployed.first["endpoint"]
    assert status["model"]["version"] == deployed.first["model"]["version"]
    assert status["chat"]["url"] == deployed.chat_url
    assert "reuse job" in plan["job"]["action"]
    assert {part["action"] for part in (*plan["environments"], plan["compute"])} == {"use"}
    assert "submit job unseen-" in other["job"]["action"]
    assert other["endpoint"]["name"].startswith("unseen-")
    put = [exchange for exchange in azure.exchanges()[before:] if exchange["method"] in ("PUT", "PATCH", "DELETE")]
    assert [exchange["path"] for exchange in put if "/Microsoft.MachineLearningServices/" in exchange["path"]] == []


@pytest.mark.slow
def test_freeze_and_thaw(azure: AzureJourney, deployed: Deployed) -> None:
    """A freeze is kept with the endpoint in the workspace, and shown by another process."""
    ended = azure.phiflow("freeze", deployed.config, "--reason", "audit")
    assert ended.returncode == 0, ended.stderr
    assert azure.json("status", deployed.config)["endpoint"]["frozen"] == "audit"
    assert azure.phiflow("freeze", deployed.config, "--off").returncode == 0
    assert azure.json("status", deployed.config)["endpoint"]["frozen"] == ""


def test_results_are_blobs_of_the_workspace(azure: AzureJourney, deployed: Deployed) -> None:
    """The run's results are in the workspace's storage, not on this machine's disk."""
    names = blobs(azure, deployed, "phiflow/results/")
    assert len(names) > 5
    local = azure.home / "prefect" / "storage"
    run_started = os.path.getmtime(deployed.config)
    assert not [path for path in local.glob("*") if path.stat().st_mtime > run_started and path.stem in names]


def blobs(azure: AzureJourney, deployed: Deployed, prefix: str, contents: bool = False) -> dict[str, str]:
    """The blobs below a prefix, by path, with their content when it is asked for; through phiflow's own storage."""
    code = (
        "import json, sys\n"
        "from tasks.config_files import load_config\n"
        "from tasks.platforms.connect import workspace_storage\n"
        "storage = workspace_storage(load_config(sys.argv[1]).platform)\n"
        "read = (lambda n: storage.read(n).decode('latin-1')) if sys.argv[3] == 'yes' else (lambda n: '')\n"
        "print(json.dumps({name: read(name) for name in storage.names(sys.argv[2])}))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(deployed.config), prefix, "yes" if contents else "no"],
        env=azure.environment(),
        cwd=azure.folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout)
    return found


def secrets_of(azure: AzureJourney, deployed: Deployed) -> dict[str, str]:
    """Every secret there was: the storage account's key, the endpoint's keys, and a token."""
    code = (
        "import json, sys\n"
        "from tasks.config_files import load_config\n"
        "from tasks.platforms.connect import _open\n"
        "config = load_config(sys.argv[1])\n"
        "workspace = _open(config.platform)\n"
        "keys = workspace.ml.online_endpoints.get_keys(config.endpoint_name)\n"
        "store = workspace.ml.datastores.get('workspaceblobstore', include_secrets=True)\n"
        "print(json.dumps({'account key': store.credentials.account_key, 'primary key': keys.primary_key,"
        " 'secondary key': keys.secondary_key, 'token': workspace.token('arm')}))\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(deployed.config)],
        env=azure.environment(),
        cwd=azure.folder,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    found: dict[str, str] = json.loads(ended.stdout)
    return {**found, "identity header": azure.reach["IDENTITY_HEADER"]}


@pytest.mark.slow
def test_no_secret_is_written_anywhere(azure: AzureJourney, deployed: Deployed) -> None:
    """No key, token or signature is in the log at DEBUG, a parameter, an artifact, a result or an open file."""
    secrets = secrets_of(azure, deployed)
    assert all(len(secret) > 8 for secret in secrets.values()), secrets.keys()
    exports = azure.exports()
    api, run_id = exports["PREFECT_API_URL"], deployed.first["run"]["id"]
    run = requests.get(f"{api}/flow_runs/{run_id}", timeout=30).text
    chosen: dict[str, Any] = {"artifacts": {"flow_run_id": {"any_": [run_id]}}}
    artifacts = requests.post(f"{api}/artifacts/filter", json=chosen, timeout=30).text
    logs = requests.post(f"{api}/logs/filter", json={"limit": 200}, timeout=30).text
    blocks = requests.post(f"{api}/block_documents/filter", json={"include_secrets": True}, timeout=30).text
    texts = {"log": deployed.log, "document": json.dumps(deployed.first), "run": run, "artifacts": artifacts}
    texts |= {"logs": logs, "blocks": blocks} | blobs(azure, deployed, "phiflow/results/", contents=True)
    texts |= {str(path): path.read_text(errors="replace") for path in open_files(azure.home)}
    assert "training-job" in artifacts
    assert "phiflow-workspace-results" in blocks
    for where, text in texts.items():
        for what, secret in secrets.items():
            assert secret not in text, f"{what} in {where}"
        assert not re.search(r"[?&]sig=(?!REDACTED|hidden|\.\.\.)[\w%]{10,}", text), f"a signature in {where}"


def open_files(home: Path) -> list[Path]:
    """Logs, records and configurations of the state folder that others than its owner may read."""
    found = []
    for folder in ("logs", "services", "supervisor", "azure", "data", "runs", "endpoints", "chat"):
        for path in (home / folder).rglob("*"):
            if path.is_file() and stat.S_IMODE(path.stat().st_mode) & 0o077 and path.stat().st_size < 5_000_000:
                found.append(path)
    return found


NOT_REACHED = {
    "nobody is signed in": (
        {"IDENTITY_ENDPOINT": "", "IDENTITY_HEADER": "", "PATH": "/nonexistent", "AZURE_CLIENT_ID": ""},
        "az login",
    ),
    "no such workspace": ({"AZURE_ML_WORKSPACE": "nowhere"}, "nowhere"),
    "no workspace is named": ({"AZURE_ML_WORKSPACE": ""}, "AZURE_ML_WORKSPACE"),
}


@pytest.mark.slow
@pytest.mark.parametrize("command", ["run", "status"])
@pytest.mark.parametrize("case", NOT_REACHED)
def test_what_is_not_reached_is_one_line(azure: AzureJourney, deployed: Deployed, case: str, command: str) -> None:
    """Without a login, a workspace or its name: one line that says which command or setting is missing."""
    variables, wanted = NOT_REACHED[case]
    ended = azure.phiflow(command, deployed.config, **variables)
    assert ended.returncode == (2 if "named" in case else 4), ended.stderr
    assert wanted in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [line for line in ended.stderr.splitlines() if line.startswith("error: ")] == ended.stderr.splitlines()[:1]


@pytest.mark.slow
def test_plan_needs_no_workspace(azure: AzureJourney, deployed: Deployed) -> None:
    """Without the workspace a plan says what it could not look up, and still what the run takes and costs."""
    ended = azure.phiflow("plan", deployed.config, "--json", AZURE_ML_WORKSPACE="nowhere")
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    assert "nowhere" in told["not_looked_up"]["platform"]
    assert told["estimate"]["dollars"]["high"] > 0
    assert told["data"]["counts"]["train"] > 0


@pytest.mark.slow
def test_smoke_run_is_rehearsed(azure: AzureJourney, deployed: Deployed, tmp_path: Path) -> None:
    """`make azure-smoke` on the emulator: every step is ok, what it made is gone, and the evidence has no ids."""
    config = azure.configure("smoked")
    evidence = tmp_path / "evidence"
    ended = subprocess.run(
        [sys.executable, "-m", "flows.smoke", str(config), "--max-cost", "3", "--evidence", str(evidence)],
        env=azure.environment(),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    told = json.loads(evidence.with_suffix(".json").read_text())
    assert {step["outcome"] for step in told["steps"]} == {"ok"}
    name = next(iter(azure.made("jobs", "smoke-x"))).rpartition("-")[0]
    deleted = [e["path"].rpartition("/")[2] for e in azure.exchanges() if e["method"] == "DELETE"]
    assert any(one.startswith(name) for one in deleted)
    assert name in deleted
    text = evidence.with_suffix(".md").read_text()
    assert azure.reach["AZURE_SUBSCRIPTION_ID"] not in text
    assert "| fine-tune, register, deploy, serve | ok |" in text


def test_down_leaves_an_empty_subscription_that_goes_up_again(azure: AzureJourney, deployed: Deployed) -> None:
    """From nothing, `up` made all there is; `down` leaves nothing of it, names free, and may be said twice."""
    assert {change["action"] for change in azure.up["changes"]} == {"create"}
    again = azure.json("up", deployed.config, "--what-if")
    assert again["changes"] == []
    assert len(azure.inventory()) > 10
    down = azure.phiflow("down", deployed.config, "--scope", "all", "--yes", timeout=300)
    assert down.returncode == 0, down.stderr[-3000:]
    assert azure.inventory() == []
    twice = azure.phiflow("down", deployed.config, "--scope", "all", "--yes")
    assert twice.returncode == 0 and "Nothing to delete" in twice.stdout
    azure.bring_up()
    assert azure.json("up", deployed.config, "--what-if")["changes"] == []
