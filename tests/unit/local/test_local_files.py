"""Files that are whole or absent."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tasks.platforms.errors import ConflictError, PermissionDeniedError, PhiflowError, QuotaError
from tasks.platforms.local import files


def test_a_written_file_has_the_content_and_mode_asked_for(tmp_path: Path) -> None:
    """Missing folders are made, content is replaced, and only the file itself is left."""
    path = tmp_path / "a" / "b.txt"
    files.write_atomic(path, "one")
    files.write_atomic(path, b"two", 0o640)
    assert path.read_text() == "two"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    ("number", "kind"), [(errno.ENOSPC, QuotaError), (errno.EACCES, PermissionDeniedError), (errno.EIO, PhiflowError)]
)
def test_a_failed_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[PhiflowError]
) -> None:
    """When the disk fails at the last moment, the old content stays and no temporary file does."""
    path = tmp_path / "state.json"
    files.write_atomic(path, "old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(kind) as caught:
        files.write_atomic(path, "new")
    assert type(caught.value) is kind
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_a_file_is_said_in_one_line(tmp_path: Path) -> None:
    """A path below a file gives an error that names the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PhiflowError, match=r"file/state\.json.*Not a directory|file/state\.json.*File exists"):
        files.write_atomic(tmp_path / "file" / "state.json", "x")


def test_a_secret_is_at_no_moment_readable_by_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even with an open umask the file is created for its owner alone."""
    seen = []
    widen = os.fchmod

    def record(descriptor: int, mode: int) -> None:
        seen.append(os.fstat(descriptor).st_mode & 0o777)
        widen(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", record)
    before = os.umask(0)
    try:
        files.write_secret(tmp_path / "key", "k")
    finally:
        os.umask(before)
    assert seen == [0o600]
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_json_round_trip_and_default(tmp_path: Path) -> None:
    """What is written is read; a missing file gives the default, and without one an error."""
    path = tmp_path / "a.json"
    assert files.read_json(path, {"none": True}) == {"none": True}
    with pytest.raises(FileNotFoundError):
        files.read_json(path)
    files.write_json(path, {"text": "ü", "n": [1, None]})
    assert files.read_json(path) == {"text": "ü", "n": [1, None]}


def test_broken_json_names_the_file(tmp_path: Path) -> None:
    """A damaged state file is an error for a person, also when a default is given."""
    path = tmp_path / "a.json"
    path.write_text('{"a": ')
    with pytest.raises(PhiflowError, match=r"a\.json' is not valid JSON"):
        files.read_json(path, {})


def test_the_digest_follows_names_and_contents_alone(tmp_path: Path) -> None:
    """Caches, hidden and ignored files and dates don't change it; a byte, a name or a boundary does."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.py").write_text("ab")
    (tmp_path / "sub" / "b.py").write_text("c")
    first = files.digest_files(tmp_path)
    os.utime(tmp_path / "a.py", (1, 1))
    for name in (".hidden", "x.pyc", "__pycache__/y", "sub/.git/z", "notes/n.txt"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("noise")
    assert files.digest_files(tmp_path, ignore=["notes"]) == first
    assert files.digest_files(tmp_path, patterns=["*.py"]) == first
    assert files.digest_files(tmp_path) != first
    (tmp_path / "a.py").write_text("a")
    (tmp_path / "sub" / "b.py").write_text("bc")
    moved = files.digest_files(tmp_path, ignore=["notes"])
    (tmp_path / "sub" / "b.py").rename(tmp_path / "sub" / "c.py")
    assert len({first, moved, files.digest_files(tmp_path, ignore=["notes"])}) == 3


def test_a_held_lock_is_named_and_ends_with_its_holder(tmp_path: Path, root: Path) -> None:
    """A second process gets an error that says what is held; after kill -9 of the holder it gets the lock."""
    lock = tmp_path / "lock"
    script = (
        "import sys, time; from pathlib import Path; from tasks.platforms.local.files import file_lock\n"
        "with file_lock(Path(sys.argv[1]), 5, 'x'): print('held', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(lock)], stdout=subprocess.PIPE, text=True, cwd=root
    ) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        with pytest.raises(ConflictError, match="the port book"), files.file_lock(lock, 0.1, "the port book"):
            pytest.fail("two processes held one lock")
        holder.send_signal(signal.SIGKILL)
    with files.file_lock(lock, 5, "the port book"):
        pass
