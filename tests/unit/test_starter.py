"""`phiflow init`: a short configuration next to the data, whatever the data's shape and name."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.starter import write_starter
from tasks.config_files import load_config, resolve_config
from tasks.platforms.errors import ConfigError, DataError
from tasks.platforms.local.preflight import require_source

REAL_DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
RECORDS: dict[str, dict[str, Any]] = {
    "messages": {"messages": [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Hello."}]},
    "sharegpt": {"conversations": [{"from": "human", "value": "Hi?"}, {"from": "gpt", "value": "Hello."}]},
    "alpaca": {"instruction": "Say hello.", "input": "", "output": "Hello."},
    "prompt-completion": {"prompt": "Hi?", "completion": "Hello."},
}
NUM = 30


def write_data(path: Path, shape: str) -> Path:
    """Write a data file of one shape in the format that its name says."""
    records = [RECORDS[shape]] * NUM
    if path.suffix == ".json":
        path.write_text(json.dumps(records), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            writer.writerows(records)
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


FILES = [(f"chats.{kind}", shape) for kind in ("jsonl", "json") for shape in RECORDS]
FILES += [("chats.csv", "alpaca"), ("chats.csv", "prompt-completion")]


@pytest.mark.parametrize(("name", "shape"), FILES)
def test_each_shape_is_recognised(tmp_path: Path, name: str, shape: str) -> None:
    """The configuration names the shape that was seen, resolves, and finds its data."""
    data_file = write_data(tmp_path / name, shape)
    target, about = write_starter(data_file, force=False)
    assert target == tmp_path / "chats.yaml"
    assert about == f"{NUM} records of shape {shape} in {name}"
    config, origins = resolve_config(target)
    assert config.data.shape == shape
    assert config.data.source == str(data_file)
    assert config.name == "chats"
    assert config.gate.min_examples == 3
    assert config.train.learning_rate == 3e-3
    assert origins["data.shape"] == str(target)
    require_source(config.data)


def test_a_folder_and_a_pattern_are_one_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The configuration stands next to the folder, finds its files, and says how many there are and what they hold."""
    (tmp_path / "chats").mkdir()
    write_data(tmp_path / "chats" / "a.jsonl", "messages")
    write_data(tmp_path / "chats" / "b.json", "alpaca")
    target, about = write_starter(tmp_path / "chats", force=False)
    assert (target, about) == (tmp_path / "chats.yaml", "60 records of several shapes in 2 files of ./chats")
    config = load_config(target)
    assert (config.name, config.data.source, config.data.shape) == ("chats", str(tmp_path / "chats"), "auto")
    require_source(config.data)
    monkeypatch.chdir(tmp_path)
    target, about = write_starter(Path("chats/*.jsonl"), force=True)
    assert (target, about) == (Path("chats.yaml"), "30 records of shape messages in chats/*.jsonl")
    assert load_config(target).data.source == str(tmp_path / "chats" / "*.jsonl")
    monkeypatch.chdir(tmp_path / "chats")
    target, _ = write_starter(Path("*.json*"), force=True)
    assert target == Path("chats.yaml")
    require_source(load_config(target).data)


def test_tools_and_parts_are_seen(tmp_path: Path) -> None:
    """What a data set has beside plain text is told."""
    call = {"type": "function", "function": {"name": "now", "arguments": "{}"}}
    parts = [{"type": "text", "text": "Hi?"}]
    rows = [
        {"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    ]
    plain = write_data(tmp_path / "chats.jsonl", "messages").read_text()
    (tmp_path / "chats.jsonl").write_text(plain + json.dumps(rows[0]) + "\n")
    assert write_starter(tmp_path / "chats.jsonl", force=False)[1] == (
        "31 records of shape messages in chats.jsonl, 1 with tools, 1 with content in parts"
    )


def test_every_line_a_user_may_change_is_explained(tmp_path: Path) -> None:
    """The configuration is short and commented."""
    text = write_starter(write_data(tmp_path / "chats.jsonl", "messages"), force=False)[0].read_text()
    assert len(text.splitlines()) < 40
    assert text.count("#") >= 8
    assert "microsoft/Phi-3.5-mini-instruct" in text


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason=f"there is no {REAL_DATA}")
@pytest.mark.parametrize(("name", "shape"), [("sharegpt_vicuna.json", "sharegpt"), ("alpaca_en.json", "alpaca")])
def test_real_data(tmp_path: Path, name: str, shape: str) -> None:
    """Chat data as its users have it is recognised."""
    (tmp_path / name).symlink_to(REAL_DATA / name)
    target, about = write_starter(tmp_path / name, force=False)
    config = load_config(target)
    assert config.data.shape == shape
    assert config.name == name.partition(".")[0].replace("_", "-")
    assert config.data.source == str(tmp_path / name)
    assert config.gate.min_examples == 10
    assert re.match(r"[1-9]\d+ records of shape", about)


def test_existing_configuration_is_kept(tmp_path: Path) -> None:
    """A configuration that is there is not overwritten, unless told so."""
    data_file = write_data(tmp_path / "chats.jsonl", "messages")
    (tmp_path / "chats.yaml").write_text("mine")
    with pytest.raises(ConfigError, match=r"chats\.yaml exists\. .*--force") as caught:
        write_starter(data_file, force=False)
    assert caught.value.exit_code == 2
    assert (tmp_path / "chats.yaml").read_text() == "mine"
    write_starter(data_file, force=True)
    assert load_config(tmp_path / "chats.yaml").name == "chats"


@pytest.mark.parametrize(
    ("file_name", "name"),
    [
        ("My Chats (final).jsonl", "my-chats-final"),
        ("support_2024.v2.jsonl", "support-2024-v2"),
        ("2024.jsonl", "chat-2024"),
        ("a.jsonl", "chat-a"),
        ("Ä.jsonl", "chat"),
        ("-.jsonl", "chat"),
        ("yes.jsonl", "chat-yes"),
        ("null.jsonl", "chat-null"),
        ("x" * 60 + ".jsonl", "x" * 32),
        ("a" * 31 + "-b.jsonl", "a" * 31),
        ("data: # 2.jsonl", "data-2"),
        ("*all.jsonl", "all"),
        ('- it\'s "x".jsonl', "it-s-x"),
        ("{chats}.jsonl", "chats"),
        ("two\nlines.jsonl", "two-lines"),
        ("back\\slash.jsonl", "back-slash"),
        ("~user.jsonl", "user"),
        ("trailing .jsonl", "trailing"),
        ("😀smile\u2028x.jsonl", "smile-x"),
        ("chats", "chats"),
    ],
)
def test_name_is_made_from_the_file(tmp_path: Path, file_name: str, name: str) -> None:
    """An odd file name becomes a valid name for the run, and is still found as the source."""
    data_file = write_data(tmp_path / file_name, "messages")
    config = load_config(write_starter(data_file, force=False)[0])
    assert config.name == name
    assert config.data.source == str(data_file)


def test_unusable_records_are_counted_and_named(tmp_path: Path) -> None:
    """Records that would stop a run are told by file, line and reason, and the configuration says so."""
    data_file = write_data(tmp_path / "chats.jsonl", "messages")
    with data_file.open("a") as file:
        file.write('{"messages": []}\n{broken\n')
    target, about = write_starter(data_file, force=False)
    first, *reasons = about.splitlines()
    assert first.endswith("2 of 32 looked at cannot be used")
    assert reasons[0].strip() == f"chats.jsonl:{NUM + 1}: 'messages' is empty"
    assert reasons[1].strip().startswith(f"chats.jsonl:{NUM + 2}: not valid JSON")
    assert "2 of 32 records would stop the run" in target.read_text()
    assert load_config(target).data.max_rejected_share == 0.0


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "does not exist"),
        (b"", "is empty"),
        (b'{"a": 1}\n' * 5, "no columns of a known shape"),
        (b'{"messages": []}\n' * 5, "None of 5 records in chats.jsonl can be used"),
        (b"\x7fELF\x00\x00", "can be used"),
    ],
    ids=["missing", "empty", "unknown shape", "nothing usable", "binary"],
)
def test_useless_data_writes_nothing(tmp_path: Path, content: bytes | None, said: str) -> None:
    """Data that no run could use is told in one line, and no configuration is written."""
    data_file = tmp_path / "chats.jsonl"
    if content is not None:
        data_file.write_bytes(content)
    with pytest.raises(DataError, match=said) as caught:
        write_starter(data_file, force=False)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert list(tmp_path.glob("*.yaml")) == []


@pytest.mark.parametrize("place", [".", "..", "../inner"])
def test_folder_without_data_files_is_no_data(tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it is called."""
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    with pytest.raises(DataError, match="is a folder"):
        write_starter(Path(place), force=False)


def test_init_command(tmp_path: Path, phiflow: Callable, phiflow_home: Path) -> None:
    """`phiflow init FILE` says what it saw and what to do next; a second time it refuses; nothing is started."""
    write_data(tmp_path / "my_chats.jsonl", "sharegpt")
    ended = phiflow("init", "my_chats.jsonl")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == [
        f"{NUM} records of shape sharegpt in my_chats.jsonl",
        "Wrote my_chats.yaml. Next: phiflow run my_chats.yaml",
    ]
    ended = phiflow("init", "my_chats.jsonl")
    assert ended.returncode == 2
    assert ended.stderr.splitlines() == ["error: my_chats.yaml exists. Edit it, or overwrite it with --force."]
    assert not phiflow_home.exists()
