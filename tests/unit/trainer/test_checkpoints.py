"""Which checkpoint a run goes on from, which are kept, and what happens where there is no space for one."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from trainer import checkpoints, disk
from trainer.checkpoints import last_complete_checkpoint, mark_complete, prune, written_files
from trainer.errors import TrainerError


def checkpoint(folder: Path, step: int, finished: bool = True) -> Path:
    """A checkpoint of three files, one of them in a folder of its own."""
    path = folder / f"checkpoint-{step}"
    (path / "optimizer_0").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(os.urandom(3000))
    (path / "optimizer_0" / "__0_0.distcp").write_bytes(os.urandom(2000))
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    if finished:
        mark_complete(path, step, written_files(path, 0))
    return path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("checkpoint-*"))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("model.safetensors", flip, "model.safetensors is not what was written"),
        (
            "optimizer_0/__0_0.distcp",
            lambda path: os.truncate(path, 1999),
            "optimizer_0/__0_0.distcp has 1,999 of 2,000",
        ),
        ("trainer_state.json", Path.unlink, "trainer_state.json is missing"),
        ("complete.json", lambda path: path.write_text('{"step": 4, "fi'), "complete.json is unreadable"),
        ("complete.json", Path.unlink, "it was not finished"),
    ],
)
def test_a_broken_checkpoint_gives_way_to_the_one_before(tmp_path, caplog, name, damage, reason):
    """A flipped byte, a cut file or a missing one is named with the reason, and the run goes on from the one before."""
    checkpoint(tmp_path, 2)
    damage(checkpoint(tmp_path, 4) / name)
    with caplog.at_level(logging.WARNING):
        assert last_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-2", 2)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.startswith(f"Skipped checkpoint=checkpoint-4 reason={reason}")
    assert names(tmp_path) == ["checkpoint-2"]


def test_a_checkpoint_that_cannot_be_read_now_is_kept(tmp_path, monkeypatch, caplog):
    """What a failing disk does not give is passed over, and not deleted."""
    checkpoint(tmp_path, 2)
    checkpoint(tmp_path, 4)
    real = checkpoints.sha256_file

    def failing(path):
        if "checkpoint-4/model" in str(path):
            raise OSError(5, os.strerror(5), str(path))
        return real(path)

    monkeypatch.setattr(checkpoints, "sha256_file", failing)
    assert last_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-2", 2)
    assert "model.safetensors cannot be read: Input/output error" in caplog.text
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-4"]


def test_old_checkpoints_go_and_the_best_stays(tmp_path):
    """The newest ones and the best are kept; what was not finished, or is of an abandoned future, goes."""
    for step in (2, 4, 6, 8, 20):
        checkpoint(tmp_path, step)
    checkpoint(tmp_path, 5, finished=False)
    prune(tmp_path, 8, 2, {"checkpoint-2"})
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-6", "checkpoint-8"]


def test_each_process_answers_for_what_it_wrote(tmp_path):
    """Files that carry a rank are of that process, all others of the first."""
    path = checkpoint(tmp_path, 2, finished=False)
    for name in ("rng_state_1.pth", "progress_1.json", "optimizer_0/__1_0.distcp", "progress_0.json"):
        (path / name).write_text("1")
    assert set(written_files(path, 1)) == {"rng_state_1.pth", "progress_1.json", "optimizer_0/__1_0.distcp"}
    assert {"progress_0.json", "model.safetensors", "optimizer_0/__0_0.distcp"} <= set(written_files(path, 0))


def test_too_little_space_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    """The refusal says what is needed, what is free, where, and how to need less."""
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(200 * 10**9, 0, 80 * 10**9))
    disk.require_space(tmp_path, 45 * 10**9, 1)
    with pytest.raises(TrainerError) as refused:
        disk.require_space(tmp_path, 45 * 10**9, 3)
    message = str(refused.value)
    assert f"need 135.0 GB (3 at a time, 45.0 GB each) in {tmp_path}, where 80.0 GB are free" in message
    assert "lower train.save_total_limit" in message and refused.value.exit_code == 2


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 40 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no test mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_while_a_checkpoint_is_written(tiny_model, corpus, small_disk, monkeypatch, capsys):
    """One line with what is needed and how to lower it, exit code 2, and the checkpoint before is still whole."""
    pytest.importorskip("torch", reason="runs in the training environment")
    from test_train import Job

    from trainer.__main__ import main

    job = Job(small_disk.parent / "job", tiny_model, corpus)
    job.arguments[job.arguments.index("--checkpoint-dir") + 1] = str(small_disk)
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**12, 0, 10**12))
    try:
        assert main(job.arguments) == 2
    finally:
        for number, handler in kept.items():
            signal.signal(number, handler)
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = [text for text in printed.splitlines() if text.startswith("error:")]
    assert "The disk was full while checkpoint-4 was written" in line and "lower train.save_total_limit" in line
    assert names(small_disk) == ["checkpoint-2"] and last_complete_checkpoint(small_disk)
