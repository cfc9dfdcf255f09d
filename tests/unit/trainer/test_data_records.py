"""What becomes of single records: every bad kind is named by line and reason, every good one is kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.data.__main__ import main

QUESTION = {"role": "user", "content": "What is it?"}
ANSWER = {"role": "assistant", "content": "It is a test."}
SYSTEM = {"role": "system", "content": "Be brief."}
TOOL = {"role": "tool", "content": "42"}


def _good(num: int) -> list[bytes]:
    return [_line([{"role": "user", "content": f"Question {i}?"}, ANSWER]) for i in range(num)]


def _line(messages: object, **columns: object) -> bytes:
    return json.dumps({"messages": messages, **columns}, ensure_ascii=False).encode() + b"\n"


def _with(message: object) -> bytes:
    return _line([QUESTION, message])


def _call(name: str, arguments: object, **more: object) -> dict[str, object]:
    return {**more, "type": "function", "function": {"name": name, "arguments": arguments}}


BAD_LINES = {
    "malformed": (b'{"messages": [\n', "not valid JSON"),
    "not an object": (b"[1, 2]\n", "a list, not an object"),
    "a bare number": (b"7\n", "the number 7"),
    "no messages": (b'{"massages": []}\n', "has no 'messages'"),
    "messages is text": (b'{"messages": "hello"}\n', "not a list"),
    "empty messages": (_line([]), "is empty"),
    "a message is text": (_line([QUESTION, "hello"]), "message 2 is the text 'hello'"),
    "no role": (_line([{"content": "x"}, ANSWER]), "message 1 has no role"),
    "no content": (_with({"role": "assistant"}), "message 2 has no content"),
    "unknown role": (_with({"role": "asistant", "content": "x"}), "did you mean 'assistant'"),
    "role is a number": (_with({"role": 3, "content": "x"}), "the number 3"),
    "only a system message": (_line([SYSTEM]), "only a system message"),
    "no assistant": (_line([SYSTEM, QUESTION]), "no assistant message"),
    "two users": (_line([QUESTION, QUESTION, ANSWER]), "message 2 has the role 'user'"),
    "assistant first": (_line([ANSWER, QUESTION, ANSWER]), "message 1 has the role 'assistant'"),
    "system in the middle": (_line([QUESTION, ANSWER, SYSTEM, QUESTION, ANSWER]), "message 3 has the role 'system'"),
    "tool after user": (_line([QUESTION, TOOL, ANSWER]), "message 2 has the role 'tool'"),
    "ends with user": (_line([QUESTION, ANSWER, QUESTION]), "the last message has the role 'user'"),
    "empty content": (_with({"role": "assistant", "content": " \n"}), "message 2 (assistant) is empty"),
    "null content": (_with({"role": "assistant", "content": None}), "is null, not text"),
    "a number for text": (_with({"role": "assistant", "content": 42}), "the number 42"),
    "true for text": (_with({"role": "assistant", "content": True}), "is true, not text"),
    "an object for text": (_with({"role": "assistant", "content": {"text": "x"}}), "an object"),
    "an image part": (
        _with({"role": "assistant", "content": [{"type": "image_url", "image_url": {}}]}),
        "'image_url'; only text",
    ),
    "a number in a part": (_with({"role": "assistant", "content": [{"type": "text", "text": 1}]}), "the number 1"),
    "NUL": (_with({"role": "assistant", "content": "a\0b"}), "NUL"),
    "invalid UTF-8": (b'{"messages": "\xff"}\n', "not valid UTF-8: byte 0xff at position 15"),
    "half a surrogate pair": (_good(1)[0].replace(b"It is", b"\\ud83d It is"), "surrogate"),
    "half a pair in a column": (_line([QUESTION, ANSWER])[:-2] + b', "id": "\\udc00"}\n', "surrogate"),
    "duplicate keys": (b'{"messages": [], "messages": []}\n', "'messages' appears twice"),
    "duplicate inner keys": (b'{"messages": [{"role": "user", "role": "user"}]}\n', "'role' appears twice"),
    "NaN": (_line([QUESTION, ANSWER])[:-2] + b', "score": NaN}\n', "NaN is not a JSON number"),
    "nested too deeply": (b"[" * 100_000 + b"\n", "nested too deeply"),
    "a number too long": (b'{"messages": ' + b"9" * 5000 + b"}\n", "not usable JSON"),
    "9 MiB": (_with({"role": "assistant", "content": "x" * (9 << 20)}), "longer than 8 MiB"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named_and_stops_the_preparation(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One bad line: exit code 2, its file, line and reason, and no output folder."""
    line, reason = BAD_LINES[kind]
    source, good = tmp_path / "chats.jsonl", _good(40)
    source.write_bytes(b"".join([*good[:7], line, *good[7:]]))
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 2
    summary, named = capsys.readouterr().err.strip().splitlines()
    assert "1 of 41 records" in summary
    assert named.startswith(f"{source}:8: ") and reason in named
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl"]


@pytest.mark.parametrize("kind", ["malformed", "invalid UTF-8", "9 MiB"])
def test_an_allowed_bad_line_is_reported_and_the_others_are_kept(kind: str, tmp_path: Path) -> None:
    """Within max_rejected_share the good records are written and the bad one is listed in both reports."""
    source, good = tmp_path / "chats.jsonl", _good(40)
    source.write_bytes(b"".join([*good[:7], BAD_LINES[kind][0], *good[7:]]))
    out = tmp_path / "out"
    assert main(["--source", str(source), "--output-dir", str(out), "--max-rejected-share", "0.05"]) == 0
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["counts"]["train"] + manifest["counts"]["test"] == 40
    (rejected,) = [json.loads(line) for line in (out / "rejected.jsonl").read_text().splitlines()]
    assert manifest["rejected"] == [rejected]
    assert (rejected["file"], rejected["line"]) == (str(source), 8)


GOOD_LINES = {
    "system": (_line([SYSTEM, QUESTION, ANSWER]), [SYSTEM, QUESTION, ANSWER]),
    "an empty system message is none": (
        _line([{"role": "system", "content": ""}, QUESTION, ANSWER]),
        [QUESTION, ANSWER],
    ),
    "tool": (_line([QUESTION, ANSWER, TOOL, TOOL, ANSWER]), [QUESTION, ANSWER, TOOL, TOOL, ANSWER]),
    "CRLF and blank lines": (b"\r\n \r\n" + _line([QUESTION, ANSWER])[:-1] + b"\r\n", [QUESTION, ANSWER]),
    "no line end": (_line([QUESTION, ANSWER])[:-1], [QUESTION, ANSWER]),
    "text parts": (
        _with({"role": "assistant", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}),
        [QUESTION, {"role": "assistant", "content": "a\nb"}],
    ),
    "other scripts": (
        _with({"role": "assistant", "content": "日本語\u2028 عربى 👩\u200d🔬 \u0301 ﬁ"}),
        [QUESTION, {"role": "assistant", "content": "日本語\u2028 عربى 👩\u200d🔬 \u0301 ﬁ"}],
    ),
    "escaped": (
        _with({"role": "assistant", "content": "?"}).replace(b'"?"', rb'"\ud83d\ude00 \"\\\n"'),
        [QUESTION, {"role": "assistant", "content": '😀 "\\\n'}],
    ),
    "tool calls": (
        _line(
            [
                QUESTION,
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}],
                },
                TOOL,
                ANSWER,
            ]
        ),
        [
            QUESTION,
            {"role": "assistant", "content": "", "tool_calls": [_call("add", {"a": 1})]},
            TOOL,
            ANSWER,
        ],
    ),
    "null tool calls": (_with({**ANSWER, "tool_calls": None}), [QUESTION, ANSWER]),
}


@pytest.mark.parametrize("kind", GOOD_LINES)
def test_a_good_line_is_kept(kind: str, tmp_path: Path) -> None:
    """A usable record comes out as canonical messages, its text unchanged."""
    line, messages = GOOD_LINES[kind]
    source = tmp_path / "chats.jsonl"
    source.write_bytes(b"\xef\xbb\xbf" + b"".join(_good(40)) + line)
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 0
    written = b"".join((tmp_path / "out" / name).read_bytes() for name in ("train.jsonl", "test.jsonl"))
    records = [json.loads(line) for line in written.split(b"\n") if line]
    assert len(records) == 41
    assert messages in [record["messages"] for record in records]


def test_other_columns_are_carried(tmp_path: Path) -> None:
    """What a record says beside its messages stays with it."""
    source = tmp_path / "chats.jsonl"
    source.write_bytes(b"".join(_good(40)) + _line([QUESTION, ANSWER], id="é7", score=0.5, tags=["a"]))
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 0
    lines = [line for name in ("train", "test") for line in (tmp_path / f"out/{name}.jsonl").open(encoding="utf-8")]
    (record,) = [json.loads(line) for line in lines if "score" in line]
    assert record == {"messages": [QUESTION, ANSWER], "id": "é7", "score": 0.5, "tags": ["a"]}


def test_only_twenty_rejected_lines_are_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A wholly wrong file does not flood the terminal; the summary has the number."""
    source = tmp_path / "chats.jsonl"
    source.write_bytes(b"oops\n" * 500 + b"".join(_good(10)))
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert "500 of 510 records" in lines[0]
    assert len(lines) == 21
