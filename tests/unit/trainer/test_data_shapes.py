"""Every shape and file format gives the same canonical records."""

from __future__ import annotations

import csv
import json
import os
from pathlib import Path
from typing import Any

import pytest

from trainer.data.__main__ import main
from trainer.data.inspection import inspect_source
from trainer.data.sources import FileSource, choose_shape
from trainer.errors import TrainerError

SHARED = Path(os.environ.get("PHIFLOW_TEST_DATA", Path(__file__).parents[4] / "shared/data"))
MESSAGES = [{"role": "user", "content": "How many?"}, {"role": "assistant", "content": "Two."}]
SYSTEM = {"role": "system", "content": "Count."}
EARLIER = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]

SHAPES: dict[str, tuple[str, dict[str, Any], list[dict[str, str]]]] = {
    "messages": ("messages", {"messages": MESSAGES}, MESSAGES),
    "developer": ("messages", {"messages": [{**SYSTEM, "role": "developer"}, *MESSAGES]}, [SYSTEM, *MESSAGES]),
    "sharegpt": (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Two."}]},
        MESSAGES,
    ),
    "sharegpt with system": (
        "sharegpt",
        {
            "system": "Count.",
            "conversations": [{"from": "user", "value": "How many?"}, {"from": "assistant", "value": "Two."}],
        },
        [SYSTEM, *MESSAGES],
    ),
    "sharegpt cut out of a longer chat": (
        "sharegpt",
        {
            "conversations": [
                {"from": "gpt", "value": "Welcome."},
                {"from": "human", "value": "How many?"},
                {"from": "gpt", "value": "Two."},
                {"from": "human", "value": "Thanks"},
            ]
        },
        MESSAGES,
    ),
    "sharegpt tools": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "How many?"},
                {"from": "function_call", "value": "{}"},
                {"from": "observation", "value": "2"},
                {"from": "gpt", "value": "Two."},
            ]
        },
        [
            MESSAGES[0],
            {"role": "assistant", "content": "{}"},
            {"role": "tool", "content": "2"},
            MESSAGES[1],
        ],
    ),
    "alpaca": ("alpaca", {"instruction": "How many?", "input": "", "output": "Two."}, MESSAGES),
    "alpaca with input": (
        "alpaca",
        {"instruction": "How", "input": "many?", "output": "Two."},
        [{"role": "user", "content": "How\nmany?"}, MESSAGES[1]],
    ),
    "alpaca with history and system": (
        "alpaca",
        {"instruction": "How many?", "output": "Two.", "system": "Count.", "history": [["Hi", "Hello"]]},
        [SYSTEM, *EARLIER, *MESSAGES],
    ),
    "dolly": ("alpaca", {"instruction": "How many?", "context": "", "response": "Two."}, MESSAGES),
    "prompt and completion": ("prompt-completion", {"prompt": "How many?", "completion": "Two."}, MESSAGES),
    "lists of messages": ("prompt-completion", {"prompt": MESSAGES[:1], "completion": MESSAGES[1:]}, MESSAGES),
    "question and answer": ("prompt-completion", {"question": "How many?", "answer": "Two."}, MESSAGES),
    "a prompt that looks like JSON": (
        "prompt-completion",
        {"prompt": '[{"a": 1}]', "completion": "Two."},
        [{"role": "user", "content": '[{"a": 1}]'}, MESSAGES[1]],
    ),
}


def _filler(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Thirty more records of the same shape, so that both sides get some."""
    text = json.dumps(record)
    return (
        [json.loads(text.replace("How", f"How{i}")) for i in range(30)]
        if "How" in text
        else [json.loads(text.replace("Two", f"Two{i}")) for i in range(30)]
    )


def _write(path: Path, records: list[dict[str, Any]]) -> None:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(records, indent=1, ensure_ascii=False), encoding="utf-8")
    elif path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(records[0]))
            writer.writeheader()
            cells = ({k: v if isinstance(v, str) else json.dumps(v) for k, v in record.items()} for record in records)
            writer.writerows(cells)
    else:
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(records), path)


def _read(folder: Path) -> list[dict[str, Any]]:
    names = ("train.jsonl", "test.jsonl")
    return [json.loads(line) for name in names for line in (folder / name).read_bytes().split(b"\n") if line]


@pytest.mark.parametrize("extension", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_in_a_format_becomes_canonical(kind: str, extension: str, tmp_path: Path) -> None:
    """The shape is detected by its columns, and a record reads the same from every format."""
    shape, record, messages = SHAPES[kind]
    source = tmp_path / f"chats.{extension}"
    _write(source, [*_filler(record), record])
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["shape"] == shape
    assert messages in [written["messages"] for written in _read(tmp_path / "out")]


def test_trimmed_conversations_are_counted(tmp_path: Path) -> None:
    """Turns dropped from a ShareGPT conversation are never dropped in silence."""
    _, record, _ = SHAPES["sharegpt cut out of a longer chat"]
    source = tmp_path / "chats.json"
    _write(source, [*_filler(record), *_filler(SHAPES["sharegpt"][1])])
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/manifest.json").read_text())["counts"]["trimmed"] == 30


@pytest.mark.parametrize(("name", "num"), [("sharegpt_vicuna.json", 500), ("alpaca_en.json", 999)])
def test_real_data_is_accepted(name: str, num: int, tmp_path: Path) -> None:
    """Public data sets as their users have them pass without a rejected record."""
    if not (SHARED / name).is_file():
        pytest.skip(f"{SHARED / name} is not here; set PHIFLOW_TEST_DATA to a folder that has it")
    assert main(["--source", str(SHARED / name), "--output-dir", str(tmp_path / "out")]) == 0
    counts = json.loads((tmp_path / "out/manifest.json").read_text())["counts"]
    assert (counts["train"] + counts["test"], counts["rejected"]) == (num, 0)
    assert 0.15 < counts["test"] / num < 0.25


def test_the_shipped_data_is_accepted() -> None:
    """Every shipped question has a short answer, and every answer is asked for in several ways."""
    path = Path(__file__).parents[3] / "deployments/data/phiflow_questions.jsonl"
    summary = inspect_source(path)
    assert (summary.shape, summary.num_rejected, summary.is_estimate) == ("messages", 0, False)
    assert 160 <= summary.num_records <= 200
    answers = [json.loads(line)["messages"][1]["content"] for line in path.read_text().splitlines()]
    assert min(answers.count(answer) for answer in answers) >= 3
    assert max(len(answer.split()) for answer in answers) <= 20


def test_inspection_shows_what_a_file_holds(tmp_path: Path) -> None:
    """The summary has shape, fields, an example and the reasons of what is unusable."""
    source = tmp_path / "chats.csv"
    source.write_text('id,Question,Answer\n1,"How, many?",Two.\n2,,Three.\n', encoding="utf-8")
    summary = inspect_source(source)
    assert (summary.shape, summary.format, summary.num_records) == ("prompt-completion", "csv", 2)
    assert summary.fields == ("id", "question", "answer")
    assert summary.example == [{"role": "user", "content": "How, many?"}, MESSAGES[1]]
    assert summary.rejected_reasons[0][:2] == (str(source), 3)


@pytest.mark.parametrize(
    ("text", "wanted", "said"),
    [
        ('{"mesages": []}', "auto", "Is 'mesages' meant to be 'messages'?"),
        ('{"text": "a", "url": "b"}', "auto", "Columns seen: 'text', 'url'."),
        ('{"prompt": "a", "response": "b"}', "messages", "which needs 'messages'"),
        ('{"instruction": "a"}', "alpaca", "'output' or 'response'"),
    ],
)
def test_unknown_columns_are_named(text: str, wanted: str, said: str, tmp_path: Path) -> None:
    """A file without the columns of its shape is refused with the columns seen and the nearest known."""
    source = tmp_path / "chats.jsonl"
    source.write_text(text + "\n", encoding="utf-8")
    with pytest.raises(TrainerError, match="Columns seen") as caught:
        choose_shape(FileSource(source), wanted)
    assert said in str(caught.value)


CSV_ROWS = {
    "too many fields": ("b,c,d\n", "the row has 3 fields, the header has 2"),
    "an open quote": ('"b,c\n', "not valid CSV"),
    "an empty answer": ("b,\n", "is empty"),
}


@pytest.mark.parametrize("kind", CSV_ROWS)
def test_a_bad_csv_row_is_named_by_its_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A row is named by the line it starts on, also after a cell of several lines."""
    row, reason = CSV_ROWS[kind]
    source = tmp_path / "chats.csv"
    source.write_text(f'\ufeffprompt,completion\n"two\nlines",x\n{row}', encoding="utf-8")
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{source}:4: " in error and reason in error


ARRAYS = {
    "cut off": ('[{"prompt": "a", "completion": "b"}, {"prompt": "c"', 2, "is it cut off?"),
    "a comma too many": ('[{"prompt": "a", "completion": "b"},]', 2, "a comma too many"),
    "text after it": ('[{"prompt": "a", "completion": "b"}] x', 2, "after the end"),
    "a comma missing": ('[{"prompt": "a", "completion": "b"} {"prompt": "c", "completion": "d"}]', 1, "Extra data"),
    "an element that is no object": ('[{"prompt": "a", "completion": "b"}, 7]', 2, "the number 7"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_a_bad_array_element_is_named_by_its_number(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is wrong in a JSON array is named by the record's number."""
    text, number, reason = ARRAYS[kind]
    source = tmp_path / "chats.json"
    source.write_text(text, encoding="utf-8")
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"{source}:{number}: " in error and reason in error


def test_array_elements_survive_any_block_boundary(tmp_path: Path) -> None:
    """Quotes, brackets and escapes in text never end an element, wherever a read ends."""
    content = '\\" [{,}] \\\\ "' + "\\" * 7
    records = [{"prompt": "x" * pad + content, "completion": f"{pad}]"} for pad in range(0, 70_000, 977)]
    source = tmp_path / "chats.json"
    for indent in (None, 1):
        source.write_text(json.dumps(records, indent=indent), encoding="utf-8")
        assert [record for _, record in FileSource(source).records()] == records
