"""Prepared data on this machine: adopted while every file of every source is what it was, prepared anew otherwise."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.config import DataConfig
from tasks.platforms.errors import DataError
from tasks.platforms.local.preflight import require_source
from tasks.platforms.local.preparation import Preparation
from tasks.platforms.local.state import Home
from tasks.platforms.refs import BaseModelRef, DataManifest, EnvironmentRef, Origin

MADE = Origin(reused=False, reason="made in a test")
BASE = BaseModelRef(base="b", revision="", digest="b" * 64, location="", origin=MADE)


def _chats(path: Path, name: str, num: int = 20) -> Path:
    path.parent.mkdir(exist_ok=True)
    turns = [[{"role": "user", "content": f"{name}{n}"}, {"role": "assistant", "content": "a"}] for n in range(num)]
    path.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in turns))
    return path


@pytest.fixture
def prepare(tmp_path: Path) -> Callable[..., DataManifest]:
    """Return a function that prepares sources with this Python in one state folder."""
    home = Home.open(str(tmp_path / "home"))
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    environment = EnvironmentRef(name="training", version="e", location=str(tmp_path / "environment"), origin=MADE)

    def prepare(**values: Any) -> DataManifest:
        return Preparation(home).data(DataConfig(**values), BASE, environment, 256)

    return prepare


def test_each_file_of_a_folder_counts(prepare: Callable[..., DataManifest], tmp_path: Path) -> None:
    """A folder's data is adopted until a file of it changes or another comes; a pattern of the same files adopts it."""
    _chats(tmp_path / "d/a.jsonl", "a")
    _chats(tmp_path / "d/b.jsonl", "b")
    made = prepare(source=str(tmp_path / "d"))
    assert made.num_train + made.num_test == 40
    assert prepare(source=str(tmp_path / "d")).origin.reused
    assert prepare(source=str(tmp_path / "d/*.jsonl")).digest == made.digest
    _chats(tmp_path / "d/b.jsonl", "c")
    changed = prepare(source=str(tmp_path / "d"))
    assert not changed.origin.reused and changed.digest != made.digest
    _chats(tmp_path / "d/c.jsonl", "d")
    assert prepare(source=str(tmp_path / "d")).num_train > changed.num_train


def test_sources_weights_and_caps_reach_the_trainer(prepare: Callable[..., DataManifest], tmp_path: Path) -> None:
    """What the configuration says of each source is what is prepared, and another weight is other data."""
    first, second = _chats(tmp_path / "a.jsonl", "a", 200), _chats(tmp_path / "b.jsonl", "b", 200)
    sources = [str(first), {"source": str(second), "weight": 0.1, "shape": "messages"}]
    made = prepare(source=sources, deduplicate=True)
    manifest = json.loads(Path(made.manifest_file).read_text())
    assert [(Path(one["name"]).name, one["weight"]) for one in manifest["sources"]] == [
        ("a.jsonl", 1),
        ("b.jsonl", 0.1),
    ]
    kept = [one["counts"]["train"] + one["counts"]["test"] for one in manifest["sources"]]
    assert kept[0] == 200 and 5 < kept[1] < 40
    assert prepare(source=sources, deduplicate=True).origin.reused
    heavier = [str(first), {"source": str(second), "weight": 2}]
    assert not prepare(source=heavier).origin.reused
    capped = prepare(source=[str(first), str(second)], max_examples=50)
    assert (capped.num_train, capped.num_test) == (40, 10)
    fixed = prepare(source=str(first), test_source=str(second))
    assert (fixed.num_train, fixed.num_test, fixed.origin.reused) == (200, 200, False)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no match": ({"source": "{d}/*.csv"}, "matches no file"),
    "an empty folder": ({"source": "{d}/empty"}, "is a folder without data files"),
    "one of several missing": ({"source": ["{d}/a.jsonl", "{d}/none.jsonl"]}, "none.jsonl does not exist"),
    "an empty file in a folder": ({"source": "{d}"}, "z.jsonl is empty"),
    "a split of a file": ({"source": [{"source": "{d}/a.jsonl", "split": "x"}]}, "data.split 'x' is for hub data sets"),
    "a split of files": ({"source": ["{d}/a.jsonl"], "split": "x"}, "data.split 'x' is for hub data sets"),
    "streamed files": ({"source": "{d}/a.jsonl", "streaming": True}, "data.streaming 'True' is for hub data sets"),
    "no id": ({"source": ["{d}/a.jsonl", "a b"]}, "'a b' is neither a file here nor a hub data set's id"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_source_is_refused_before_anything_is_built(kind: str, tmp_path: Path) -> None:
    """One line names the source among several, and what is wrong with it."""
    values, said = WRONG[kind]
    folder = tmp_path / "d"
    _chats(folder / "a.jsonl", "a")
    (folder / "empty").mkdir()
    (folder / "z.jsonl").touch()
    with pytest.raises(DataError) as caught:
        require_source(DataConfig(**json.loads(json.dumps(values).replace("{d}", str(folder)))))
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_hub_set_among_files_has_its_own_settings(tmp_path: Path) -> None:
    """The section's split and revision are those of hub sets that say none; `#split` says one; files have none."""
    data = DataConfig(
        source=[str(_chats(tmp_path / "a.jsonl", "a")), "o/one", "o/two#test", {"source": "o/three", "split": "x[:9]"}],
        split="train[:1%]",
        test_source={"source": "o/four", "split": "test"},
    )
    require_source(data)
    assert [source.split for source in data.sources] == ["", "train[:1%]", "test", "x[:9]"]
    assert data.tests is not None and data.tests.split == "test"
    assert data.label == f"{tmp_path / 'a.jsonl'} and 3 more"
