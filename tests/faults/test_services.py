"""What outlives a run comes back when it is killed, and goes when it is stopped."""

from __future__ import annotations

import json
from collections import Counter

import psutil
import pytest
import requests
from journey import Journey, Served, eventually, kill

pytestmark = pytest.mark.journey

BACK_SECONDS = 20


def listeners(journey: Journey) -> Counter[int]:
    """How many listening sockets of this installation there are on each port."""
    ours = {process.pid for process in journey.processes()}
    found = (c for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in ours)
    return Counter(connection.laddr.port for connection in found)


def service_ports(journey: Journey) -> set[int]:
    """The ports of the services that are defined; a model's engine behind its server takes any free one."""
    book = json.loads((journey.home / "ports.json").read_text(encoding="utf-8"))
    return {book[path.stem] for path in journey.home.glob("supervisor/programs/*.json") if path.stem in book}


@pytest.mark.parametrize("part", ["gateway", "server-shelves", "chat-shelves"])
def test_killed_service_is_back_by_itself(journey: Journey, served: Served, part: str) -> None:
    """After kill -9 of the gateway, a model server or the chat app, the chat app answers again within 20 s."""

    def answer() -> bool:
        body = {"question": "Where is item 3?"}
        return requests.post(f"{served.chat_url}/score", json=body, timeout=BACK_SECONDS).status_code == 200

    eventually(answer, 30)
    serving = next(name for name, percent in journey.endpoint(served.name)["traffic"].items() if percent)
    name = f"server-{served.name}-{serving}" if part.startswith("server") else part
    before = journey.service(name)
    kill(before)
    eventually(lambda: journey.service(name) != before, BACK_SECONDS)
    eventually(answer, BACK_SECONDS)
    assert set(listeners(journey).values()) == {1}


@pytest.mark.slow
def test_killed_supervisor_leaves_nothing_twice(journey: Journey, served: Served) -> None:
    """After kill -9 of the supervisor, the next command restores every service, and nothing listens twice."""
    before = len(listeners(journey))
    (supervisor,) = (p for p in journey.processes() if "supervisor.supervisord" in p.cmdline())
    kill(supervisor.pid)
    told = journey.json("status", served.config)
    assert {service["state"] for service in told["services"]} <= {"running", "starting"}
    eventually(lambda: service_ports(journey) <= set(listeners(journey)) and len(listeners(journey)) == before, 120)
    (again,) = (p for p in journey.processes() if "supervisor.supervisord" in p.cmdline())
    assert again.pid != supervisor.pid
    assert eventually(lambda: journey.ask(served.url, served.name).ok, 60)
    told = journey.json("run", served.config)
    assert told["run"]["state"] in ("Completed", "Refused")
    assert set(listeners(journey).values()) == {1}


@pytest.mark.slow
def test_stop_leaves_nothing_and_a_run_brings_everything_back(journey: Journey, served: Served) -> None:
    """After `phiflow stop` no process of the installation runs; the next run starts all of it and makes nothing."""
    config = journey.configure("stopped")
    first = journey.json("run", config)
    (supervisor,) = (p for p in journey.processes() if "supervisor.supervisord" in p.cmdline())
    kill(supervisor.pid)
    ended = journey.phiflow("stop", timeout=120)
    assert ended.returncode == 0, ended.stderr
    assert journey.processes() == []
    told = journey.json("run", config)
    for section in ("data", "job", "model", "endpoint", "chat"):
        assert told[section] == first[section], section
    response = requests.post(f"{told['chat']['url']}/score", json={"question": "Where is item 3?"}, timeout=60)
    assert response.status_code == 200
