"""From a data file to a chat answer with one command, and the same command again."""

from __future__ import annotations

import json
import stat
import time
from typing import Any

import psutil
import pytest
import requests
from journey import Journey, Served

pytestmark = pytest.mark.journey

STEPS = [
    *("ensure_environment-training", "ensure_compute", "resolve_base_model", "prepare_data", "estimate_costs"),
    "submit_training",
    *("ensure_environment-serving-cpu", "ensure_environment-promptflow", "await_training", "ensure_endpoint"),
    *("read_champion", "compare_with_champion", "register_model", "read_traffic", "deploy", "probe_deployment"),
    *("shift_traffic", "retire_deployments", "publish_connection", "serve_chat", "publish_report"),
]
MAKING = [
    *("prepare_data", "submit_training", "await_training", "register_model", "deploy", "shift_traffic", "serve_chat")
]


def test_run_tells_everything_in_one_document(served: Served) -> None:
    """`phiflow run --json` says what the run was, did, trained on, decided, registered and serves."""
    told = served.first
    assert told["run"]["state"] == "Completed"
    assert told["run"]["id"] in told["run"]["url"]
    assert [step["name"] for step in told["steps"]] == STEPS
    for step in told["steps"]:
        assert step["state"] == "Completed", step
        assert step["reason"], step
        assert step["seconds"] >= 0, step
    made = {step["name"] for step in told["steps"] if not step["reused"]}
    assert made >= set(MAKING)
    data = told["data"]
    assert len(data["sha256"]) == 64
    assert data["counts"]["train"] + data["counts"]["test"] == 40
    assert data["rejected"] == []
    with open(data["train_file"], encoding="utf-8") as file:
        assert len(file.readlines()) == data["counts"]["train"]
    job = told["job"]
    assert (job["state"], job["attempt"]) == ("completed", 1)
    assert job["url"].startswith(told["mlflow"]["url"])
    gate = told["gate"]
    assert (gate["metric"], gate["passed"], gate["champion"]) == ("loss", True, None)
    assert gate["candidate"] < gate["base"]
    model = told["model"]
    assert (model["name"], model["version"], len(model["digest"])) == (served.name, "1", 64)
    (deployment,) = told["endpoint"]["deployments"]
    assert told["endpoint"]["traffic"] == {deployment["name"]: 100}
    assert (deployment["model_version"], deployment["state"]) == ("1", "ready")


def test_addresses_of_the_document_answer(served: Served) -> None:
    """The run's page, MLflow and the chat page are there for a browser."""
    for url in (served.first["run"]["url"], served.first["mlflow"]["url"], served.chat_url):
        response = requests.get(url, headers={"Accept": "text/html"}, timeout=10)
        assert response.status_code == 200, url
        assert "<html" in response.text.lower(), url


def test_chat_app_answers_as_the_endpoint_does(journey: Journey, served: Served) -> None:
    """The chat app gives the served model's answer, and `phiflow chat` says which deployment gave it."""
    question = "Where is item 3?"
    response = requests.post(f"{served.chat_url}/score", json={"question": question}, timeout=60)
    assert response.status_code == 200, response.text
    told = journey.json("chat", question, "--config", served.config)
    assert told["answer"]
    assert response.json()["answer"] == told["answer"]
    (serving,) = (name for name, percent in journey.endpoint(served.name)["traffic"].items() if percent)
    assert told["deployment"] == serving
    assert serving.startswith(f"v{told['model_version']}-")


def test_status_shows_what_serves(journey: Journey, served: Served) -> None:
    """`phiflow status --json` has gate, model, endpoint, chat and MLflow as they are now."""
    told = journey.json("status", served.config)
    traffic = journey.endpoint(served.name)["traffic"]
    assert told["endpoint"]["traffic"] == traffic
    assert traffic[f"v{told['model']['version']}-{max(traffic, key=traffic.__getitem__).partition('-')[2]}"] == 100
    assert told["gate"]["passed"] is True
    assert told["chat"]["url"] == served.chat_url
    assert told["mlflow"]["url"] == served.first["mlflow"]["url"]
    assert {service["state"] for service in told["services"]} == {"running"}


def test_second_run_reuses_everything(journey: Journey, served: Served) -> None:
    """With nothing changed a run makes no data, job, version or deployment, says why, and takes under 15 s."""
    # Another test may have given the endpoint another version meanwhile.
    first = journey.json("run", served.config)
    jobs = journey.jobs(served.name)
    started = time.monotonic()
    second = journey.json("run", served.config)
    assert time.monotonic() - started < 15
    steps = {step["name"]: step for step in second["steps"]}
    for name in [*MAKING, *(name for name in STEPS if name.startswith("ensure_environment"))]:
        assert steps[name]["reused"] is True, name
        assert len(steps[name]["reason"].split()) > 2, name
    for section in ("data", "job", "model", "endpoint", "chat"):
        assert second[section] == first[section], section
    assert journey.jobs(served.name) == jobs


def test_endpoint_refuses_a_wrong_key(journey: Journey, served: Served) -> None:
    """Without the endpoint's key, or with another, a request is 401 and costs the model nothing."""
    for key in ("", "Bearer", "Bearer wrong", f"Basic {journey.key(served.name)}"):
        response = journey.ask(served.url, served.name, Authorization=key)
        assert response.status_code == 401, key
        assert journey.key(served.name) not in response.text
    assert journey.ask(served.url, served.name).status_code == 200


def test_key_is_nowhere_but_in_its_files(journey: Journey, served: Served) -> None:
    """The endpoint's key is in files of this user alone, in no log, no database and no command line."""
    key = journey.key(served.name)
    holders = []
    for path in journey.folder.rglob("*"):
        unwanted = {"environments", "tool-cache"} & set(path.relative_to(journey.folder).parts)
        if not unwanted and path.is_file() and not path.is_symlink() and key.encode() in path.read_bytes():
            holders.append(path.relative_to(journey.home).as_posix())
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert sorted(holders) == [f"chat/{served.name}/secrets.json", f"endpoints/{served.name}/key"]
    for process in psutil.process_iter():
        try:
            assert key not in " ".join(process.cmdline()), process
        except (psutil.Error, OSError):
            continue


def test_output_of_commands_holds_no_key(journey: Journey, served: Served) -> None:
    """Neither the document nor the log of a run, nor `status` and `env`, show the key."""
    key = journey.key(served.name)
    assert key not in served.log + json.dumps(served.first)
    for command in (("status", served.config), ("status", served.config, "--json"), ("env",)):
        ended = journey.phiflow(*command)
        assert ended.returncode == 0, ended.stderr
        assert key not in ended.stdout + ended.stderr, command


def test_wrong_configuration_starts_nothing(journey: Journey, served: Served) -> None:
    """A mistake in the configuration ends in one line and exit code 2, and as a document with --json."""
    told: dict[str, Any] = journey.json("run", served.config, "--set", "train.learning_rat=1", exit_code=2)
    assert "learning_rate" in told["error"]["message"] + told["error"]["fix"]
    ended = journey.phiflow("run", served.config, "--set", "train.learning_rat=1")
    assert ended.returncode == 2
    assert len(ended.stderr.strip().splitlines()) == 1
    assert "Traceback" not in ended.stderr
