"""Training on from the version that serves, night after night, on this machine."""

from __future__ import annotations

from typing import Any

import pytest
from journey import Journey, records

pytestmark = [pytest.mark.journey, pytest.mark.slow]


def test_nights_train_on_what_changed_alone(journey: Journey) -> None:
    """From the base first; then nothing, while nothing changes; new data trains the champion on, once."""
    gate = {"champion_tolerance": 10.0, "min_improvement": -10.0}
    config = journey.configure("nightly", gate=gate, model={"start_from": "champion"})

    def night() -> tuple[str, str, bool, dict[str, Any]]:
        told = journey.json("run", config, timeout=600)
        steps = {step["name"]: step for step in told["steps"]}
        start = steps["start_from_champion"]["reason"]
        return told["model"]["version"], start, steps["submit_training"]["reused"], told

    version, start, adopted, _ = night()
    assert (version, adopted) == ("1", False) and start.startswith("no version serves yet")
    for _ in range(2):
        version, start, adopted, _ = night()
        assert (version, adopted) == ("1", True) and start.startswith("nothing changed: version 1")
    journey.write_data("nightly", records(60))
    version, start, adopted, told = night()
    assert (version, adopted) == ("2", False)
    assert start == "version 1, which serves, was trained on other data or with other settings"
    assert told["gate"]["champion"] == pytest.approx(told["gate"]["base"]), "it is compared with what it started from"
    assert len(journey.jobs("nightly")) == 2
    version, start, adopted, _ = night()
    assert (version, adopted) == ("2", True) and start.startswith("nothing changed: version 2")
    pinned = journey.configure("pinned", model={"base": "models:/nightly/1"}, gate=gate)
    steps = {step["name"]: step for step in journey.json("run", pinned, timeout=600)["steps"]}
    assert steps["resolve_base_model"]["reason"] == "a registered version"
