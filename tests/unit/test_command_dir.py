"""The folder of `train.command` travels with the job, and what it holds is part of the job's name."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from fakes import ENVIRONMENT, data_manifest, job_spec

from tasks.config_files import load_config
from tasks.job_spec import training_spec
from tasks.platforms.azure.job_request import write_snapshot
from tasks.platforms.errors import ConfigError
from tasks.platforms.local import jobs as jobs_module
from tasks.platforms.local.jobs import Jobs
from tasks.platforms.local.state import Home
from tasks.platforms.refs import JobSpec


def configured(folder: Path, command_dir: str = "mine", command: str = "python fine_tune.py") -> JobSpec:
    """The training job of a configuration file in a folder."""
    file = folder / "run.yaml"
    train = {"command": command, "command_dir": command_dir}
    text = json.dumps({"name": "own-trainer", "data": {"source": "chats.jsonl"}, "train": train})
    file.write_text(text, encoding="utf-8")
    (folder / "chats.jsonl").touch()
    made = job_spec()
    return training_spec(load_config(file), made.model, data_manifest(), ENVIRONMENT, made.compute)


def write_program(folder: Path, text: str = "print(1)") -> None:
    """A trainer of one file, and what must not travel with it."""
    (folder / "mine" / ".git").mkdir(parents=True)
    (folder / "mine" / "fine_tune.py").write_text(text, encoding="utf-8")
    (folder / "mine" / ".env").write_text("SECRET=1", encoding="utf-8")


def test_content_and_not_place_names_the_job(tmp_path: Path) -> None:
    """The same folder elsewhere is the same job; another line in it, or another command, is another."""
    specs = []
    for name, text in (("one", "print(1)"), ("two", "print(1)"), ("three", "print(2)")):
        (tmp_path / name).mkdir()
        write_program(tmp_path / name, text)
        specs.append(configured(tmp_path / name))
    other = configured(tmp_path / "one", command="python fine_tune.py --fast")
    assert specs[0].key == specs[1].key
    assert len({specs[0].key, specs[2].key, other.key}) == 3
    assert specs[0].command_dir == str(tmp_path / "one" / "mine")
    assert json.loads(specs[0].settings)["command_dir"] == "command"


@pytest.mark.parametrize(
    ("command_dir", "command", "said"),
    [("nowhere", "python x.py", "is not a folder"), ("mine", "", "train.command is not")],
)
def test_folder_that_cannot_travel_is_refused(tmp_path: Path, command_dir: str, command: str, said: str) -> None:
    """A folder that is not there, or that no command uses, is refused before anything is submitted."""
    write_program(tmp_path)
    with pytest.raises(ConfigError, match=said):
        configured(tmp_path, command_dir, command)


def test_azure_snapshot_holds_the_folder(tmp_path: Path) -> None:
    """On Azure the folder is in the code snapshot beside train.json, without hidden files."""
    write_program(tmp_path)
    root = write_snapshot(configured(tmp_path), tmp_path / "snapshot")
    assert os.listdir(root / "command") == ["fine_tune.py"]
    assert json.loads((root / "train.json").read_text(encoding="utf-8"))["command_dir"] == "command"


def test_local_job_holds_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On this machine the folder is copied into the job's, so that an edit does not reach what runs."""
    write_program(tmp_path)
    monkeypatch.setattr(jobs_module, "_spawn", lambda *_: None)
    home = Home.open(str(tmp_path / "home"))
    job = Jobs(home, lambda *_: {}).submit(configured(tmp_path), "run-1")
    folder = home.path("jobs", job.name)
    assert os.listdir(folder / "command") == ["fine_tune.py"]
    assert json.loads((folder / "train.json").read_text(encoding="utf-8"))["command_dir"] == "command"
