"""Traffic while versions change: a client that never stops sees no failed request, whatever the new version does."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from journey import Client, Journey, Served, eventually, kill

pytestmark = pytest.mark.journey


def model_of(journey: Journey, version: str) -> Path:
    """The folder of a registered version's weights, from the deployment that serves it."""
    for path in journey.home.glob("supervisor/programs/server-*.json"):
        if f"-v{version}-" in path.stem:
            command = json.loads(path.read_text(encoding="utf-8"))["command"]
            return Path(command[command.index("--model-dir") + 1])
    raise AssertionError(f"no deployment of version {version}")


def errors_of(text: str) -> list[str]:
    """The lines that tell a person what went wrong."""
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.slow
def test_client_sees_no_failure_in_a_healthy_and_in_a_failed_rollout(journey: Journey, served: Served) -> None:
    """A new version takes over, and one that cannot start never gets traffic: 0 failed requests in both."""
    before = journey.endpoint(served.name)["traffic"]
    (old,) = (name for name, percent in before.items() if percent)
    with Client(journey, served.url, served.name) as client:
        told = journey.json("run", served.config, "--set", "train.seed=1", "--set", "rollout.hold_seconds=3")
        (new,) = (name for name, percent in told["endpoint"]["traffic"].items() if percent)
        assert new != old
        eventually(lambda: client.served_by[new] > 3, 30)
        model = model_of(journey, told["model"]["version"])
        names = {path: path.with_name("hidden-" + path.name) for path in sorted(model.rglob("config.json"))}
        for path, hidden in names.items():
            path.rename(hidden)
        try:
            ended = journey.phiflow(
                "run", served.config, "--set", "train.seed=1", "--set", "serving.max_concurrent_requests=5"
            )
        finally:
            for path, hidden in names.items():
                hidden.rename(path)
        assert ended.returncode == 4, ended.stderr
        (line,) = errors_of(ended.stderr)
        assert "did not start" in line
        assert "config.json" in line
        seen = client.served_by[new]
        eventually(lambda: client.served_by[new] > seen + 3, 30)
    assert client.failures == []
    assert set(client.served_by) == {old, new}
    after = journey.endpoint(served.name)
    assert after["traffic"][new] == 100
    assert not after.get("rollout")
    assert {name for name, percent in after["traffic"].items() if percent} == {new}


@pytest.mark.slow
def test_model_that_answers_garbage_gets_no_traffic(journey: Journey, served: Served) -> None:
    """When what is served is not what was evaluated, the probes stop the rollout before any traffic."""
    config = journey.configure("garbled")
    first = journey.json("run", config)
    url, (old,) = first["endpoint"]["url"], list(first["endpoint"]["traffic"])
    weights = next(model_of_endpoint(journey, "garbled").rglob("*.safetensors"))
    whole = weights.with_name("whole")
    with Client(journey, url, "garbled") as client:
        # Renamed, not written over: the old server has the file mapped into its memory.
        weights.rename(whole)
        weights.write_bytes(noise_for(whole.read_bytes()))
        try:
            ended = journey.phiflow("run", config, "--set", "serving.max_concurrent_requests=5")
        finally:
            whole.replace(weights)
    assert ended.returncode == 4, ended.stderr
    (line,) = errors_of(ended.stderr)
    assert "Deployment v1-" in line
    assert client.failures == []
    assert set(client.served_by) == {old}
    state = journey.endpoint("garbled")
    assert state["traffic"] == {old: 100}
    assert list(state["deployments"]) == [old]
    history = [line for line in state["history"] if "v1-" in line and old not in line]
    assert history == []


def model_of_endpoint(journey: Journey, name: str) -> Path:
    """The folder of the weights that the only deployment of an endpoint serves."""
    (path,) = journey.home.glob(f"supervisor/programs/server-{name}-*.json")
    command = json.loads(path.read_text(encoding="utf-8"))["command"]
    return Path(command[command.index("--model-dir") + 1])


def noise_for(whole: bytes) -> bytes:
    """A safetensors file with the same tensors, each number (32 bits) another small one."""
    length = 8 + int.from_bytes(whole[:8], "little")
    body = bytearray(whole[length:][::-1])
    body[3::4] = bytes(0x3D | (byte & 0x80) for byte in body[3::4])
    return whole[:length] + bytes(body)


@pytest.mark.slow
def test_run_killed_in_the_middle_of_a_shift_is_undone_by_the_next(journey: Journey, served: Served) -> None:
    """After kill -9 between two traffic steps, the next run restores what was and carries the rollout through."""
    config = journey.configure("halfway", gate={"champion_tolerance": 10.0})
    (old,) = journey.json("run", config)["endpoint"]["traffic"]
    changed = ("run", config, "--set", "train.seed=2", "--set", "rollout.hold_seconds=30")
    run = journey.start(*changed)
    eventually(lambda: 0 < journey.endpoint("halfway")["traffic"][old] < 100, 180)
    kill(run.pid)
    assert journey.endpoint("halfway")["rollout"]
    told: dict[str, Any] = journey.json(*changed[:-1], "rollout.hold_seconds=1")
    state = journey.endpoint("halfway")
    assert not state.get("rollout")
    (new,) = (name for name, percent in told["endpoint"]["traffic"].items() if percent)
    assert new != old
    assert any(f"{old}=100%" in line and "undid" in line for line in state["history"]), state["history"]
