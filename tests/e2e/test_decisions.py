"""Who says no: the gate, a freeze, a person who rolls back; and traffic stays where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from journey import Journey, Served, records

pytestmark = [pytest.mark.journey, pytest.mark.slow]


def serving(told: dict[str, Any]) -> str:
    """The deployment that has all traffic."""
    (name,) = (name for name, percent in told["endpoint"]["traffic"].items() if percent == 100)
    return str(name)


def refused(journey: Journey, config: Path, *overrides: str) -> dict[str, Any]:
    """Run and expect to be told no: exit code 3 and a run named Refused."""
    sets = [part for override in overrides for part in ("--set", override)]
    told = journey.json("run", config, *sets, exit_code=3)
    assert told["run"]["state"] == "Refused"
    return told


def test_worse_model_is_refused(journey: Journey, served: Served) -> None:
    """A candidate no better than its base, or surely worse than what serves, gets no version and no traffic."""
    config = journey.configure("strict", gate={"champion_tolerance": 0.0, "min_improvement": 0.01})
    first = journey.json("run", config)
    idle = refused(journey, config, "train.learning_rate=1e-9")
    assert "is not better than the base" in idle["run"]["message"]
    worse = refused(journey, config, "train.num_train_epochs=2")
    assert "worse than version 1 now serving" in worse["run"]["message"]
    for told in (idle, worse):
        assert told["gate"]["passed"] is False
        assert told["model"] is None
    now = journey.json("status", config)
    assert serving(now) == serving(first)
    assert now["model"]["version"] == "1"
    assert len(now["endpoint"]["deployments"]) == 1


def test_frozen_endpoint_is_left_alone(journey: Journey, served: Served) -> None:
    """While frozen, a run with anything new is refused, an unchanged one passes; after the thaw it goes through."""
    config = journey.configure("frozen", gate={"champion_tolerance": 10.0})
    first = journey.json("run", config)
    ended = journey.phiflow("freeze", config, "--reason", "audit week")
    assert ended.returncode == 0, ended.stderr
    told = refused(journey, config, "train.seed=5")
    assert "audit week" in told["run"]["message"]
    assert journey.endpoint("frozen")["traffic"] == first["endpoint"]["traffic"]
    ended = journey.phiflow("run", config, "--set", "serving.max_concurrent_requests=3")
    assert ended.returncode == 3, ended.stderr
    assert "audit week" in ended.stderr + ended.stdout
    assert journey.endpoint("frozen")["traffic"] == first["endpoint"]["traffic"]
    assert journey.json("run", config)["run"]["state"] == "Completed"
    assert journey.json("status", config)["endpoint"]["frozen"] == "audit week"
    assert journey.phiflow("freeze", config, "--off").returncode == 0
    told = journey.json("run", config, "--set", "train.seed=5")
    assert serving(told) != serving(first)


def test_rejected_version_never_gets_traffic_again(journey: Journey, served: Served) -> None:
    """After a roll-back, the same command is refused, and a run with new data serves a third version."""
    config = journey.configure("regretted", gate={"champion_tolerance": 10.0})
    first = journey.json("run", config)
    changed = "train.seed=6"
    second = journey.json("run", config, "--set", changed)
    assert serving(second) != serving(first)
    back = journey.json("roll-back", config, "--reason", "rude answers")
    assert back["traffic"][serving(first)] == 100
    moved = len(journey.endpoint("regretted")["history"])
    told = refused(journey, config, changed)
    assert "rude answers" in told["run"]["message"]
    assert serving(journey.json("status", config)) == serving(first)
    journey.write_data("regretted", records(60))
    third = journey.json("run", config, "--set", changed)
    assert third["model"]["version"] == "3"
    assert serving(third).startswith("v3-")
    later = journey.endpoint("regretted")["history"][moved:]
    assert later
    assert not any(f"{serving(second)}=" in line for line in later), later


def test_roll_back_to_a_version_that_is_not_there(journey: Journey, served: Served) -> None:
    """Rolling back what has no predecessor, or to a version without a deployment, is one line and no change."""
    config = journey.configure("alone")
    first = journey.json("run", config)
    for arguments in ((), ("--to", "7")):
        ended = journey.phiflow("roll-back", config, "--reason", "why not", *arguments)
        assert ended.returncode == 4, ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1
    assert journey.endpoint("alone")["traffic"] == first["endpoint"]["traffic"]
