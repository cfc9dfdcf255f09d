from __future__ import annotations

import os

import pytest

from trainer.files import digest_folder, replace_folder, write_atomic


def test_a_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    """When a write fails, the file keeps what it held and nothing lies beside it."""
    path = tmp_path / "result.json"
    write_atomic(path, "old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


def test_digest_sees_names_and_contents(tmp_path):
    """A folder's digest changes with any name or content in it, and with nothing else."""
    (tmp_path / "a" / "sub").mkdir(parents=True)
    (tmp_path / "a" / "sub" / "x").write_text("1")
    first = digest_folder(tmp_path / "a")
    os.utime(tmp_path / "a" / "sub" / "x", (1, 1))
    assert digest_folder(tmp_path / "a") == first
    (tmp_path / "a" / "sub" / "x").rename(tmp_path / "a" / "sub" / "y")
    renamed = digest_folder(tmp_path / "a")
    assert renamed != first
    (tmp_path / "a" / "sub" / "y").write_text("2")
    assert digest_folder(tmp_path / "a") not in (first, renamed)


def test_replace_folder_takes_the_place_of_an_old_one(tmp_path):
    """A finished folder replaces an earlier one, and nothing of the earlier one is left."""
    for name in ("new", "target"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text("")
    replace_folder(tmp_path / "new", tmp_path / "target")
    assert sorted(os.listdir(tmp_path)) == ["target"]
    assert os.listdir(tmp_path / "target") == ["new"]
