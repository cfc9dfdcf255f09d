"""Text is data: whatever the script, it comes out of every format byte for byte as it went in."""

from __future__ import annotations

import csv
import json
import unicodedata
from pathlib import Path

import pytest

from trainer.data.__main__ import main

# ruff: noqa: RUF001 (the letters of other scripts are meant)
TEXTS = {
    "Chinese": "请用三句话介绍杭州。“西湖”——𠮷野家，㐂！",
    "composed and not": "é e\u0301 \ufb01 \u212b " + unicodedata.normalize("NFD", "Ấ한글"),
    "joined emoji": "👩\u200d🔬👨\u200d👩\u200d👧\u200d👦🏳\ufe0f\u200d🌈👍🏽🇪🇺",
    "right to left": "\u202bمرحبا، عالم!\u202c \u05e9\u05c1\u05b8\u05dc\u05d5\u05b9\u05dd \u200f\u061c",
    "spaces": "a\u00a0b\u2003c\u3000d\u200be\ufeff f\u2009g",
    "line ends": "one\r\ntwo\rthree\nfour\u2028five\u2029six\x85seven\x0beight\x0cnine",
    "astral": "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 \U0010ffff \ue000 \ufffd \ufdd0",
    "escapes": 'C:\\new\\table "quoted" \\u00e9 \\n <|end|> {{x}} \t\x1b[0m\x7f',
    "combining alone": "\u0301\u0483 क्षि ก็ ཨོཾ",
}
FORMATS = ("jsonl", "escaped.jsonl", "json", "csv", "parquet")


def _write(path: Path, rows: list[dict[str, str]]) -> None:
    if path.suffix == ".parquet":
        pyarrow = pytest.importorskip("pyarrow")
        pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(rows), path)
    elif path.suffix == ".csv":
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")
    else:
        is_escaped = path.name.startswith("chats.escaped")
        lines = [json.dumps(row, ensure_ascii=is_escaped) + "\n" for row in rows]
        path.write_text("".join(lines), encoding="utf-8", newline="")


@pytest.mark.parametrize("form", FORMATS)
def test_text_is_untouched(form: str, tmp_path: Path) -> None:
    """Nothing is normalised, trimmed, escaped that need not be, or cut at what other programs take for a line's end."""
    source, out = tmp_path / f"chats.{form}", tmp_path / "out"
    rows = [{"prompt": f" {text} {n} ", "completion": text, "note": text} for n in range(12) for text in TEXTS.values()]
    _write(source, rows)
    assert main(["--source", str(source), "--output-dir", str(out)]) == 0
    written = b"".join((out / name).read_bytes() for name in ("train.jsonl", "test.jsonl"))
    records = [json.loads(line) for line in written.split(b"\n")[:-1]]
    read = [(*(message["content"] for message in record["messages"]), record["note"]) for record in records]
    assert sorted(read) == sorted((row["prompt"], row["completion"], row["note"]) for row in rows)
    for name in TEXTS.keys() - {"line ends", "escapes"}:
        assert written.count(TEXTS[name].encode("utf-8")) == 3 * 12, name


def test_the_same_text_has_one_side_in_every_format(tmp_path: Path) -> None:
    """Train and test files are the same bytes, whatever the format of the source."""
    rows = [{"prompt": f"{text} {n}", "completion": text} for n in range(12) for text in TEXTS.values()]
    digests = set()
    for form in FORMATS:
        _write(tmp_path / f"chats.{form}", rows)
        assert main(["--source", str(tmp_path / f"chats.{form}"), "--output-dir", str(tmp_path / "out")]) == 0
        digests.add(json.loads((tmp_path / "out/manifest.json").read_text(encoding="utf-8"))["digest"])
    assert len(digests) == 1
