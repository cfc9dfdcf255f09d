"""The gateway as a real process in front of real model servers that only pretend to be models."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest

from tasks.platforms.local import files

Wait = Callable[..., Any]

# Answers with its own name; the body says how it shall misbehave.
UPSTREAM = """
import json, os, sys, time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
gone = 0
class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def log_message(self, *_): pass
    def answer(self, status, body, **headers):
        body = json.dumps(body).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(body), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(200, {"from": sys.argv[2], "path": self.path, "gone": gone})
    def do_POST(self):
        global gone
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        ask = json.loads(sent)
        if ask.get("loading") and not os.path.exists(ask["loading"]):
            return self.answer(503, {}, Retry_After=1)
        if ask.get("break"):
            self.close_connection = True
            return
        time.sleep(ask.get("slow", 0))
        if not ask.get("stream"):
            return self.answer(ask.get("status", 200), {
                "from": sys.argv[2], "path": self.path, "bytes": len(sent),
                "authorization": self.headers["Authorization"], "x": self.headers["X-Trace"],
            })
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Connection", "close")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True
        try:
            for number in range(ask["stream"]):
                event = b"data: %d\\n\\n" % number
                self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(event), event))
                self.wfile.flush()
                time.sleep(ask.get("pause", 0))
                if number == ask.get("break_at"):
                    os._exit(1) if ask.get("die") else self.connection.close()
                    return
            self.wfile.write(b"0\\r\\n\\r\\n")
        except OSError:
            gone += 1
ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
KEY = "right-key"


class World:
    """A gateway, two deployments and a client."""

    def __init__(self, home: Path, root: Path, free_port: Callable[[], int], stack: ExitStack) -> None:
        self.home, self._root, self._stack = home, root, stack
        self.ports = {"v1-aa": free_port(), "v2-bb": free_port()}
        self.servers = {name: self.start_server(name) for name in self.ports}
        self.port = free_port()
        self.write(traffic={"v1-aa": 100, "v2-bb": 0})
        options = ("--retry-seconds", "3", "--timeout-seconds", "4")
        self.log = home / "gateway.log"
        self._spawn("-m", "tasks.platforms.local.gateway", "--home", str(home), "--port", str(self.port), *options)
        self.client = stack.enter_context(
            httpx.Client(
                base_url=f"http://127.0.0.1:{self.port}",
                headers={"Authorization": f"Bearer {KEY}"},
                trust_env=False,
                timeout=20,
            )
        )

    def _spawn(self, *command: str) -> subprocess.Popen[bytes]:
        name = "gateway.log" if "tasks.platforms.local.gateway" in command else "servers.log"
        with (self.home / name).open("ab") as log:
            process = subprocess.Popen([sys.executable, *command], cwd=self._root, stdout=log, stderr=log)
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def start_server(self, name: str) -> subprocess.Popen[bytes]:
        return self._spawn("-c", UPSTREAM, str(self.ports[name]), name)

    def write(self, *, traffic: dict[str, int], name: str = "chat", key: str = KEY, **more: Any) -> None:
        folder = self.home / "endpoints" / name
        deployments = {
            deployment: {"url": f"http://127.0.0.1:{port}", "model_version": deployment[1]}
            for deployment, port in self.ports.items()
        }
        if key:
            files.write_secret(folder / "key", key)
        files.write_json(
            folder / "endpoint.json", {"name": name, "deployments": deployments, "traffic": traffic, **more}
        )

    def chat(self, body: dict[str, Any] | None = None, *, to: str = "", endpoint: str = "chat") -> httpx.Response:
        headers = {"azureml-model-deployment": to} if to else {}
        return self.client.post(f"/{endpoint}/v1/chat/completions", json=body or {}, headers=headers)

    def metrics(self, **query: Any) -> dict[str, Any]:
        return self.client.get("/chat/metrics", params=query).json()["deployments"]


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One gateway for all tests of this module."""
    import socket

    def free_port() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    with ExitStack() as stack:
        world = World(tmp_path_factory.mktemp("a home"), Path(__file__).resolve().parents[3], free_port, stack)
        yield world


@pytest.fixture
def world(shared: World, wait_for: Wait) -> World:
    """The shared gateway, with both deployments up and all traffic on the first."""

    def up() -> bool:
        try:
            return all(shared.client.get("/chat/health").json()["healthy"].values())
        except httpx.HTTPError:
            return False

    shared.write(traffic={"v1-aa": 100, "v2-bb": 0})
    for name, server in shared.servers.items():
        if server.poll() is not None:
            shared.servers[name] = shared.start_server(name)
    wait_for(up)
    return shared


def test_a_request_reaches_the_deployment_and_says_which(world: World) -> None:
    """Body, path and headers pass; the key does not; the answer names deployment and model version."""
    answer = world.client.post("/chat/score?a=1", json={"input": "ü"}, headers={"X-Trace": "7"})
    assert answer.status_code == 200
    assert answer.headers["azureml-model-deployment"] == "v1-aa"
    assert answer.headers["x-phiflow-model-version"] == "1"
    size = len(answer.request.content)
    assert answer.json() == {
        "from": "v1-aa", "path": "/score?a=1", "bytes": size, "authorization": None, "x": "7"
    }  # fmt: skip
    assert world.client.get("/chat/v1/models").json()["path"] == "/v1/models"


@pytest.mark.parametrize("header", [None, "Bearer wrong", "Bearer", KEY, f"Basic {KEY}", f"Bearer {KEY}x", "Bearer ü"])
def test_without_the_key_nothing_is_passed_on(world: World, header: str | None) -> None:
    """A missing or wrong key, or another scheme, is a 401 in JSON, on metrics too."""
    headers = {} if header is None else {"Authorization": header.encode()}
    for method, path in (("POST", "v1/chat/completions"), ("POST", "score"), ("GET", "metrics"), ("GET", "v1/models")):
        answer = httpx.request(method, f"http://127.0.0.1:{world.port}/chat/{path}", headers=headers, trust_env=False)
        assert answer.status_code == 401
        assert answer.json()["error"]["code"] == "wrong_key"
        assert KEY not in answer.text


@pytest.mark.parametrize("path", ["/nobody/v1/models", "/..%2fchat/v1/models", "/chat/nonsense", "/%00/health", "/"])
def test_what_does_not_exist_is_404_in_json(world: World, path: str) -> None:
    """Unknown endpoints and paths answer alike, with the error in JSON."""
    answer = world.client.get(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["message"]


def test_one_deployment_can_be_addressed(world: World) -> None:
    """The header wins over the percentages, also at 0 %; an unknown name is refused with the known ones."""
    assert world.chat(to="v2-bb").json()["from"] == "v2-bb"
    refused = world.chat(to="v9-zz")
    assert refused.status_code == 404
    assert "v1-aa, v2-bb" in refused.json()["error"]["message"]


def test_percentages_are_kept_and_a_change_counts_at_once(world: World) -> None:
    """After each change of the file, the next requests follow the new split."""
    assert {world.chat().json()["from"] for _ in range(10)} == {"v1-aa"}
    world.write(traffic={"v1-aa": 50, "v2-bb": 50})
    seen = Counter(world.chat().json()["from"] for _ in range(80))
    assert seen["v1-aa"] > 15 and seen["v2-bb"] > 15
    world.write(traffic={"v1-aa": 0, "v2-bb": 100})
    assert {world.chat().json()["from"] for _ in range(10)} == {"v2-bb"}


def test_no_traffic_is_said(world: World) -> None:
    """When every percentage is zero, the answer is 503 and says so; a direct request still works."""
    world.write(traffic={})
    answer = world.chat()
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "no_traffic")
    assert world.client.get("/chat/health").status_code == 503
    assert world.chat(to="v1-aa").status_code == 200


@pytest.mark.parametrize("content", ["{", "[]", '{"deployments": {}, "traffic": {"v7": 100}}', ""])
def test_a_bad_state_file_does_not_replace_the_good_one(world: World, content: str) -> None:
    """The last valid state keeps answering, and the log names the endpoint."""
    assert world.chat().status_code == 200
    files.write_atomic(world.home / "endpoints" / "chat" / "endpoint.json", content)
    assert world.chat().json()["from"] == "v1-aa"
    assert "Ignored the new state of endpoint 'chat'" in world.log.read_text()


def test_endpoints_come_and_go_and_have_their_own_keys(world: World) -> None:
    """A new folder is an endpoint at once; one key does not open another; a changed key counts at once."""
    assert world.chat(endpoint="second").status_code == 404
    world.write(name="second", key="other", traffic={"v2-bb": 100})
    assert world.chat(endpoint="second").status_code == 401
    assert "second" in world.client.get("/healthz").json()["endpoints"]
    world.write(name="second", key=KEY, traffic={"v2-bb": 100})
    assert world.chat(endpoint="second").json()["from"] == "v2-bb"
    (world.home / "endpoints" / "second" / "endpoint.json").unlink()
    assert world.chat(endpoint="second").status_code == 404


def test_streams_are_passed_on_piece_by_piece(world: World) -> None:
    """The first event arrives long before the last."""
    began, times = time.monotonic(), []
    with world.client.stream("POST", "/chat/v1/chat/completions", json={"stream": 5, "pause": 0.2}) as answer:
        assert answer.headers["azureml-model-deployment"] == "v1-aa"
        for line in answer.iter_lines():
            if line:
                times.append((line, time.monotonic() - began))
    assert [line for line, _ in times] == [f"data: {number}" for number in range(5)]
    assert times[-1][1] - times[0][1] > 0.6


def test_a_client_that_goes_away_frees_the_model_server(world: World, wait_for: Wait) -> None:
    """The server notices that its stream has no reader, and the request is not an error."""
    before = world.client.get("/chat/v1/models").json()["gone"]
    errors = world.metrics()["v1-aa"]["errors"]
    with world.client.stream("POST", "/chat/v1/chat/completions", json={"stream": 60, "pause": 0.1}) as answer:
        next(answer.iter_lines())
    wait_for(lambda: world.client.get("/chat/v1/models").json()["gone"] > before, 5)
    assert world.metrics()["v1-aa"]["errors"] == errors


def test_the_upstreams_own_answer_is_passed_on_and_its_failures_counted(world: World) -> None:
    """4xx is the caller's mistake; 5xx, a broken connection and a time-out are errors of the deployment."""
    before = world.metrics()["v1-aa"]
    assert world.chat({"status": 422}).status_code == 422
    assert world.chat({"status": 500}).status_code == 500
    broken = world.chat({"break": True})
    assert (broken.status_code, broken.json()["error"]["code"]) == (502, "deployment_broke_off")
    assert broken.headers["azureml-model-deployment"] == "v1-aa"
    late = world.chat({"slow": 5})
    assert (late.status_code, late.json()["error"]["code"]) == (504, "deployment_timeout")
    after = world.metrics()["v1-aa"]
    assert after["requests"] - before["requests"] == 4
    assert after["errors"] - before["errors"] == 3


def test_a_stream_that_breaks_ends_in_an_error_event(world: World) -> None:
    """The client gets what came before it, then the reason, and no sign of a good end."""
    text = world.chat({"stream": 5, "break_at": 1, "die": True}).text
    assert text.startswith("data: 0\n\ndata: 1\n\n")
    assert json.loads(text.strip().splitlines()[-1].removeprefix("data: "))["error"]["code"] == "deployment_broke_off"


def test_a_restarted_server_costs_a_wait_and_not_an_error(world: World) -> None:
    """Requests to a server killed with -9 wait until it listens again; only a long absence is an error."""
    world.servers["v1-aa"].send_signal(signal.SIGKILL)
    world.servers["v1-aa"].wait()
    timer = threading.Timer(1.0, lambda: world.servers.update({"v1-aa": world.start_server("v1-aa")}))
    timer.start()
    began = time.monotonic()
    assert world.chat().status_code == 200
    assert time.monotonic() - began > 0.9
    timer.join()


def test_an_absent_server_is_an_error_after_the_patience(world: World) -> None:
    """A deployment that stays away gives 502 with its name, and the others are not asked in its place."""
    world.servers["v2-bb"].send_signal(signal.SIGKILL)
    world.servers["v2-bb"].wait()
    answer = world.chat(to="v2-bb")
    assert (answer.status_code, answer.json()["error"]["code"]) == (502, "deployment_down")
    assert "v2-bb" in answer.json()["error"]["message"]
    health = world.client.get("/chat/health").json()
    assert health["healthy"] == {"v1-aa": True, "v2-bb": False} and health["status"] == "ok"


def test_a_server_that_is_loading_is_waited_for(world: World, tmp_path: Path) -> None:
    """503 with Retry-After is not passed on while there is patience: nothing was computed yet."""
    ready = tmp_path / "ready"
    threading.Timer(0.7, ready.touch).start()
    assert world.chat({"loading": str(ready)}).status_code == 200
    assert world.chat({"loading": str(tmp_path / "never")}).status_code == 503


def test_no_request_fails_while_the_traffic_moves(world: World) -> None:
    """Clients that keep asking through many changes of the split, slow requests among them, see no error."""
    failures: list[str] = []
    done = threading.Event()

    def keep_asking(body: dict[str, Any]) -> None:
        while not done.is_set():
            try:
                answer = world.chat(body)
                if answer.status_code != 200:
                    failures.append(answer.text)
            except httpx.HTTPError as error:
                failures.append(repr(error))

    clients = [
        threading.Thread(target=keep_asking, args=[body]) for body in ({}, {"slow": 0.3}, {"stream": 3, "pause": 0.05})
    ]
    for client in clients:
        client.start()
    for percent in (0, 5, 25, 50, 75, 100, 0, 100, 50):
        world.write(traffic={"v1-aa": 100 - percent, "v2-bb": percent})
        time.sleep(0.15)
    done.set()
    for client in clients:
        client.join()
    assert failures == []


def test_metrics_of_a_window(world: World) -> None:
    """Counts and percentiles of the last seconds, and a window that makes no sense is refused."""
    for _ in range(3):
        world.chat({"slow": 0.05}, to="v2-bb")
    recent = world.metrics(seconds=60)["v2-bb"]
    assert recent["requests"] >= 3
    assert recent["latency_ms"]["p99"] >= 50
    assert world.metrics(seconds=0.0001)["v2-bb"]["requests"] == 0
    for window in ("0", "-1", "nan", "x", "inf"):
        answer = world.client.get("/chat/metrics", params={"seconds": window})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "bad_window")


def test_a_body_over_the_limit_is_refused(world: World) -> None:
    """17 MB is answered with 413, in JSON."""
    answer = world.client.post("/chat/score", content=b"x" * (17 * 2**20))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_the_log_has_no_key_and_no_body(world: World) -> None:
    """One line a request: path, status, deployment and time."""
    world.chat({"messages": "a private question"})
    log = world.log.read_text()
    assert "/chat/v1/chat/completions 200 v1-aa" in log
    assert KEY not in log and "private question" not in log and "Traceback" not in log


def test_a_port_in_use_is_one_line(world: World, root: Path) -> None:
    """A second gateway on the port ends at once with exit code 2 and says why."""
    command = [sys.executable, "-m", "tasks.platforms.local.gateway", "--home", str(world.home)]
    done = subprocess.run([*command, "--port", str(world.port)], cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1 and f"port {world.port}" in done.stderr
