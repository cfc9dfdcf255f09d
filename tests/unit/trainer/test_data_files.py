"""Files and disks: what is wrong with a whole file is one line, and the output is whole or absent."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from trainer.data.__main__ import main

ROOT = Path(__file__).parents[3]
NOBODY = 65534


def _chat(text: str, num: int) -> str:
    messages = [{"role": "user", "content": f"Question {num}?"}, {"role": "assistant", "content": text}]
    return json.dumps({"messages": messages}) + "\n"


def _write_chats(path: Path, num: int, text: str = "Fine.") -> Path:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(_chat(text, index) for index in range(num))
    return path


@pytest.fixture
def shared_tmp() -> Iterator[Path]:
    """A folder that other users can enter, unlike tmp_path."""
    folder = Path(tempfile.mkdtemp(prefix="phiflow-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _make_folder(path: Path) -> None:
    path.mkdir()
    (path / "inside.txt").write_text("{}\n")


# kind -> (file name, its bytes or how to make it, what the error says)
BAD_FILES = {
    "missing": ("chats.jsonl", None, "does not exist"),
    "a folder": ("chats", _make_folder, "is a folder without data files"),
    "a pipe": ("chats.jsonl", os.mkfifo, "not a regular file"),
    "empty": ("chats.jsonl", b"", "is empty"),
    "only blank lines": ("chats.jsonl", b"\n \n", "holds no records"),
    "an empty array": ("chats.json", b"[]\n", "holds no records"),
    "only a header": ("chats.csv", b"prompt,completion\n", "holds no records"),
    "gzip": ("chats.jsonl.gz", b"\x1f\x8b\x08\x00", "is packed (gzip)"),
    "a spreadsheet": ("chats.xlsx", b"PK\x03\x04", "is packed (zip)"),
    "UTF-16": ("chats.csv", "prompt,completion\na,b\n".encode("utf-16"), "UTF-16"),
    "prose": ("chats.txt", b"Once upon a time\n", "of no known type"),
    "not Parquet": ("chats.parquet", b"prompt,completion\n", "not a Parquet file"),
    "half a Parquet file": ("chats.parquet", b"PAR1" + b"\0" * 100, "cannot be read"),
    "not JSON": ("chats.json", b"prompt,completion\n", "is not JSON"),
    "one JSON object": ("chats.json", b'{\n "data": []\n}\n', "one JSON object over several lines"),
    "a column twice": ("chats.csv", b"prompt,Prompt,completion\na,b,c\n", "'prompt' twice"),
    "a header of other bytes": ("chats.csv", b"prompt,\xff\na,b\n", "header cannot be read"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_file_that_cannot_be_used_is_one_line(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit code 2, one line that names the file and what is wrong, and no output folder."""
    name, content, said = BAD_FILES[kind]
    if kind == "half a Parquet file":
        pytest.importorskip("pyarrow")
    source = tmp_path / name
    if callable(content):
        content(source)
    elif content is not None:
        source.write_bytes(content)
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert said in error and len(error.strip().splitlines()) == 1
    if kind != "a column twice" and kind != "a header of other bytes":
        assert str(source) in error
    assert not (tmp_path / "out").exists()


def test_a_misspelt_file_is_given_its_nearest_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The error for a missing file names the file that was probably meant."""
    _write_chats(tmp_path / "my_chats.jsonl", 3)
    assert main(["--source", str(tmp_path / "my_chat.jsonl"), "--output-dir", str(tmp_path / "out")]) == 2
    assert f"Did you mean {tmp_path / 'my_chats.jsonl'}?" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["chats.data", "chats", "chats.ndjson", "chats.txt"])
def test_the_format_is_found_by_content(name: str, tmp_path: Path) -> None:
    """A file of another extension is read by what is in it."""
    source = _write_chats(tmp_path / name, 30)
    assert main(["--source", str(source), "--output-dir", str(tmp_path / "out")]) == 0
    rows = [f'"q, {num}",a\n' for num in range(30)]
    source.with_suffix(".dat").write_text("prompt,completion\n" + "".join(rows), encoding="utf-8")
    assert main(["--source", str(source.with_suffix(".dat")), "--output-dir", str(tmp_path / "csv")]) == 0


ARGUMENTS = {
    "unknown shape": (["--shape", "mesages"], "Did you mean 'messages'?"),
    "share over 1": (["--test-share", "20"], "test_share is 20"),
    "negative share": (["--test-share", "-0.2"], "test_share is -0.2"),
    "share is nan": (["--test-share", "nan"], "test_share is nan"),
    "share is text": (["--test-share", "many"], "--test-share: invalid float value: 'many'"),
    "rejected share": (["--max-rejected-share", "1.5"], "max_rejected_share is 1.5"),
    "negative length": (["--max-length", "-1"], "max_length is -1"),
    "a split of a file": (["--split", "train[:1%]"], "is for hub datasets"),
    "unknown option": (["--sauce", "x"], "unrecognized arguments: --sauce x"),
    "no such tokenizer": (["--tokenizer", "./nowhere"], "tokenizer ./nowhere could not be loaded"),
}


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_a_wrong_argument_is_one_line(kind: str, tmp_path: Path) -> None:
    """A wrong value is named with what is right, exit code 2, and nothing is written."""
    if kind == "no such tokenizer":
        pytest.importorskip("transformers")
    extra, said = ARGUMENTS[kind]
    source = _write_chats(tmp_path / "chats.jsonl", 30)
    command = [sys.executable, "-m", "trainer.data", "--source", str(source), "--output-dir", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *extra], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def _python_for(user: int) -> str:
    candidates = [sys.executable, shutil.which("python3", path=os.defpath) or sys.executable]
    for python in candidates:
        check = [python, "-c", "import sys; sys.exit(sys.version_info < (3, 11))"]
        try:
            if subprocess.run(check, user=user, cwd="/", capture_output=True).returncode == 0:
                return python
        except OSError:
            continue
    pytest.skip(f"no Python 3.11 that user {user} may run")


def test_a_file_the_user_may_not_read_is_one_line(shared_tmp: Path) -> None:
    """An unreadable file is named as such for an unprivileged user."""
    source = _write_chats(shared_tmp / "chats.jsonl", 30)
    source.chmod(0o000)
    shutil.copytree(ROOT / "trainer", shared_tmp / "trainer", ignore=shutil.ignore_patterns("__pycache__"))
    user = NOBODY if os.geteuid() == 0 else os.geteuid()
    command = [_python_for(user), "-m", "trainer.data", "--source", str(source), "--output-dir", "/tmp/never"]
    environment = {"PYTHONPATH": str(shared_tmp), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, user=user, cwd="/", env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr == f"The data source {source} may not be read by this user. Give yourself the right to.\n"


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """When the disk fills up the error says so, and the old output is as it was."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("mounting a small disk needs root")
    try:
        small = _write_chats(tmp_path / "small.jsonl", 30)
        assert main(["--source", str(small), "--output-dir", str(disk / "out")]) == 0
        before = (disk / "out/manifest.json").read_bytes()
        large = _write_chats(tmp_path / "large.jsonl", 300, "x" * 1000)
        assert main(["--source", str(large), "--output-dir", str(disk / "out")]) == 2
        assert "No space left on device" in capsys.readouterr().err
        assert (disk / "out/manifest.json").read_bytes() == before
        assert [path.name for path in disk.iterdir()] == ["out"]
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_quota_leaves_nothing_behind(tmp_path: Path) -> None:
    """A limit on file sizes is reported like a full disk."""
    source = _write_chats(tmp_path / "large.jsonl", 300, "x" * 1000)
    command = [sys.executable, "-m", "trainer.data", "--source", str(source), "--output-dir", str(tmp_path / "out")]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert "File too large" in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["large.jsonl"]


def test_a_stopped_preparation_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGTERM in the middle ends it with one line and without a half-written folder."""
    source = _write_chats(tmp_path / "large.jsonl", 200_000)
    command = [sys.executable, "-m", "trainer.data", "--source", str(source), "--output-dir", str(tmp_path / "out")]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.005)
        process.terminate()
        _, error = process.communicate(timeout=30)
    assert process.returncode == 130
    assert error == b"Interrupted; nothing was written.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["large.jsonl"]


def test_an_earlier_output_is_replaced_and_a_strangers_folder_is_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only a folder that a preparation made may be overwritten."""
    source = _write_chats(tmp_path / "chats.jsonl", 30)
    arguments = ["--source", str(source), "--output-dir", str(tmp_path / "out")]
    assert (main(arguments), main(arguments)) == (0, 0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["chats.jsonl", "out"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home/thesis.txt").write_text("years of work")
    capsys.readouterr()
    assert main([*arguments[:-1], str(tmp_path / "home")]) == 2
    assert "holds other files" in capsys.readouterr().err
    assert (tmp_path / "home/thesis.txt").read_text() == "years of work"


def test_token_statistics_count_what_the_model_sees(tmp_path: Path) -> None:
    """With a tokenizer the manifest has exact lengths of the rendered chat, and the share that is cut."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    template = "{% for m in messages %}{% generation %} {{ m.role }} {{ m.content }} {% endgeneration %}{% endfor %}"
    (tmp_path / "model/tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    source = tmp_path / "chats.jsonl"
    source.write_text("".join(_chat("a " * (90 if num % 10 == 0 else 6), num) for num in range(50)))
    arguments = ["--source", str(source), "--output-dir", str(tmp_path / "out")]
    assert main([*arguments, "--tokenizer", str(tmp_path / "model"), "--max-length", "20"]) == 0
    tokens = json.loads((tmp_path / "out/manifest.json").read_text())["tokens"]
    short, long = 1 + 2 + 1 + 6, 1 + 2 + 1 + 90
    assert (tokens["p50"], tokens["p95"], tokens["max"]) == (short, long, long)
    assert (tokens["total"], tokens["truncated_share"]) == (45 * short + 5 * long, 0.1)


def test_a_template_that_refuses_tools_does_not_stop_the_preparation(tmp_path: Path) -> None:
    """Training extends such a template; the counts take calls, results and definitions as JSON."""
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<unk>": 0}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    (tmp_path / "model").mkdir()
    tokenizer.save(str(tmp_path / "model/tokenizer.json"))
    refusal = "{% if m.role == 'tool' %}{{ raise_exception('no') }}{% endif %}"
    template = "{% for m in messages %}" + refusal + "{{ m.content }}{% endfor %}"
    (tmp_path / "model/chat_template.jinja").write_text(template)
    call = {"name": "now", "arguments": {"zone": "Oslo"}}
    lines = [
        json.dumps(
            {
                "messages": [
                    {"role": "user", "content": f"{num}?"},
                    {"role": "assistant", "tool_calls": [call]},
                    {"role": "tool", "content": "noon"},
                    {"role": "assistant", "content": "It is noon."},
                ],
                "tools": [{"name": "now", "description": "one two three"}],
            }
        )
        for num in range(20)
    ]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    arguments = ["--source", str(tmp_path / "chats.jsonl"), "--output-dir", str(tmp_path / "out")]
    assert main([*arguments, "--tokenizer", str(tmp_path / "model")]) == 0
    assert 20 < json.loads((tmp_path / "out/manifest.json").read_text())["tokens"]["p50"] < 40


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
@pytest.mark.parametrize("extension", ["jsonl", "json", "csv", "parquet"])
def test_memory_does_not_grow_with_the_file(extension: str, tmp_path: Path) -> None:
    """Preparing 100 MB needs no more memory than preparing 5 MB, but for some megabytes."""
    more = ["--deduplicate", "--max-examples", "5000"] if extension == "json" else []
    peaks = [_peak_mib(_make_large(tmp_path / f"{mib}.{extension}", mib), tmp_path / "out", more) for mib in (5, 100)]
    # Arrow holds some pages of every column of a row group.
    assert peaks[1] < peaks[0] + (40 if extension == "parquet" else 15), peaks


def _make_large(path: Path, mib: int) -> Path:
    num = mib * 512
    text = "word " * 400
    if path.suffix == ".parquet":
        _write_parquet(path, [{"prompt": f"Question {index}?", "completion": text} for index in range(512)], mib)
        return path
    with path.open("w", encoding="utf-8") as file:
        if path.suffix == ".csv":
            file.write("prompt,completion\n")
            file.writelines(f"Question {index}?,{text}\n" for index in range(num))
        elif path.suffix == ".json":
            file.writelines(f"{'[' if index == 0 else ','}{_chat(text, index)}" for index in range(num))
            file.write("]")
        else:
            file.writelines(_chat(text, index) for index in range(num))
    return path


def _write_parquet(path: Path, rows: list[dict[str, str]], times: int) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pyarrow.Table.from_pylist(rows)
    with parquet.ParquetWriter(path, table.schema, compression="none", use_dictionary=False) as writer:
        writer.write_table(pyarrow.concat_tables([table] * times), row_group_size=20_000)


def _peak_mib(source: Path, out: Path, more: list[str]) -> float:
    # VmHWM begins anew with the program; ru_maxrss would include the memory of the test process it was forked from.
    program = (
        "import sys; from trainer.data.__main__ import main; code = main();"
        "print(next(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM'))); sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "--source", str(source), "--output-dir", str(out), *more]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=300)
    return int(done.stdout.split()[-1]) / 1024
