"""Chats that nobody here wrote, through the whole journey."""

from __future__ import annotations

from pathlib import Path

import pytest
import requests
from journey import ROOT, Journey, Served

pytestmark = [pytest.mark.journey, pytest.mark.slow]

# The folder beside the project, where the machine has it.
FOLDER = ROOT.parent / "shared" / "data"


def data_file(name: str) -> Path:
    """The file, or a skip with its reason."""
    if not (FOLDER / name).is_file():
        pytest.skip(f"there is no {name} in {FOLDER}")
    return FOLDER / name


@pytest.mark.parametrize(
    ("name", "question"),
    [
        ("sharegpt_vicuna.json", "How can I write a short story?"),
        ("alpaca_en.json", "Give three tips for staying healthy."),
    ],
)
def test_real_chats_are_trained_on_and_served(journey: Journey, served: Served, name: str, question: str) -> None:
    """The default configuration, shortened, serves what it learned from a ShareGPT or Alpaca file as it is found."""
    run_name = name.partition("_")[0]
    source = f"data.source={data_file(name)}"
    overrides = [source, f"name={run_name}", "train.max_steps=200"]
    sets = [part for override in overrides for part in ("--set", override)]
    told = journey.json("run", ROOT / "deployments" / "local.yaml", *sets, timeout=580)
    assert told["run"]["state"] == "Completed"
    assert told["data"]["counts"]["train"] > told["data"]["counts"]["test"] > 10
    for rejected in told["data"]["rejected"]:
        assert rejected["file"].endswith(name)
        assert rejected["line"] > 0
        assert rejected["reason"]
    assert told["gate"]["candidate"] < told["gate"]["base"]
    response = requests.post(f"{told['chat']['url']}/score", json={"question": question}, timeout=120)
    assert response.status_code == 200, response.text
