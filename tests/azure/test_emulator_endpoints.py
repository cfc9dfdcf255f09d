"""The emulator's endpoints: model servers that really run, behind the service's routing, limits, states and counts.

The model server is a stand-in that does as the request says.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.azure.workbench import ENDPOINTS, W, Workbench, until
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE

_SERVER = """
import argparse, http.server, json, pathlib, time
parser = argparse.ArgumentParser()
parser.add_argument("--host")
parser.add_argument("--port", type=int)
parser.add_argument("--model-dir", type=pathlib.Path)
options, _ = parser.parse_known_args()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, status, body):
        text = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self):
        self.answer(200, {"status": "ok"})

    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        time.sleep(asked.get("sleep", 0))
        if not asked.get("stream"):
            return self.answer(asked.get("status", 200), {"said": (options.model_dir / "name.txt").read_text()})
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            piece = b"data: %d\\n\\n" % number
            self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(piece), piece))
            self.wfile.flush()
            time.sleep(0.2)
        self.wfile.write(b"0\\r\\n\\r\\n")

    def log_message(self, *arguments):
        pass

if not (options.model_dir / "name.txt").is_file():
    raise SystemExit(f"There is no model in {options.model_dir}.")
http.server.ThreadingHTTPServer((options.host, options.port), Handler).serve_forever()
"""


class Bench(Workbench):
    """A workspace with one endpoint that has two deployments."""

    def __init__(self, emulator: EmulatorProcess) -> None:
        super().__init__(emulator)
        self.models = {number: self.model("named", number, name=number) for number in ("1", "2")}
        self.models["broken"] = self.model("broken", "1", other="x")

    def put(self, name: str, **properties: Any) -> requests.Response:
        body = {
            "location": SCOPE.location,
            "identity": {"type": "SystemAssigned"},
            "properties": {"authMode": "Key", "traffic": {}, **properties},
        }
        return self.emulator.send("PUT", f"{W}/onlineEndpoints/{name}{ENDPOINTS}", body)

    def deployment(self, model: str, /, **properties: Any) -> dict[str, Any]:
        settings = {"maxConcurrentRequestsPerInstance": 2, "requestTimeout": "PT2S", "maxQueueWait": "PT0.3S"}
        base = {
            "endpointComputeType": "Managed",
            "instanceType": "Standard_E4s_v3",
            "environmentId": f"{W}/environments/plain/versions/1",
            "model": self.models[model],
            "requestSettings": settings,
        }
        return {"location": SCOPE.location, "sku": {"name": "Default", "capacity": 1}, "properties": base | properties}

    def deploy(self, endpoint: str, name: str, body: dict[str, Any]) -> requests.Response:
        return self.emulator.send("PUT", f"{W}/onlineEndpoints/{endpoint}/deployments/{name}{ENDPOINTS}", body)

    def shown(self, path: str) -> dict[str, Any]:
        return self.read(f"{W}/onlineEndpoints/{path}{ENDPOINTS}")

    def ask(self, deployment: str = "", *, endpoint: str = "served", key: str = "", **body: Any) -> requests.Response:
        """Ask an endpoint as a client of it does."""
        return self.asking(deployment, endpoint, key)(body)

    def asking(self, deployment: str, endpoint: str = "served", key: str = "") -> Callable[[Any], requests.Response]:
        """What asks an endpoint, with its address and key read."""
        keys = self.emulator.send("POST", f"{W}/onlineEndpoints/{endpoint}/listKeys{ENDPOINTS}").json()
        headers = {"Authorization": f"Bearer {key or keys['primaryKey']}"}
        if deployment:
            headers["azureml-model-deployment"] = deployment
        url = self.shown(endpoint)["properties"]["scoringUri"].removesuffix("/score").rstrip("/")
        settings: Any = {"headers": headers, "verify": self.emulator.env["REQUESTS_CA_BUNDLE"], "stream": True}
        return lambda body: requests.post(f"{url}/v1/chat/completions", json=body, timeout=20, **settings)


@pytest.fixture(scope="module")
def bench(start_emulator: Callable[..., EmulatorProcess], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    """An emulator with the stand-in, and the endpoint `served` with `one` and `two`, half of the traffic each."""
    folder = tmp_path_factory.mktemp("endpoints")
    package = folder / "source" / "deployments" / "server"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(_SERVER)
    options = ("--server-source", str(folder / "source"), "--monitor-lag", "0.5")
    emulator = start_emulator(folder / "state", *options)
    bench = Bench(emulator)
    bench.finished(bench.put("served"))
    begun = [bench.deploy("served", name, bench.deployment(number)) for name, number in (("one", "1"), ("two", "2"))]
    assert begun[0].json()["properties"]["provisioningState"] == "Creating"
    assert [bench.finished(answer)["status"] for answer in begun] == ["Succeeded", "Succeeded"]
    bench.finished(bench.put("served", traffic={"one": 50, "two": 50}))
    yield bench
    emulator.stop()
    assert emulator.output() == ""


def test_traffic_and_header_choose_the_deployment(bench: Bench) -> None:
    """Each answer names who gave it; half of the requests go to each."""
    answers = [bench.ask() for _ in range(20)]
    assert {(a.headers["azureml-model-deployment"], a.json()["said"]) for a in answers} == {("one", "1"), ("two", "2")}
    assert {bench.ask("two").json()["said"] for _ in range(5)} == {"2"}
    assert bench.ask("three").status_code == 404


def test_only_a_key_opens_an_endpoint(bench: Bench) -> None:
    """Both keys do, until they are made anew; no other does."""
    path = f"{W}/onlineEndpoints/served"
    keys = bench.emulator.send("POST", f"{path}/listKeys{ENDPOINTS}").json()
    assert set(keys) == {"primaryKey", "secondaryKey"}
    assert bench.ask(key=keys["secondaryKey"]).status_code == 200
    assert bench.ask(key="wrong").status_code == 401
    bench.emulator.send("POST", f"{path}/regenerateKeys{ENDPOINTS}", {"keyType": "Secondary"})
    assert bench.ask(key=keys["secondaryKey"]).status_code == 401
    assert bench.ask(key=keys["primaryKey"]).status_code == 200


def test_what_the_model_refuses_is_424(bench: Bench) -> None:
    """The service does not pass the model's own status on but in a header."""
    answer = bench.ask("one", status=422)
    assert answer.status_code == 424
    assert answer.headers["ms-azureml-model-error-statuscode"] == "422"
    assert answer.json() == {"said": "1"}


def test_a_request_over_its_time_is_408(bench: Bench) -> None:
    """The limit is the deployment's requestTimeout."""
    started = time.monotonic()
    assert bench.ask("one", sleep=4).status_code == 408
    assert time.monotonic() - started < 4


def test_requests_over_the_limit_are_429(bench: Bench) -> None:
    """Two are worked on, two wait for a moment, and the others are refused at once."""
    ask, together = bench.asking("two"), threading.Barrier(8)

    def at_once(_: int) -> int:
        together.wait(10)
        return ask({"sleep": 1.5}).status_code

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(at_once, range(8)))
    assert set(statuses) == {200, 429}
    assert statuses.count(429) >= 4
    assert bench.ask("two").status_code == 200


def test_answers_stream_through(bench: Bench) -> None:
    """Piece by piece, when the model says it."""
    started = time.monotonic()
    moments = [(piece, time.monotonic() - started) for piece in bench.ask("one", stream=True).iter_content(None)]
    assert b"".join(piece for piece, _ in moments) == b"data: 0\n\ndata: 1\n\ndata: 2\n\n"
    assert moments[-1][1] - moments[0][1] > 0.3


def _metrics(bench: Bench, names: str, condition: str, **more: str) -> requests.Response:
    now = datetime.now(UTC)
    span = f"{(now - timedelta(minutes=10)).isoformat()}/{(now + timedelta(minutes=1)).isoformat()}"
    query = {"metricnames": names, "$filter": condition, "timespan": span, "interval": "PT1M", **more}
    text = "&".join(f"{key}={requests.utils.quote(value, safe='')}" for key, value in query.items())
    path = f"{W}/onlineEndpoints/served/providers/Microsoft.Insights/metrics?api-version=2018-01-01&{text}"
    return bench.emulator.send("GET", path)


def _sums(answer: requests.Response) -> dict[tuple[str, ...], float]:
    assert answer.status_code == 200, answer.text
    series = answer.json()["value"][0]["timeseries"]
    return {
        tuple(part["value"] for part in one["metadatavalues"]): sum(point.get("average", 0) for point in one["data"])
        for one in series
    }


def test_metrics_count_by_deployment_minute_and_class(bench: Bench) -> None:
    """As Azure Monitor has them: averages of a minute, with a lag."""
    split = "deployment eq '*' and statusCodeClass eq '*'"
    time.sleep(0.6)  # the lag, after which what other tests asked has been told
    before = _sums(_metrics(bench, "RequestsPerMinute", split))
    for _ in range(3):
        bench.ask("one")
    bench.ask("one", status=500)
    wanted = {("one", "2xx"): 3, ("one", "4xx"): 1}

    def counted() -> bool:
        after = _sums(_metrics(bench, "RequestsPerMinute", split))
        return {key: after.get(key, 0) - before.get(key, 0) for key in wanted} == wanted

    until(counted, 10)
    late = _sums(_metrics(bench, "RequestLatency_P95", "deployment eq '*'"))
    assert late[("one",)] > 0
    assert set(_sums(_metrics(bench, "RequestsPerMinute", ""))) == {()}


@pytest.mark.parametrize(
    ("names", "condition", "more"),
    [
        ("Unknown", "", {}),
        ("RequestLatency_P95", "statusCodeClass eq '*'", {}),
        ("RequestsPerMinute", "", {"aggregation": "Total"}),
    ],
)
def test_metrics_that_azure_does_not_have_are_refused(
    bench: Bench, names: str, condition: str, more: dict[str, str]
) -> None:
    """The latency has no class of status, and nothing has a total."""
    assert _metrics(bench, names, condition, **more).status_code == 400


@pytest.mark.parametrize(
    ("name", "change", "word"),
    [
        ("served", {"traffic": {"one": 60, "two": 60}}, "120"),
        ("served", {"traffic": {"one": 99}}, "99"),
        ("served", {"traffic": {"three": 100}}, "three"),
        ("served", {"traffic": {"one": 150, "two": -50}}, "150"),
        ("served", {"authMode": "None"}, "authMode"),
        ("ab", {}, "name 'ab'"),
        ("a" * 33, {}, "name"),
    ],
)
def test_an_endpoint_that_azure_refuses_is_refused(bench: Bench, name: str, change: dict[str, Any], word: str) -> None:
    """And traffic stays as it was."""
    answer = bench.put(name, **change)
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"]["message"]
    assert bench.shown("served")["properties"]["traffic"] == {"one": 50, "two": 50}


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"model": f"{W}/models/none/versions/1"}, "model"),
        ({"environmentId": f"{W}/environments/none/versions/1"}, "environment"),
        ({"environmentId": None}, "environmentId"),
        ({"instanceType": "Large"}, "instanceType"),
        ({"endpointComputeType": None}, "endpointComputeType"),
        ({"requestSettings": {"requestTimeout": "PT300S"}}, "180"),
    ],
)
def test_a_deployment_that_azure_refuses_is_refused(bench: Bench, change: dict[str, Any], word: str) -> None:
    """And is not there."""
    answer = bench.deploy("served", "refused", bench.deployment("1", **change))
    assert answer.status_code == 400, answer.text
    assert word in answer.json()["error"]["message"]
    assert [one["name"] for one in bench.shown("served/deployments")["value"]] == ["one", "two"]


def test_a_deployment_with_traffic_is_not_deleted(bench: Bench) -> None:
    """Its traffic goes first."""
    answer = bench.emulator.send("DELETE", f"{W}/onlineEndpoints/served/deployments/one{ENDPOINTS}")
    assert answer.status_code == 400
    assert "traffic 50%" in answer.json()["error"]["message"]


def test_scenarios_of_deployments_end_in_the_words_of_the_service(bench: Bench) -> None:
    """Refused for quota; failed for capacity, image and container; stuck until it is deleted."""
    bench.emulator.reset()
    cases = {"capacity": "OutOfCapacity", "image_build_failed": "ImageBuildFailure", "unready": "ResourceNotReady"}
    for do in (*cases, "creating", "quota"):
        bench.emulator.add_scenario(do, match={"kind": "deployment", "name": f"served/s-{do.replace('_', '-')}$"})
    begun = {do: bench.deploy("served", f"s-{do.replace('_', '-')}", bench.deployment("1")) for do in cases}
    for do, code in cases.items():
        assert bench.finished(begun[do])["error"]["code"] == code
        state = bench.shown(f"served/deployments/s-{do.replace('_', '-')}")["properties"]["provisioningState"]
        assert state == "Failed"
    refused = bench.deploy("served", "s-quota", bench.deployment("1"))
    assert refused.status_code == 400
    assert "Not enough quota available for Standard_E4s_v3" in refused.text
    assert bench.deploy("served", "s-creating", bench.deployment("1")).status_code == 201
    assert bench.deploy("served", "s-creating", bench.deployment("1")).status_code == 409
    for name in ("s-capacity", "s-image-build-failed", "s-unready", "s-creating"):
        assert _deleted(bench, f"served/deployments/{name}")["status"] == "Succeeded"
    assert [one["name"] for one in bench.shown("served/deployments")["value"]] == ["one", "two"]


def _deleted(bench: Bench, path: str) -> dict[str, Any]:
    return bench.finished(bench.emulator.send("DELETE", f"{W}/onlineEndpoints/{path}{ENDPOINTS}"))


def test_a_container_that_ends_has_failed_with_its_log(bench: Bench) -> None:
    """The reason is in the log of the deployment, which can be read."""
    ended = bench.finished(bench.deploy("served", "ends", bench.deployment("broken")))
    assert (ended["status"], ended["error"]["code"]) == ("Failed", "ResourceNotReady")
    path = f"{W}/onlineEndpoints/served/deployments/ends/getLogs{ENDPOINTS}"
    log = bench.emulator.send("POST", path, {"tail": 20}).json()["content"]
    assert "There is no model in" in log
    _deleted(bench, "served/deployments/ends")
    assert bench.emulator.send("POST", path, {"tail": 20}).status_code == 404


def test_an_endpoint_goes_with_all_it_has(bench: Bench) -> None:
    """Its servers too, and its name is free again."""
    bench.finished(bench.put("short"))
    bench.finished(bench.deploy("short", "only", bench.deployment("1")))
    assert bench.ask("only", endpoint="short").json()["said"] == "1"
    assert bench.ask(endpoint="short").status_code == 404
    assert _deleted(bench, "short")["status"] == "Succeeded"
    assert bench.emulator.send("GET", f"{W}/onlineEndpoints/short{ENDPOINTS}").status_code == 404
    programs = Path(bench.emulator.state, "emulator", "home", "supervisor", "programs")
    assert not list(programs.glob("server-short-*"))


@pytest.mark.slow
def test_endpoints_outlive_the_emulator(bench: Bench) -> None:
    """Killed and started, or ended and started, it serves again; a deployment that was being made is made."""
    for end, name in zip((bench.emulator.kill, bench.emulator.stop), itertools.count(3), strict=False):
        bench.emulator.add_scenario("creating", match={"kind": "deployment", "name": "served/n"}, seconds=1)
        begun = bench.deploy("served", f"n{name}", bench.deployment("1"))
        end()
        bench.emulator.start()
        until(lambda: bench.ask("two").status_code == 200, 30)
        assert bench.finished(begun)["status"] == "Succeeded"
        assert bench.ask(f"n{name}").json()["said"] == "1"
        assert bench.shown("served")["properties"]["traffic"] == {"one": 50, "two": 50}
