"""Values written into a configuration: comments, order and quotes stay, and what is read back is what was set."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from tasks.config_edit import as_yaml, set_values
from tasks.config_files import parse_yaml
from tasks.platforms.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
TEXT = """\
# Whose it is.
name: "support"

platform:
  kind: azure          # the cloud
  poll_seconds: 0.5

# What is learned.
data: {source: 'x.jsonl', test_share: 2e-1}
approve:
- submit
train:
  eval_strategy: "no"  # quoted for a reason
"""
VALUES = {"platform.workspace": "chat", "platform.identity.client_id": "12e45678-0000-0000-0000-000000000000"}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration with everything that a careless writer would lose."""
    path = tmp_path / "run.yaml"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_only_what_is_set_changes(file: Path) -> None:
    """The new keys stand in their section; every line that was there is there, as it was."""
    assert set_values(file, VALUES) == tuple(VALUES)
    lines = file.read_text(encoding="utf-8").splitlines()
    new = ["  workspace: chat", "  identity:", "    client_id: 12e45678-0000-0000-0000-000000000000"]
    assert [line for line in lines if line not in new] == TEXT.splitlines()
    assert lines[lines.index("  poll_seconds: 0.5") + 1 :][:3] == new


def test_what_is_so_already_is_not_written(file: Path) -> None:
    """A second time nothing changes, and the file is not touched; one other value is written alone."""
    set_values(file, VALUES)
    file.chmod(0o444)
    before = file.stat()
    assert set_values(file, VALUES) == ()
    assert file.stat() == before
    assert set_values(file, {**VALUES, "platform.workspace": "other"}) == ("platform.workspace",)


@pytest.mark.parametrize("value", ["no", "on", "1e5", "007", "~", "", "a: b", "#x", "0x1f", "2026-11-21", "x" * 300])
def test_text_stays_text(file: Path, value: str) -> None:
    """What YAML would take for a truth value, a number or a date is read back as the text that it is."""
    set_values(file, {"platform.workspace": value})
    assert parse_yaml(file.read_text(encoding="utf-8"), "file")["platform"]["workspace"] == value
    assert parse_yaml(as_yaml({"platform.workspace": value}), "lines") == {"platform": {"workspace": value}}


@pytest.mark.parametrize("path", sorted((ROOT / "deployments").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configurations_keep_every_line(path: Path, tmp_path: Path) -> None:
    """Written into a configuration that ships, the values are all that is new."""
    copy = tmp_path / path.name
    copy.write_bytes(path.read_bytes())
    set_values(copy, VALUES)
    lines = copy.read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line in (old := path.read_text(encoding="utf-8").splitlines())] == old
    assert len(lines) == len(old) + 3


def test_line_ends_rights_and_links_stay(file: Path) -> None:
    """A file of Windows stays one, a private one private, and a link a link."""
    file.write_bytes(TEXT.replace("\n", "\r\n").encode())
    file.chmod(0o640)
    link = file.with_name("link.yaml")
    link.symlink_to(file)
    set_values(link, VALUES)
    assert link.is_symlink()
    assert stat.S_IMODE(file.stat().st_mode) == 0o640
    assert file.read_bytes().count(b"\n") == file.read_bytes().count(b"\r\n") == len(TEXT.splitlines()) + 3
    assert sorted(one.name for one in file.parent.iterdir()) == ["link.yaml", "run.yaml"]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("platform: azure\n", "platform is a value, not a section"),
        ("- a\n", "it is no mapping"),
        ("a: [\n", "cannot be edited"),
    ],
)
def test_file_that_cannot_be_edited_is_one_line(file: Path, text: str, told: str) -> None:
    """The file is named, with what is wrong, and stays as it is."""
    file.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=told) as caught:
        set_values(file, VALUES)
    assert str(file) in str(caught.value) and "\n" not in str(caught.value)
    assert file.read_text(encoding="utf-8") == text


def test_section_without_keys_is_filled(file: Path) -> None:
    """A section that is there and empty gets the value."""
    file.write_text("platform:\nname: x\n", encoding="utf-8")
    set_values(file, {"platform.workspace": "chat"})
    assert parse_yaml(file.read_text(encoding="utf-8"), "file") == {"platform": {"workspace": "chat"}, "name": "x"}


def test_failed_write_leaves_the_file(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the new file cannot take the old one's place, the old one is whole and nothing lies beside it."""

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.replace", refuse)
    with pytest.raises(ConfigError, match=r"cannot be written: Permission denied"):
        set_values(file, VALUES)
    assert file.read_text(encoding="utf-8") == TEXT
    assert list(file.parent.iterdir()) == [file]
