"""The engine's life: it is watched, and never left behind."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading

import httpx
import psutil
import pytest
from fronts import RunningFront, environment, free_port, wait_until
from server.engine import reap_recorded, write_record

QUESTION = {"messages": [{"role": "user", "content": "What is phiflow?"}]}


def start(model_dir, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [
        sys.executable,
        "-m",
        "server",
        "--model-dir",
        str(model_dir),
        "--model-name",
        "demo",
        *arguments,
    ]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=20)


def is_running(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def is_listening(front: RunningFront) -> bool:
    try:
        return httpx.get(f"{front.url}/v1/models", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@pytest.fixture
def loading(model_dir, tmp_path):
    """A front whose model is still loading."""
    running = RunningFront(model_dir, tmp_path)
    yield running
    running.stop()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux ties a child's life to its parent's")
def test_killed_front_leaves_no_engine(loading):
    """kill -9 of the front ends its engine."""
    pid = loading.engine_pid()
    loading.process.kill()
    wait_until(lambda: not is_running(pid), 5, "the engine to end")


def test_stopped_front_stops_its_engine(loading):
    """SIGTERM ends the engine, then the front, with status 0 and no record left."""
    pid = loading.engine_pid()
    wait_until(lambda: is_listening(loading), 20, "the front to answer")
    loading.process.terminate()
    assert loading.process.wait(15) == 0
    assert not is_running(pid)
    assert not list(loading.state_dir.glob("engine-*"))


def test_unusable_template_ends_the_front(model_dir, tmp_path):
    """A chat template that does not parse: one line that says so, exit status 2, no engine left."""
    broken = tmp_path / "model"
    shutil.copytree(model_dir, broken)
    (broken / "chat_template.jinja").write_text("{% if %}")
    result = start(broken, "--port", str(free_port()), "--state-dir", str(tmp_path / "state"))
    assert result.returncode == 2
    assert "chat template" in result.stderr and "Traceback" not in result.stderr
    assert not list((tmp_path / "state").glob("engine-*"))


def test_loading_model_is_said_to_load_and_its_death_to_be_one(loading):
    """While loading, health and questions get 503 with a reason; an engine that dies ends the front with status 4."""
    pid = loading.engine_pid()
    wait_until(lambda: is_listening(loading), 20, "the front to answer")
    health = httpx.get(f"{loading.url}/health", trust_env=False)
    assert (health.status_code, health.json()["reason"]) == (503, "the model is loading")
    early = httpx.post(f"{loading.url}/v1/chat/completions", json=QUESTION, trust_env=False)
    assert early.status_code == 503 and early.headers["retry-after"]
    os.kill(pid, signal.SIGKILL)
    assert loading.process.wait(10) == 4
    assert "The engine died while loading the model" in loading.log.read_text()


@pytest.mark.slow
def test_limits_of_a_stuck_engine(model_dir, tmp_path):
    """A stuck engine: 504 for who waits, 429 for who comes on top; dead, the front ends with status 4."""
    front = RunningFront(model_dir, tmp_path, "--max-concurrent-requests", "1", "--request-timeout-seconds", "2")
    try:
        front.wait_ready()
        engine = front.engine_pid()
        os.kill(engine, signal.SIGSTOP)
        statuses: list[int] = []
        url = f"{front.url}/v1/chat/completions"
        waiting = threading.Thread(
            target=lambda: statuses.append(httpx.post(url, json=QUESTION, timeout=20, trust_env=False).status_code)
        )
        waiting.start()
        wait_until(lambda: httpx.get(f"{front.url}/health", trust_env=False).json()["requests"], 2, "the request")
        busy = httpx.post(url, json=QUESTION, trust_env=False)
        assert busy.status_code == 429 and busy.headers["retry-after"] == "1"
        waiting.join(10)
        assert statuses == [504]
        os.kill(engine, signal.SIGCONT)
        assert httpx.post(url, json=QUESTION, trust_env=False, timeout=20).status_code == 200
        os.kill(engine, signal.SIGKILL)
        assert front.process.wait(10) == 4
        assert "The engine died while running, exit status -9" in front.log.read_text()
    finally:
        front.stop()


def test_recorded_engine_is_reaped(tmp_path):
    """A process left behind is ended by its record; the record goes with it."""
    record = tmp_path / "engine-1.json"
    left = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    write_record(record, left.pid)
    assert reap_recorded(record)
    left.wait(5)
    assert not record.exists()


def test_another_process_with_the_same_number_is_left_alone(tmp_path):
    """A process id that was given out again is not the engine."""
    record = tmp_path / "engine-1.json"
    record.write_text(json.dumps({"pid": os.getpid(), "start_time": 1.0}))
    assert not reap_recorded(record)
    record.write_text("not json")
    assert not reap_recorded(record)


def test_folder_that_is_no_model_is_refused_at_once(tmp_path):
    """A wrong folder: one line, exit status 2, nothing started."""
    for folder in (tmp_path, tmp_path / "missing", __file__):
        result = start(folder, "--port", "9")
        assert result.returncode == 2
        assert len(result.stderr.strip().splitlines()) == 1
        assert str(folder) in result.stderr


def test_port_in_use_is_refused(model_dir):
    """A port that is taken: one line that names it, exit status 2."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        result = start(model_dir, "--port", port)
    assert result.returncode == 2
    assert port in result.stderr and len(result.stderr.strip().splitlines()) == 1


@pytest.mark.parametrize(
    "arguments", [("--port", "0"), ("--port", "99999"), ("--port", "1", "--max-concurrent-requests", "0")]
)
def test_wrong_arguments_are_refused(model_dir, arguments):
    """A wrong number is refused before anything starts."""
    result = start(model_dir, *arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
