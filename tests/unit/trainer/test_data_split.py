"""The split: decided by each conversation alone, stable while data grows, never leaking."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from trainer.data import side, split
from trainer.data.__main__ import main

ROOT = Path(__file__).parents[3]


def _record(num: int, **columns: Any) -> dict[str, Any]:
    return {
        "messages": [{"role": "user", "content": f"Q{num}?"}, {"role": "assistant", "content": f"A{num}."}],
        **columns,
    }


def _write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def _prepare(source: Path, out: Path, *arguments: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    assert main(["--source", str(source), "--output-dir", str(out), *arguments]) == 0
    train, test = (
        [json.loads(line) for line in (out / f"{side}.jsonl").read_text().splitlines()] for side in ("train", "test")
    )
    return train, test


def _questions(records: list[dict[str, Any]]) -> set[str]:
    return {record["messages"][0]["content"] for record in records}


def test_three_nights_of_growing_data_never_move_a_row(tmp_path: Path) -> None:
    """No training row of one night is in the test set of another, in whatever order the rows come."""
    records = [_record(num) for num in range(300)]
    nights = [records[:100], records[50:200][::-1] + records[:50], records]
    sides = [_prepare(_write(tmp_path / f"{n}.jsonl", rows), tmp_path / f"out{n}") for n, rows in enumerate(nights)]
    for train, _ in sides:
        for _, test in sides:
            assert not _questions(train) & _questions(test)
    assert 30 <= len(sides[2][1]) <= 90


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    """Another process with another hash seed writes the same files and the same manifest."""
    source = _write(tmp_path / "chats.jsonl", [_record(num) for num in range(50)])
    outputs = []
    for seed in ("1", "2"):
        out = tmp_path / seed
        command = [sys.executable, "-m", "trainer.data", "--source", str(source), "--output_dir", str(out)]
        environment = {"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": seed}
        subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
        outputs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert outputs[0] == outputs[1]
    assert set(outputs[0]) == {"train.jsonl", "test.jsonl", "rejected.jsonl", "manifest.json"}


def test_the_digest_names_the_data(tmp_path: Path) -> None:
    """One changed row changes the digest; the sha256 values are those of the files."""
    records = [_record(num) for num in range(50)]
    _prepare(_write(tmp_path / "a.jsonl", records), tmp_path / "a")
    records[7]["messages"][1]["content"] = "Another answer."
    _prepare(_write(tmp_path / "b.jsonl", records), tmp_path / "b")
    before, after = (json.loads((tmp_path / name / "manifest.json").read_text()) for name in "ab")
    assert before["digest"] != after["digest"]
    sums = subprocess.run(["sha256sum", tmp_path / "a/train.jsonl"], capture_output=True, text=True, check=True)
    assert sums.stdout.split()[0] == before["sha256"]["train"]


def test_duplicates_stay_together_and_are_counted(tmp_path: Path) -> None:
    """Repeats of a conversation are kept, all on one side, and the manifest says how many there are."""
    records = [_record(num % 40, id=num) for num in range(120)]
    train, test = _prepare(_write(tmp_path / "chats.jsonl", records), tmp_path / "out")
    assert len(train) + len(test) == 120
    assert not _questions(train) & _questions(test)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["counts"]["duplicates"] == 80


def test_duplicates_are_counted_the_same_in_one_pass_and_in_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The passes that bound memory do not change the number."""
    records = [_record(num % 70, id=num) for num in range(100)]
    source, counts = _write(tmp_path / "chats.jsonl", records), []
    for rows in (500_000, 10):
        monkeypatch.setattr(side, "_PASS_ROWS", rows)
        _prepare(source, tmp_path / "out")
        counts.append(json.loads((tmp_path / "out/manifest.json").read_text())["counts"]["duplicates"])
    assert counts == [30, 30]


def test_a_group_stays_on_one_side(tmp_path: Path) -> None:
    """All conversations of one group key are on the same side, from JSON numbers and from CSV text alike."""
    rows = [_record(num, customer=num % 30) for num in range(200)]
    train, test = _prepare(_write(tmp_path / "c.jsonl", rows), tmp_path / "out", "--group-by", "customer")
    groups = [{record["customer"] for record in side} for side in (train, test)]
    assert not groups[0] & groups[1] and len(groups[0] | groups[1]) == 30
    assert split.group_key(7) == split.group_key("7")


def test_a_record_without_its_group_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A missing group key is named by line; a key that no record has is named with the nearest column."""
    source = _write(tmp_path / "c.jsonl", [_record(1, customer=1), _record(2)])
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "o"), "--group-by", "customer"]) == 2
    assert f"{source}:2: the group key 'customer' is null" in capsys.readouterr().err
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "o"), "--group-by", "costumer"]) == 2
    assert "Did you mean 'customer'?" in capsys.readouterr().err


def test_a_test_source_is_the_test_side(tmp_path: Path) -> None:
    """Everything in the source trains, but for what the test source holds, which is counted."""
    source = _write(tmp_path / "chats.jsonl", [_record(num) for num in range(20)])
    tests = _write(tmp_path / "tests.jsonl", [_record(num) for num in range(15, 30)])
    train, test = _prepare(source, tmp_path / "out", "--test-source", str(tests))
    assert (len(train), len(test)) == (15, 15)
    assert not _questions(train) & _questions(test)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["counts"]["overlap"] == 5


def test_an_empty_side_is_an_error_that_names_a_way_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With a side empty nothing is written, and the seed that the error proposes works."""
    source = _write(tmp_path / "chats.jsonl", [_record(num) for num in range(3)])
    arguments = ["--source", str(source), "--output-dir", str(tmp_path / "out"), "--test-share", "0.01"]
    assert main(arguments) == 2
    assert "all 3 conversations" in capsys.readouterr().err
    assert main([*arguments[:-1], "0.5", "--seed", "2"]) in (0, 2)
    seed = split.nearest_working_seed([split.content_key(_record(num)["messages"]) for num in range(3)], 0.2)
    assert main([*arguments[:-1], "0.2", "--seed", str(seed)]) == 0


def test_a_test_source_that_is_the_source_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When nothing is left to train on, the error says why."""
    source = _write(tmp_path / "chats.jsonl", [_record(num) for num in range(3)])
    arguments = ["--source", str(source), "--test-source", str(source), "--output-dir", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert "No conversation is left to train on: all 3" in capsys.readouterr().err
