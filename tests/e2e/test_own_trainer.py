"""Another trainer through the whole journey: `train.command` and its folder."""

from __future__ import annotations

import shutil

import pytest
from journey import ROOT, Journey, Served

pytestmark = [pytest.mark.journey, pytest.mark.slow]


def test_own_trainer_is_gated_registered_and_served(journey: Journey, served: Served) -> None:
    """The example's model goes through gate, registry, rollout and chat; a changed one is another job."""
    folder = journey.folder / "my_trainer"
    shutil.copytree(ROOT / "tests" / "examples" / "own_trainer", folder)
    train = {"command": "python fine_tune.py", "command_dir": folder.name, "num_train_epochs": 6, "seed": 3}
    config = journey.configure("own-trainer", train=train)
    told = journey.json("run", config, timeout=900)
    assert told["run"]["state"] == "Completed"
    assert told["gate"]["candidate"] < told["gate"]["base"]
    assert told["model"]["version"] == "1"
    progress = journey.events("own-trainer", "progress")
    assert progress[-1]["step"] == progress[-1]["num_steps"] == 6 * told["data"]["counts"]["train"]
    assert journey.ask(told["endpoint"]["url"], "own-trainer").status_code == 200
    (job,) = journey.jobs("own-trainer")
    assert journey.json("plan", config)["job"]["key"] == job["key"]
    with (folder / "fine_tune.py").open("a", encoding="utf-8") as file:
        file.write("\nprint('changed')\n")
    assert journey.json("plan", config)["job"]["key"] != job["key"]
