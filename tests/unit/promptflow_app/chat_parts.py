"""An endpoint that does what the question says, and the chat app served by `pf`."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import requests

APP = Path(__file__).parents[3] / "promptflow_app"
PF = Path(sys.executable).with_name("pf")
KEY = "key-of-the-test"
CONTEXT_MESSAGES = 9


class ScriptedEndpoint:
    """Answers `You said: <question> (<n> before)`; some questions make it fail in a certain way.

    Args:
        path: the one path it knows; /score takes a table of chats and answers at once.
        wraps: a refusal is told as Azure's endpoint tells its model's, with 424.
    """

    def __init__(self, path: str = "/v1/chat/completions", *, wraps: bool = False) -> None:
        self._handler = type("Handler", (_Handler,), {"known_path": path, "wraps": wraps})

    def __enter__(self) -> ScriptedEndpoint:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def requests(self) -> list[dict]:
        """The bodies received."""
        return _Handler.bodies


class _Handler(BaseHTTPRequestHandler):
    bodies: list[dict] = []  # noqa: RUF012 - shared on purpose
    known_path = ""
    wraps = False
    protocol_version = "HTTP/1.0"

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.bodies.append(body)
        if self.path != self.known_path:
            self._refuse(404, "no such path")
            return
        if self.path == "/score":
            body = {"messages": body["input_data"]["data"][0][0]}
        question = body["messages"][-1]["content"]
        if self.headers["Authorization"] != f"Bearer {KEY}":
            self._refuse(401, "no such key")
        elif len(body["messages"]) > CONTEXT_MESSAGES:
            self._refuse(400, "too long", "context_length_exceeded")
        elif question.startswith("status "):
            self._refuse(int(question.split()[1]), "as\nasked")
        else:
            self._answer(question, len(body["messages"]) - 1)

    def _refuse(self, status: int, message: str, code: str | None = None) -> None:
        self._start(status, "application/json")
        self.wfile.write(json.dumps({"error": {"message": message, "code": code}}).encode())

    def _answer(self, question: str, num_before: int) -> None:
        if self.path == "/score":
            self._start(200, "application/json")
            message = {"role": "assistant", "content": f"You said: {question} ({num_before} before) → été"}
            answer = [{"choices": [{"index": 0, "message": message}]}] if question != "break off" else []
            self.wfile.write(json.dumps(answer, ensure_ascii=False).encode())
            return
        self._start(200, "text/event-stream")
        if question == "fail at once":
            self._send({"error": {"message": "it stumbled"}})
            return
        for piece in ["You ", "said: ", question, f" ({num_before} before) → été"]:
            self._send({"choices": [{"index": 0, "delta": {"content": piece}, "finish_reason": None}]})
            if question == "break off":
                return
            if question == "fail later":
                self._send({"error": {"message": "it stumbled"}})
                return
        self._send({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
        self.wfile.write(b"data: [DONE]\n\n")

    def _start(self, status: int, kind: str) -> None:
        wrapped = self.wraps and status >= 400
        self.send_response(424 if wrapped else status)
        if wrapped:
            self.send_header("ms-azureml-model-error-statuscode", str(status))
        self.send_header("Content-Type", kind)
        self.send_header("azureml-model-deployment", "v7-3fa9")
        self.end_headers()

    def _send(self, body: dict) -> None:
        self.wfile.write(f"data: {json.dumps(body)}\n\n".encode())


class RunningApp:
    """The chat app as the README serves it."""

    def __init__(self, folder: Path, endpoint_url: str) -> None:
        self.folder = folder
        self._endpoint_url = endpoint_url
        self.log = folder / "app.log"
        self.start()

    def start(self) -> None:
        """Start it on a free port, with the history of before."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        command = [str(PF), "flow", "serve", "--source", str(APP), "--static_folder", str(APP / "page")]
        command += ["--port", str(self.port), "--host", "127.0.0.1", "--engine", "fastapi", "--skip-open-browser"]
        with self.log.open("a") as log:
            env = environment(self.folder, self._endpoint_url)
            self.process = subprocess.Popen(command, env=env, stdout=log, stderr=log)

    def wait_ready(self) -> RunningApp:
        """Wait until it answers."""

        def ready() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            try:
                return requests.get(f"{self.url}/health", timeout=5).status_code == 200
            except requests.RequestException:
                return False

        wait_until(ready, 40, "the chat app to be ready")
        return self

    def ask(self, *, stream: bool = False, **body: object) -> requests.Response:
        """POST to /score."""
        headers = {"Accept": "text/event-stream" if stream else "application/json"}
        return requests.post(f"{self.url}/score", json=body, headers=headers, timeout=20)

    def stop(self) -> None:
        """End it."""
        self.process.terminate()
        try:
            self.process.wait(10)
        finally:
            self.process.kill()


def environment(folder: Path, endpoint_url: str, key: str = KEY) -> dict[str, str]:
    """The environment of an app that keeps all it writes in a folder."""
    home = folder / "pf"
    home.mkdir(exist_ok=True)
    (home / "pf.yaml").write_text("telemetry:\n  enabled: false\n")
    return os.environ | {
        "PHIFLOW_ENDPOINT_URL": endpoint_url,
        "PHIFLOW_ENDPOINT_KEY": key,
        "PHIFLOW_HISTORY": f"sqlite:///{folder / 'chat.sqlite3'}",
        "PF_HOME_DIRECTORY": str(home),
        "PF_TRACING_SKIP_LOCAL_SETUP": "true",
        "PF_DISABLE_TRACING": "true",
        "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED": "true",
        "PF_LOGGING_LEVEL": "CRITICAL",
        "NO_PROXY": "127.0.0.1",
    }


def free_port() -> int:
    """A loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition: Callable[[], object], seconds: float, what: str) -> None:
    """Poll the condition until it holds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited {seconds} s for {what}"
        time.sleep(0.05)
