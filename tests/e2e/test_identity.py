"""What a job is named by, and on which side of the split a row lands, as the commands show it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from journey import ROOT, Journey, Served, records

pytestmark = [pytest.mark.journey, pytest.mark.slow]


def job_key(journey: Journey, config: Path, *overrides: str) -> str:
    """The key that `phiflow plan` gives the training job."""
    sets = [part for override in overrides for part in ("--set", override)]
    return str(journey.json("plan", config, *sets)["job"]["key"])


@pytest.fixture(scope="module")
def named(journey: Journey, served: Served) -> tuple[Path, str]:
    """A configuration and the key of its job."""
    config = journey.configure("named")
    return config, job_key(journey, config)


@pytest.mark.parametrize(
    "override", ["rollout.hold_seconds=7", "chat.max_tokens=9", "serving.start_timeout_seconds=60"]
)
def test_what_does_not_change_the_model_does_not_change_the_job(
    journey: Journey, named: tuple[Path, str], override: str
) -> None:
    """Rollout, chat and time-outs are not in a job's name."""
    config, key = named
    assert job_key(journey, config, override) == key


@pytest.mark.parametrize("override", ["train.learning_rate=1e-3", "train.seed=1", "data.test_share=0.3"])
def test_what_changes_the_model_changes_the_job(journey: Journey, named: tuple[Path, str], override: str) -> None:
    """A hyperparameter or another split makes another job."""
    config, key = named
    assert job_key(journey, config, override) != key


def test_one_row_changes_the_job(journey: Journey, named: tuple[Path, str]) -> None:
    """One changed answer in the data makes another job, and the row as it was makes the first again."""
    config, key = named
    rows = records(40)
    rows[7]["messages"][1]["content"] += " Or so."
    journey.write_data("named", rows)
    try:
        assert job_key(journey, config) != key
    finally:
        journey.write_data("named", records(40))
    assert job_key(journey, config) == key


def test_base_model_is_known_by_its_content(journey: Journey, named: tuple[Path, str], tmp_path: Path) -> None:
    """Another base model makes another job: by its folder's content, not by its name."""
    config, key = named
    (origin,) = journey.home.glob("base-models/*/config.json")
    model = tmp_path / "model"
    shutil.copytree(origin.parent, model)
    copied = job_key(journey, config, f"model.base={model}")
    settings = json.loads((model / "config.json").read_text(encoding="utf-8"))
    (model / "config.json").write_text(json.dumps(settings | {"initializer_range": 0.5}), encoding="utf-8")
    assert len({key, copied, job_key(journey, config, f"model.base={model}")}) >= 2
    assert job_key(journey, config, f"model.base={model}") != copied


def test_trainer_code_changes_the_job(journey: Journey, named: tuple[Path, str], tmp_path: Path) -> None:
    """A changed line in the trainer makes another job; a copy of the project by itself does not."""
    config, key = named
    project = tmp_path / "project"
    for name in ("flows", "tasks", "trainer", "deployments", "environments", "promptflow_app"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns("__pycache__"))

    def key_of_the_copy() -> str:
        ended = subprocess.run(
            [sys.executable, "-m", "flows", "plan", str(config), "--json"],
            cwd=project,
            env=journey.environment(PYTHONPATH=str(project)),
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert ended.returncode == 0, ended.stderr
        told: dict[str, Any] = json.loads(ended.stdout)
        return str(told["job"]["key"])

    assert key_of_the_copy() == key
    with (project / "trainer" / "train.py").open("a", encoding="utf-8") as file:
        file.write("\nCHANGED = True\n")
    assert key_of_the_copy() != key


def test_growing_data_never_moves_a_row_to_the_other_side(journey: Journey, served: Served) -> None:
    """Over three nights of growing data, no training row of one night is in a test set of another."""
    nights = []
    for number in (40, 70, 110):
        config = journey.configure("growing", records(number))
        told = journey.json("data", config)
        sides = {}
        for side in ("train", "test"):
            lines = Path(told[f"{side}_file"]).read_text(encoding="utf-8").splitlines()
            sides[side] = {json.dumps(json.loads(line)["messages"]) for line in lines}
            assert len(sides[side]) == told["counts"][side]
        assert sum(told["counts"].values()) == number
        nights.append(sides)
    for one in nights:
        for other in nights:
            assert not one["train"] & other["test"]
    assert nights[0]["train"] < nights[1]["train"] < nights[2]["train"]
