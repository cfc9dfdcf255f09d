"""Several sources: files, folders and patterns, mixed by weight, without repeats, under a cap."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainer.data import side
from trainer.data.__main__ import main
from trainer.data.listing import list_files
from trainer.data.options import SourceOptions
from trainer.errors import TrainerError


def _record(name: str, num: int, **columns: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"{name} {num}?"}, {"role": "assistant", "content": f"A{num}."}]
    return {"messages": messages, "of": name, "num": num, **columns}


def _write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def _numbered(path: Path, name: str, num: int) -> str:
    return str(_write(path, [_record(name, n) for n in range(num)]))


def _prepare(out: Path, *arguments: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]], dict[str, Any]]:
    assert main([*arguments, "--output-dir", str(out)]) == 0
    train, test = (
        [json.loads(line) for line in (out / f"{name}.jsonl").read_text().splitlines()] for name in ("train", "test")
    )
    return train, test, json.loads((out / "manifest.json").read_text())


def _source(name: str, **more: Any) -> list[str]:
    return ["--source", json.dumps({"source": name, **more}) if more else name]


def _named(records: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(record["of"], record["num"]) for record in records]


def test_a_folder_and_a_pattern_stand_for_their_files_in_order(tmp_path: Path) -> None:
    """Both read the same files in the same order, each in its own format; what is hidden or no data is left alone."""
    _write(tmp_path / "d/b.jsonl", [_record("b", n) for n in range(20)])
    (tmp_path / "d/a.json").write_text(json.dumps([_record("a", n) for n in range(20)]))
    (tmp_path / "d/c.csv").write_text("of,num,prompt,completion\n" + "".join(f"c,{n},c {n}?,A\n" for n in range(20)))
    for ignored in ("notes.md", ".hidden.jsonl"):
        (tmp_path / "d" / ignored).write_text("nothing")
    (tmp_path / "d/inner.jsonl").mkdir()
    train, test, manifest = _prepare(tmp_path / "folder", *_source(str(tmp_path / "d")))
    assert [kind for kind, _ in Counter(record["of"] for record in train).items()] == ["a", "b", "c"]
    assert len(train) + len(test) == 60
    assert (manifest["shape"], manifest["source"]["kind"]) == ("mixed", "several")
    read = [(Path(one["name"]).name, one["shape"], one["counts"]["read"]) for one in manifest["sources"]]
    assert read == [("a.json", "messages", 20), ("b.jsonl", "messages", 20), ("c.csv", "prompt-completion", 20)]
    assert sum(one["counts"]["train"] + one["counts"]["test"] for one in manifest["sources"]) == 60
    digests = {_prepare(tmp_path / "out", *_source(str(tmp_path / name)))[2]["digest"] for name in ("d/[abc].*", "d")}
    assert digests == {manifest["digest"]}


def test_a_pattern_below_a_folder_with_brackets_in_its_name(tmp_path: Path) -> None:
    """What exists is what it is called; only the rest of a name is a pattern, and `**` reaches into folders."""
    inner = tmp_path / "runs [v1]"
    for name in ("1.jsonl", "x/2.jsonl", "x/y/3.jsonl"):
        _numbered(inner / name, "a", 3)
    assert [path.name for path in list_files(f"{inner}/*.jsonl")] == ["1.jsonl"]
    assert [path.name for path in list_files(f"{inner}/**/*.jsonl")] == ["1.jsonl", "2.jsonl", "3.jsonl"]
    assert [path.name for path in list_files(str(inner))] == ["1.jsonl"]
    odd = _write(tmp_path / "chats[1].jsonl", [])
    assert list_files(str(odd)) == [odd]
    assert list_files(str(tmp_path / "none*")) == []


@pytest.mark.parametrize(
    ("sources", "said"),
    [
        ([("none*.jsonl", {})], "none*.jsonl matches no file"),
        ([("a.jsonl", {}), ("*.jsonl", {})], "a.jsonl is named twice"),
        ([("a.jsonl", {"wieght": 2})], "unknown key 'wieght'. Did you mean 'weight'?"),
        ([("a.jsonl", {"weight": 0})], "is 0, not from above 0 to 100"),
        ([("a.jsonl", {"weight": True})], "is True, not from above 0"),
        ([("a.jsonl", {"shape": "alpca"})], "Did you mean 'alpaca'?"),
        ([("a.jsonl", {"split": "train"})], "split 'train' is for hub datasets"),
        ([("a.jsonl", {}), ("empty", {})], "empty is a folder without data files"),
    ],
)
def test_a_wrong_source_is_one_line(
    sources: list[tuple[str, dict[str, Any]]], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong with one of several sources names that one; nothing is written."""
    _numbered(tmp_path / "a.jsonl", "a", 30)
    (tmp_path / "empty").mkdir()
    arguments = [word for name, more in sources for word in _source(str(tmp_path / name), **more)]
    assert main([*arguments, "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_rejected_record_names_its_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With several files, too; and a source of which nothing is usable stops the run, whatever share may be lost."""
    _numbered(tmp_path / "a.jsonl", "a", 40)
    bad = _write(tmp_path / "b.jsonl", [{"messages": []}])
    arguments = ["--source", str(tmp_path / "*.jsonl"), "--output-dir", str(tmp_path / "out")]
    assert main(arguments) == 2
    assert f"{bad}:1: 'messages' is empty" in capsys.readouterr().err
    assert main([*arguments, "--max-rejected-share", "0.5"]) == 2
    assert f"All 1 records of {bad} were rejected" in capsys.readouterr().err


def test_a_weight_is_how_often_a_conversation_is_trained_on(tmp_path: Path) -> None:
    """0.3 leaves out seven in ten, 2 takes each twice, 1.5 every other one twice; what is tested on is never twice."""
    names = {name: _numbered(tmp_path / f"{name}.jsonl", name, 1000) for name in "abcd"}
    weights = {"a": 1, "b": 0.3, "c": 2, "d": 1.5}
    arguments = [word for name in "abcd" for word in _source(names[name], weight=weights[name])]
    train, test, manifest = _prepare(tmp_path / "out", *arguments)
    counts = Counter(record["of"] for record in train)
    alone, tested, _ = _prepare(tmp_path / "alone", *[word for name in "abcd" for word in _source(names[name])])
    each = Counter(record["of"] for record in alone)
    assert counts["a"] == each["a"] and counts["c"] == 2 * each["c"]
    assert 0.25 < counts["b"] / each["b"] < 0.35 and 1.45 < counts["d"] / each["d"] < 1.55
    assert max(Counter(_named(test)).values()) == 1
    assert set(_named(test)) < set(_named(tested))
    assert manifest["counts"]["left_out"] == 1000 - counts["b"] - sum(record["of"] == "b" for record in test)
    assert manifest["counts"]["duplicates"] == 0
    assert [one["weight"] for one in manifest["sources"]] == [1, 0.3, 2, 1.5]


def test_growing_data_or_weight_never_exchanges_what_was_taken(tmp_path: Path) -> None:
    """Which conversations a weight takes depends on their content and the seed alone."""
    small = _numbered(tmp_path / "small.jsonl", "a", 300)
    records = [_record("a", n) for n in range(600)]
    large = str(_write(tmp_path / "large.jsonl", records[300:][::-1] + records[:300]))
    taken = {}
    for name, source, weight in (("few", small, 0.3), ("grown", large, 0.3), ("more", small, 0.6)):
        train, test, _ = _prepare(tmp_path / name, *_source(source, weight=weight))
        taken[name] = [set(_named(train)), set(_named(test))]
    for number in (0, 1):
        old = {(name, num) for name, num in taken["grown"][number] if num < 300}
        assert taken["few"][number] == old
        assert taken["few"][number] < taken["more"][number]
    other, _, _ = _prepare(tmp_path / "seed", *_source(small, weight=0.3), "--seed", "1")
    assert set(_named(other)) != taken["few"][0]


def test_deduplicated_data_has_each_conversation_once(tmp_path: Path) -> None:
    """The first one stays, in its place; another answer, another tool or another flag is another conversation."""
    flagged = _record("a", 0)
    flagged["messages"] = [*flagged["messages"], flagged["messages"][0], {**flagged["messages"][1], "weight": 0}]
    learned = _record("a", 1)
    learned["messages"] = [{**m, "weight": 1} for m in flagged["messages"]]
    records = [_record("a", n % 50) | {"id": n} for n in range(150)]
    first = str(_write(tmp_path / "a.jsonl", [*records, flagged, learned, flagged]))
    second = str(_write(tmp_path / "b.jsonl", [_record("a", n) | {"id": "b"} for n in range(60)]))
    sources = [*_source(first), *_source(second, weight=2)]
    train, test, manifest = _prepare(tmp_path / "out", *sources, "--deduplicate")
    assert manifest["counts"]["duplicates"] == 100 + 1 + 50
    firsts = [record for record in [*train, *test] if record.get("id") != "b"]
    assert len(firsts) == 50 + 2 and all(record["num"] == record["id"] for record in firsts if "id" in record)
    assert len({str(record["messages"]) for record in [*train, *test]}) == 60 + 2


def test_a_cap_takes_the_same_ones_and_a_higher_cap_only_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cap is exact, in the proportion of the split, in the source's order, and the same however it is found."""
    source = _numbered(tmp_path / "a.jsonl", "a", 1000)
    whole = [set(_named(records)) for records in _prepare(tmp_path / "all", *_source(source))[:2]]
    before: list[set[tuple[str, int]]] = [set(), set()]
    for most in (50, 100, 400):
        train, test, manifest = _prepare(tmp_path / "out", *_source(source), "--max-examples", str(most))
        assert (len(train), len(test)) == (most * 0.8, most * 0.2)
        assert manifest["counts"]["left_out"] == 1000 - most
        assert _named(train) == sorted(_named(train))
        now = [set(_named(train)), set(_named(test))]
        assert all(old < new <= every for old, new, every in zip(before, now, whole, strict=True))
        before = now
        monkeypatch.setattr(side, "_LEAST_ROWS", 10)  # select while reading, as for a set larger than the disk
        again = _prepare(tmp_path / "again", *_source(source), "--max-examples", str(most))
        assert again[2]["digest"] == manifest["digest"]
        assert again[2]["counts"] == manifest["counts"]
        monkeypatch.undo()


def test_a_cap_is_exact_among_repeats(tmp_path: Path) -> None:
    """Repeats stand at the same place; of those at the cap the first ones stay."""
    source = str(_write(tmp_path / "a.jsonl", [_record("a", n % 50) | {"id": n} for n in range(350)]))
    for most in (20, 23, 31):
        train, test, _ = _prepare(tmp_path / "out", *_source(source), "--max-examples", str(most))
        assert len(train) + len(test) == most
        for records in (train, test):
            counts = Counter(record["num"] for record in records)
            assert sorted(counts.values())[1:] == [7] * (len(counts) - 1)
            kept = {record["id"] for record in records}
            assert all(record["id"] < 50 or record["id"] - 50 in kept for record in records)


def test_a_cap_leaves_little_on_the_disk_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a large source is read, the file holds at most twice the cap, and repeats do not push others out."""
    monkeypatch.setattr(side, "_LEAST_ROWS", 10)
    records = side.Side(tmp_path / "train.jsonl", most=50, deduplicate=True)
    most_rows = 0
    for num in range(3000):
        key = (num % 1000).to_bytes(16, "little")
        records.add(b"%d\n" % num, side.Row(key, 0, (num * 7919) % 1000 << 54, len(b"%d\n" % num), 2, 0, False))
        most_rows = max(most_rows, records.num_rows)
    tally = records.finish()
    kept = [int(line) for line in (tmp_path / "train.jsonl").read_bytes().splitlines()]
    assert sorted((num * 7919) % 1000 for num in kept) == list(range(50))
    assert tally.num_rows == 50 and most_rows <= 101
    assert max(kept) < 1000  # the first of each stayed


def test_a_fixed_test_set_stays_whole_under_a_cap(tmp_path: Path) -> None:
    """The cap is then the training side's alone."""
    source, tests = _numbered(tmp_path / "a.jsonl", "a", 200), _numbered(tmp_path / "t.jsonl", "t", 90)
    train, test, manifest = _prepare(
        tmp_path / "out", *_source(source), "--test-source", tests, "--max-examples", "40", "--deduplicate"
    )
    assert (len(train), len(test)) == (40, 90)
    assert manifest["test_source"]["name"] == tests


def test_names_that_look_like_json_are_names() -> None:
    """A file may be called {chats}.jsonl."""
    assert SourceOptions.parse("{chats}.jsonl").source == "{chats}.jsonl"
    assert SourceOptions.parse('{"source": "x", "weight": 2}') == SourceOptions(source="x", weight=2)
    with pytest.raises(TrainerError, match="is not a name"):
        SourceOptions.parse('{"weight": 2}')
