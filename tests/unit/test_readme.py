"""The README says what is there: its commands parse, its targets exist, its table lists every key."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer
import yaml

from flows.cli import app
from tasks.config import PipelineConfig
from trainer.config import TrainConfig

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```\w*\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
LINES = [line.split("   #")[0].strip() for block in BLOCKS for line in block.splitlines()]
PHIFLOW = [line for line in LINES if line.startswith("phiflow ")] + re.findall(r"`(phiflow [^`]*?)`", README)


@pytest.mark.parametrize("line", sorted(set(PHIFLOW)))
def test_phiflow_commands_of_the_readme_parse(line: str) -> None:
    """Every phiflow command in the README is a command with those options."""
    words = [word for word in shlex.split(line.replace("...", "x"))[1:] if word != "COMMAND"]
    group = typer.main.get_command(app)
    if words[0].startswith("--"):
        return
    command = group.commands[words[0]]
    command.make_context(words[0], words[1:])


def test_make_targets_of_the_readme_exist() -> None:
    """Every make target in the README is one."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = {line.split()[1] for line in LINES if line.startswith("make ")}
    assert {"demo", "test"} <= named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_configuration_table_lists_every_key() -> None:
    """The README's table names every section and every key of the configuration."""
    for section, field in PipelineConfig.model_fields.items():
        assert f"`{section}`" in README, section
        keys = getattr(field.annotation, "model_fields", {})
        missing = [key for key in keys if f"`{key}`" not in README and f"`{key}:" not in README]
        assert not missing, f"{section}: {missing}"


def test_training_settings_named_in_the_readme_exist() -> None:
    """The examples of training settings are fields of the trainer's configuration."""
    row = next(line for line in README.splitlines() if line.startswith("| `train` |"))
    for name in re.findall(r"`(\w+)`", row)[1:]:
        assert name in TrainConfig.__dataclass_fields__ or name == "method", name


def test_file_map_names_what_exists() -> None:
    """Each folder in the README's file map exists."""
    block = next(block for block in BLOCKS if block.startswith("flows/"))
    parent = ROOT
    for line in block.splitlines():
        name = line.split()[0]
        if not name.endswith("/"):
            continue
        parent = ROOT if not line.startswith(" ") else parent
        folder = (parent if line.startswith(" ") else ROOT) / name
        assert folder.is_dir(), name
        if not line.startswith(" "):
            parent = folder


def test_every_configuration_has_a_prefect_deployment() -> None:
    """prefect.yaml has one deployment for each file in deployments/, named as the file; and the sweep of one."""
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text(encoding="utf-8"))["deployments"]
    *runs, sweep = deployments
    assert [d["name"] for d in runs] == sorted(path.stem for path in (ROOT / "deployments").glob("*.yaml"))
    assert (sweep["name"], sweep["entrypoint"], sweep["parameters"]["delete"]) == (
        "sweep",
        "flows/sweep.py:sweep",
        False,
    )
    assert [schedule["active"] for schedule in sweep["schedules"]] == [False]
