"""What the plain SDK and the emulator say to each other is what Microsoft's descriptions and recordings say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest

from tests.azure_contract.calls import count_calls
from tests.azure_contract.exchange import Exchange, logged
from tests.azure_contract.judge import Judge, contract_folder, unjudged
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE

_SDK = """
import os, sys, time
from pathlib import Path
from azure.ai.ml import Input, MLClient, Output, command
from azure.ai.ml.entities import (
    AmlCompute, BuildContext, CodeConfiguration, Data, Environment, ManagedOnlineDeployment, ManagedOnlineEndpoint,
    Model, OnlineRequestSettings, ProbeSettings,
)
from azure.core.exceptions import ResourceNotFoundError
from azure.identity import DefaultAzureCredential

names = [os.environ[name] for name in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")]
ml = MLClient(DefaultAzureCredential(), *names, show_progress=False, enable_telemetry=False)
folder = Path(sys.argv[1])

def missing(get, *arguments, **named):
    try:
        get(*arguments, **named)
    except ResourceNotFoundError:
        return
    raise SystemExit(f"found {arguments}")

ml.workspaces.get(names[2])
ml.datastores.get_default(include_secrets=True)
list(ml.datastores.list())
missing(ml.datastores.get, "none")

list(ml.compute.list_sizes())
list(ml.compute.list_usage())
missing(ml.compute.get, "none")
cluster = AmlCompute(name="judged", size="Standard_DS3_v2", max_instances=1, enable_node_public_ip=False)
ml.compute.begin_create_or_update(cluster).result()
list(ml.compute.list())

(folder / "code").mkdir()
(folder / "code" / "main.py").write_text(
    "import sys, pathlib\\nprint(open(sys.argv[1]).read())\\npathlib.Path(sys.argv[2], 'name.txt').write_text('x')\\n"
)
(folder / "code" / "Dockerfile").write_text("FROM scratch")
(folder / "chats.jsonl").write_text("{}")
data = ml.data.create_or_update(
    Data(name="judged", version="1", type="uri_file", path=str(folder / "chats.jsonl"), tags={"a": "b"})
)
list(ml.data.list("judged"))
ml.data.get("judged", label="latest")
missing(ml.data.get, "judged", version="2")

routes = {name: {"path": "/score", "port": 5001} for name in ("liveness_route", "readiness_route", "scoring_route")}
plain = Environment(name="plain", version="1", image="mcr.microsoft.com/x", inference_config=routes)
plain = ml.environments.create_or_update(plain)
conda = {"name": "x", "dependencies": ["python=3.11"]}
ml.environments.create_or_update(Environment(name="conda", version="1", image="mcr.microsoft.com/x", conda_file=conda))
context = BuildContext(path=str(folder / "code"))
ml.environments.create_or_update(Environment(name="docker", version="1", build=context))
list(ml.environments.list("plain"))
missing(ml.environments.get, "plain", version="2")

def job(name, text):
    return command(
        name=name, code=str(folder / "code"), command=text, environment=plain, compute="judged",
        inputs={"source": Input(type="uri_file", path=data.path), "rate": 0.5},
        outputs={"model": Output(type="custom_model", path="azureml://datastores/workspaceblobstore/paths/judged/model")},
        experiment_name="judged", display_name="judged", tags={"phiflow": "1"}, environment_variables={"A": "b"},
    )

def ended(name):
    while (state := ml.jobs.get(name).status) not in ("Completed", "Failed", "Canceled"):
        time.sleep(0.1)
    return state

ml.jobs.create_or_update(job("judged", "python main.py ${{inputs.source}} ${{outputs.model}}"))
assert ended("judged") == "Completed"
ml.jobs.create_or_update(job("failing", "false"))
assert ended("failing") == "Failed"
ml.jobs.create_or_update(job("long", "sleep 60"))
ml.jobs.begin_cancel("long").wait()
assert ended("long") == "Canceled"
list(ml.jobs.list())
missing(ml.jobs.get, "none")

model = Model(
    name="judged", version="1", type="custom_model", path="azureml://jobs/judged/outputs/model", tags={"digest": "x"}
)
ml.models.create_or_update(model)
list(ml.models.list("judged"))
list(ml.models.list())
ml.models.get("judged", label="latest")
missing(ml.models.get, "judged", version="2")

missing(ml.online_endpoints.get, "judged")
endpoint = ManagedOnlineEndpoint(name="judged", auth_mode="key", tags={"phiflow": "1"})
ml.online_endpoints.begin_create_or_update(endpoint).result()
missing(ml.online_deployments.get, "none", "judged")
deployment = ManagedOnlineDeployment(
    name="v1-judged", endpoint_name="judged", model="azureml:judged:1", environment="azureml:plain:1",
    instance_type="Standard_DS3_v2", instance_count=1,
    request_settings=OnlineRequestSettings(request_timeout_ms=60000, max_concurrent_requests_per_instance=2),
    liveness_probe=ProbeSettings(initial_delay=1, period=1), readiness_probe=ProbeSettings(initial_delay=1, period=1),
    environment_variables={"A": "b"}, tags={"digest": "x"},
)
ml.online_deployments.begin_create_or_update(deployment).result()
ml.online_deployments.get_logs("v1-judged", "judged", lines=10)
list(ml.online_deployments.list("judged"))
endpoint = ml.online_endpoints.get("judged")
endpoint.traffic = {"v1-judged": 100}
ml.online_endpoints.begin_create_or_update(endpoint).result()
ml.online_endpoints.get_keys("judged")
list(ml.online_endpoints.list())
endpoint.traffic = {"v1-judged": 0}
ml.online_endpoints.begin_create_or_update(endpoint).result()
ml.online_deployments.begin_delete("v1-judged", "judged").wait()
ml.online_endpoints.begin_delete("judged").wait()
ml.compute.begin_delete("judged").wait()
"""
_SERVER = """
import http.server, sys

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
_KINDS = ("codes", "computes", "data", "datastores", "environments", "jobs", "models", "onlineEndpoints")


@dataclass(frozen=True)
class Session:
    """What the SDK did, and its judge."""

    judge: Judge
    exchanges: list[Exchange]


@pytest.fixture(scope="module")
def session(start_emulator: Callable[..., EmulatorProcess], tmp_path_factory: pytest.TempPathFactory) -> Session:
    """A plain client's way from data to an endpoint and back, on an emulator of its own."""
    contract = contract_folder()
    if contract is None:
        pytest.skip("Microsoft's descriptions of Azure are not on this machine: set PHIFLOW_AZURE_CONTRACT")
    folder = tmp_path_factory.mktemp("contract")
    package = folder / "source" / "deployments" / "server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_SERVER)
    emulator = start_emulator(folder / "state", "--server-source", str(folder / "source"))
    ran = emulator.run(_SDK, str(folder), timeout=300)
    assert ran.returncode == 0, ran.stderr[-3000:]
    emulator.stop()
    return Session(Judge(contract), list(logged(emulator.log)))


def test_no_exchange_disagrees_with_the_descriptions(session: Session) -> None:
    """Neither a request of the SDK nor an answer of the emulator has anything that the live service would not."""
    findings = session.judge.findings(session.exchanges)
    assert not findings, "\n".join(map(str, findings))


def test_everything_that_phiflow_uses_was_judged(session: Session) -> None:
    """Of every kind of resource something was judged, put and read; what was not judged is no management call."""
    judged = [one for one in session.exchanges if unjudged(one) is None]
    for kind in _KINDS:
        resource = [one for one in judged if kind in one.segments and one.status < 300]
        assert {"GET"} <= {one.method for one in resource}, kind
        assert kind == "datastores" or "PUT" in {one.method for one in resource}, kind
    others = [one for one in session.exchanges if unjudged(one) is not None]
    assert {one.operation for one in others if one.path.startswith(SCOPE.workspace_id)} == set()


def test_mistakes_in_these_exchanges_are_found(session: Session) -> None:
    """The judge is not blind to what passes here: a key too many in any object of the service is found."""
    found: Counter[bool] = Counter()
    missed: set[str] = set()
    for one in session.exchanges:
        if unjudged(one) is None and one.status < 300 and isinstance(one.response, dict):
            mutants: list[Any] = [{**one.response, "surprise": 1}]
            if isinstance(one.response.get("properties"), dict):
                properties: dict[str, Any] = one.response["properties"]
                mutants.append({**one.response, "properties": {**properties, "surprise": 1}})
                mutants.append({**one.response, "properties": {**properties, "provisioningState": 7, "status": 7}})
            for response in mutants:
                known = bool(session.judge.problems(replace(one, response=response)))
                found[known] += 1
                if not known:
                    missed.add(one.operation)
    assert found.total() > 100
    assert not missed


def test_calls_are_counted_as_the_log_has_them(session: Session) -> None:
    """Every management call is in the table once."""
    calls = count_calls(session.exchanges)
    assert calls.asked.total() + calls.polling.total() == sum(one.managed for one in session.exchanges)
    assert calls.asked["PUT workspaces/*/jobs/*"] == 3
    assert calls.polling["GET workspaces/*/jobs/*"] >= 3
    assert re.search(r"^\| all \| \d+ \| \d+ \|$", calls.table(), re.MULTILINE)
