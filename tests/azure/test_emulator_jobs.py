"""The emulator's jobs: real commands with real files, in the states and with the errors of the service."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.azure.workbench import ASSETS, DATASTORE, JOBS, W, Workbench, until
from tests.azure_emulator.process import ROOT, EmulatorProcess

# Where environments are built already, before a test gets a state folder of its own.
HOME = os.environ.get("PHIFLOW_HOME") or str(ROOT / ".phiflow")
# Writes a checkpoint, and what it was given; goes on from the checkpoint when there is one.
_MAIN = """
import os, sys, time
from pathlib import Path
source, checkpoints, result, model, wait, code = sys.argv[1:]
found = sorted(path.name for path in Path(checkpoints).iterdir())
print("read", Path(source).read_text(), "found", found, flush=True)
Path("logs/events.jsonl").write_text("{}\\n")
Path(checkpoints, f"checkpoint-{len(found)}").write_text("x")
Path(result, "runs.txt").open("a").write("run\\n")
if not found:
    time.sleep(float(wait))
Path(model, "MLmodel").write_text(os.environ["AZUREML_RUN_ID"])
sys.exit(int(code))
"""
_ELSEWHERE = "azureml://datastores/none/paths/x"
_COMMAND = (
    "python main.py ${{inputs.source}} ${{outputs.checkpoints}} ${{outputs.result}} ${{outputs.model}} "
    "${{inputs.wait}} ${{inputs.code}}"
)


@pytest.fixture(scope="module")
def bench(shared_emulator: EmulatorProcess) -> Workbench:
    """The shared emulator's workspace."""
    return Workbench(shared_emulator)


def _literal(value: Any) -> dict[str, str]:
    return {"jobInputType": "literal", "value": str(value)}


def _output(path: str, mode: str) -> dict[str, str]:
    return {"jobOutputType": "uri_folder", "uri": f"{DATASTORE}/{path}", "mode": mode}


def _trainer(bench: Workbench, name: str, cluster: str, *, wait: float = 0, code: int = 0) -> dict[str, Any]:
    source = bench.write("chats.jsonl", "chats")
    job = {
        "codeId": bench.code("trainer", main=_MAIN),
        "inputs": {
            "source": {"jobInputType": "uri_file", "uri": source},
            "wait": _literal(wait),
            "code": _literal(code),
        },
        "outputs": {
            "checkpoints": _output(f"checkpoints/{name}", "ReadWriteMount"),
            "result": _output(f"results/{name}", "ReadWriteMount"),
            "model": _output(f"models/{name}", "Upload"),
        },
    }
    return bench.job(_COMMAND, cluster, **job)


@pytest.fixture(scope="module")
def ran(bench: Workbench) -> dict[str, str]:
    """Jobs of many fates at once: name and the state each ended in."""
    cluster = bench.cluster("many", 8)
    add = bench.emulator.add_scenario
    for do, settings in {
        "preempted": {"after": {"file": "checkpoint-*"}},
        "preempted_restarted": {"after": {"file": "checkpoint-*"}},
        "image_build_failed": {},
    }.items():
        add(do, match={"kind": "job", "name": f"^fate-{do.replace('_', '-')}$"}, **settings)
    nothing = {"jobInputType": "uri_file", "uri": f"{DATASTORE}/nowhere"}
    jobs = {
        "fate-completed": _trainer(bench, "completed", cluster),
        "fate-failed": _trainer(bench, "failed", cluster, code=3),
        "fate-preempted": _trainer(bench, "preempted", cluster, wait=60),
        "fate-preempted-restarted": _trainer(bench, "restarted", cluster, wait=60),
        "fate-image-build-failed": _trainer(bench, "image", cluster),
        "fate-without-data": bench.job("cat ${{inputs.source}}", cluster, inputs={"source": nothing}),
        "fate-too-long": bench.job("sleep 60", cluster, limits={"jobLimitsType": "Command", "timeout": "PT1S"}),
        "fate-spread": bench.job(
            "echo rank $RANK of $WORLD_SIZE",
            cluster,
            distribution={"distributionType": "PyTorch", "processCountPerInstance": 2},
        ),
    }
    for name, body in jobs.items():
        bench.submit(name, body)
    return {name: bench.ended(name) for name in jobs}


def _log(bench: Workbench, name: str, path: str = "user_logs/std_log.txt") -> str:
    answer = requests.get(
        bench.details(name)["logFiles"][path].replace("phiflowemulated.blob.core.azure-emulator.test", "127.0.0.1"),
        headers={"Host": "phiflowemulated.blob.core.azure-emulator.test"},
        verify=bench.emulator.env["REQUESTS_CA_BUNDLE"],
        timeout=10,
    )
    assert answer.status_code == 200, answer.text
    return answer.text


def test_a_job_runs_its_command_with_its_files(bench: Workbench, ran: dict[str, str]) -> None:
    """Code, inputs and placeholders are real; outputs are in the storage, and logs behind signed addresses."""
    assert ran["fate-completed"] == "Completed"
    assert bench.files("models/completed") == {"MLmodel": "fate-completed"}
    assert bench.files("checkpoints/completed") == {"checkpoint-0": "x"}
    details = bench.details("fate-completed")
    assert {"user_logs/std_log.txt", "logs/events.jsonl"} <= set(details["logFiles"])
    assert details["startTimeUtc"] <= details["endTimeUtc"]
    assert details["error"] is None
    assert _log(bench, "fate-completed") == "read chats found []\n"


def test_a_failed_job_says_why(bench: Workbench, ran: dict[str, str]) -> None:
    """Exit code and the log's end are in the error; mounted outputs are kept, uploaded ones are not."""
    assert ran["fate-failed"] == "Failed"
    error = bench.details("fate-failed")["error"]["error"]
    assert error["code"] == "UserError"
    assert "exited with status code 3" in error["message"]
    assert "read chats found []" in error["message"]
    assert bench.files("results/failed") == {"runs.txt": "run\n"}
    assert bench.files("models/failed") == {}


def test_a_preempted_job_keeps_its_checkpoint(bench: Workbench, ran: dict[str, str]) -> None:
    """It has failed in the service's words."""
    assert ran["fate-preempted"] == "Failed"
    assert "PreemptionError" in bench.details("fate-preempted")["error"]["error"]["message"]
    assert bench.files("checkpoints/preempted") == {"checkpoint-0": "x"}


def test_a_preempted_job_that_the_service_restarts_goes_on(bench: Workbench, ran: dict[str, str]) -> None:
    """The second start finds the checkpoint of the first in its mounted output."""
    assert ran["fate-preempted-restarted"] == "Completed"
    assert bench.files("results/restarted") == {"runs.txt": "run\nrun\n"}
    assert "found ['checkpoint-0']" in _log(bench, "fate-preempted-restarted")


def test_an_image_that_cannot_be_built_is_told_with_its_log(bench: Workbench, ran: dict[str, str]) -> None:
    """The reason is in the build's log alone."""
    assert ran["fate-image-build-failed"] == "Failed"
    assert "Image build failed" in bench.details("fate-image-build-failed")["error"]["error"]["message"]
    assert "torch==99.0" in _log(bench, "fate-image-build-failed", "azureml-logs/20_image_build_log.txt")


def test_a_job_without_its_data_fails(bench: Workbench, ran: dict[str, str]) -> None:
    """Nobody looks whether a blob is there when the job is submitted."""
    assert ran["fate-without-data"] == "Failed"
    assert "DataAccessError(NotFound)" in bench.details("fate-without-data")["error"]["error"]["message"]


def test_a_job_over_its_time_is_cancelled(ran: dict[str, str]) -> None:
    """limits.timeout counts from the start of the command."""
    assert ran["fate-too-long"] == "Canceled"


def test_a_distributed_job_has_a_process_for_each_rank(bench: Workbench, ran: dict[str, str]) -> None:
    """Each with its own log."""
    assert ran["fate-spread"] == "Completed"
    logs = [_log(bench, "fate-spread", f"user_logs/std_log_process_0{rank}.txt") for rank in (0, 1)]
    assert logs == ["rank 0 of 2\n", "rank 1 of 2\n"]


def test_a_job_waits_for_a_node_and_can_be_cancelled(bench: Workbench) -> None:
    """A cluster of one runs one; cancelling is asked for and then done, and frees the node."""
    cluster = bench.cluster("single", 1)
    bench.submit("first", bench.job("sleep 60", cluster))
    until(lambda: bench.status("first") == "Running")
    bench.submit("second", bench.job("echo done", cluster))
    until(lambda: bench.status("second") == "Queued")
    asked = bench.emulator.send("POST", f"{W}/jobs/first/cancel{JOBS}")
    assert asked.status_code == 202
    assert bench.status("first") in ("CancelRequested", "Canceled")
    assert bench.ended("first") == "Canceled"
    assert bench.ended("second") == "Completed"
    result = asked.headers["Location"].removeprefix(bench.emulator.url)
    until(lambda: bench.emulator.send("GET", result).status_code in (200, 204))


def test_a_name_is_one_job(bench: Workbench, ran: dict[str, str]) -> None:
    """The same again changes nothing, tags may change, what decides the result may not."""
    path = f"{W}/jobs/fate-completed{JOBS}"
    body = _trainer(bench, "completed", f"{W}/computes/many")
    assert bench.emulator.send("PUT", path, body).status_code == 200
    body["properties"]["tags"] = {"a": "b"}
    assert bench.emulator.send("PUT", path, body).json()["properties"]["tags"] == {"a": "b"}
    body["properties"]["command"] = "echo other"
    refused = bench.emulator.send("PUT", path, body)
    assert refused.status_code == 400
    assert "A job with this name already exists" in refused.json()["error"]["message"]
    run = f"/history/v1.0{W}/experiments/tests/runs/fate-completed"
    assert bench.emulator.send("PATCH", run, {"tags": {"c": "d"}}).json()["tags"] == {"a": "b", "c": "d"}
    assert bench.files("results/completed") == {"runs.txt": "run\n"}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"environmentId": f"{W}/environments/none/versions/1"}, "environment"),
        ({"environmentId": "azureml:none:1"}, "environment"),
        ({"environmentId": None}, "environmentId"),
        ({"computeId": f"{W}/computes/none"}, "Compute"),
        ({"codeId": f"{W}/codes/none/versions/1"}, "code"),
        ({"command": ""}, "command"),
        ({"command": "cat ${{inputs.none}}"}, "inputs.none"),
        (
            {"inputs": {"x": {"jobInputType": "uri_file", "uri": _ELSEWHERE}}},
            "datastore: none",
        ),
        ({"inputs": {"x": {"jobInputType": "uri_file", "uri": f"{W}/data/none/versions/1"}}}, "data: none"),
        ({"outputs": {"x": {"jobOutputType": "uri_folder", "uri": _ELSEWHERE}}}, "none"),
        ({"resources": {"instanceCount": 99}}, "99 nodes"),
        ({"limits": {"jobLimitsType": "Command", "timeout": "1 hour"}}, "1 hour"),
        ({"jobType": "Pipeline"}, "Pipeline"),
    ],
)
def test_a_job_that_azure_refuses_is_refused(bench: Workbench, change: dict[str, Any], word: str) -> None:
    """The SDK checks none of it, and what is refused is not there."""
    body = bench.job("echo", bench.cluster("many", 8))
    body["properties"] |= change
    answer = bench.emulator.send("PUT", f"{W}/jobs/refused{JOBS}", body)
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"]["message"]
    assert bench.emulator.send("GET", f"{W}/jobs/refused{JOBS}").status_code == 404


def test_mlflow_needs_a_token_and_knows_no_logged_models(bench: Workbench) -> None:
    """Azure's tracking server does not speak MLflow 3's new routes."""
    route = f"/mlflow/v2.0{W}/api/2.0/mlflow/logged-models"
    assert bench.emulator.send("POST", route, {}, Authorization="").status_code == 401
    assert bench.emulator.send("POST", route, {}).status_code == 404


@pytest.mark.slow
def test_a_job_survives_the_emulator(start_emulator: Callable[..., EmulatorProcess], tmp_path: Path) -> None:
    """Killed, the emulator adopts the job that ran on; ended in order, it starts it again."""
    emulator = start_emulator(tmp_path / "state")
    bench = Workbench(emulator)
    cluster = bench.cluster("cluster", 2)
    runs = {"uri": f"{DATASTORE}/runs", "jobOutputType": "uri_folder", "mode": "ReadWriteMount"}
    command = "echo $AZUREML_RUN_ID >> ${{outputs.runs}}/all; while [ ! -e %s ]; do sleep 0.1; done"
    go_on = tmp_path / "go-on"
    bench.submit("adopted", bench.job(command % go_on, cluster, outputs={"runs": runs}))
    until(lambda: bench.status("adopted") == "Running" and bench.files("runs"))
    emulator.kill()
    emulator.start()
    assert bench.status("adopted") == "Running"
    go_on.touch()
    assert bench.ended("adopted") == "Completed"
    assert bench.files("runs") == {"all": "adopted\n"}

    go_on.unlink()
    bench.submit("again", bench.job(command % go_on, cluster, outputs={"runs": runs}))
    until(lambda: "again" in bench.files("runs").get("all", ""))
    emulator.stop()
    emulator.start()
    go_on.touch()
    assert bench.ended("again") == "Completed"
    assert bench.files("runs") == {"all": "adopted\nagain\nagain\n"}
    assert emulator.output() == ""


def test_a_job_whose_node_dies_has_failed(bench: Workbench) -> None:
    """Nobody is left to say so, and the service says it."""
    cluster = bench.cluster("burning", 1)
    bench.submit("burnt", bench.job("sleep 60", cluster))
    until(lambda: bench.status("burnt") == "Running")
    bench.emulator.send("POST", "/_emulator/jobs/burnt/kill")
    assert bench.ended("burnt") == "Failed"
    assert not [path for path in Path("/proc").glob("[0-9]*/cwd") if "/jobs/burnt/" in _target(path)]


def _target(path: Path) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""


_METRICS = """
import os, mlflow
client = mlflow.MlflowClient()
run = client.get_run(os.environ["MLFLOW_RUN_ID"])
client.log_batch(run.info.run_id, params=[mlflow.entities.Param("base", "tiny")])
client.log_metric(run.info.run_id, "loss", 1.5, step=3)
print(mlflow.__version__, client.get_experiment(run.info.experiment_id).name)
"""


@pytest.mark.slow
def test_a_job_writes_metrics_through_azureml_mlflow(bench: Workbench) -> None:
    """The job's run is called as the job, its experiment has a GUID, and the service closes it."""
    if not list(Path(HOME).glob("environments/training-*")):
        pytest.skip(f"the training environment is not built in {HOME}")
    image = {"properties": {"image": "mcr.microsoft.com/x"}}
    bench.emulator.send("PUT", f"{W}/environments/phiflow-training/versions/1{ASSETS}", image)
    code = bench.code("metrics", main=_METRICS)
    environment = f"{W}/environments/phiflow-training/versions/1"
    job = bench.job("python main.py", bench.cluster("many", 8), codeId=code, environmentId=environment)
    bench.submit("measured", job)
    assert bench.ended("measured", 120) == "Completed", bench.details("measured")["error"]
    assert _log(bench, "measured").splitlines()[-1] == "3.15.0 tests"
    route = f"/mlflow/v2.0{W}/api/2.0/mlflow/runs/get?run_id=measured"
    run = bench.read(route)["run"]
    assert (run["info"]["run_id"], run["info"]["status"]) == ("measured", "FINISHED")
    assert [(one["key"], one["value"], one["step"]) for one in run["data"]["metrics"]] == [("loss", 1.5, 3)]
    assert len(run["info"]["experiment_id"]) == 36


def test_environments_of_jobs_are_assets(bench: Workbench) -> None:
    """What is only on this machine is not in the workspace."""
    answer = bench.emulator.send("GET", f"{W}/environments/training/versions/1{ASSETS}")
    assert answer.status_code == 404
