"""A model served as MLflow packaged it, and a change from that kind of server to ours."""

from __future__ import annotations

import pytest
import requests
from journey import Journey

pytestmark = [pytest.mark.journey, pytest.mark.slow]


def test_a_model_served_without_code_answers_and_gives_way(journey: Journey) -> None:
    """`serving.server: mlflow` comes to the same chat answer, and then hands its traffic over to our server."""
    config = journey.configure("nocode", gate={"champion_tolerance": 10.0}, serving={"server": "mlflow"})
    first = journey.json("run", config)
    (before,) = first["endpoint"]["traffic"]
    # The probes compare what is served with what was evaluated, word for word.
    assert any("probes gave the evaluated answer" in step["reason"] for step in first["steps"])
    question = {"question": "Where is item 3?"}
    answer = requests.post(f"{first['chat']['url']}/score", json=question, timeout=60).json()
    assert answer["answer"] and answer["deployment"] == before
    told = journey.json("chat", question["question"], "--config", config)
    assert told["answer"] == answer["answer"]
    second = journey.json("run", config, "--set", "serving.server=openai")
    assert second["job"]["name"] == first["job"]["name"]
    (after,) = (name for name, percent in second["endpoint"]["traffic"].items() if percent == 100)
    assert after != before
    again = requests.post(f"{second['chat']['url']}/score", json=question, timeout=60).json()
    assert (again["answer"], again["deployment"]) == (answer["answer"], after)
