"""Outputs that are mounted, as a job on Azure finds them: nothing is renamed there, and nothing half-written counts."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from conftest import SETTINGS

from trainer.checkpoints import last_complete_checkpoint
from trainer.errors import TrainerError
from trainer.events import Verdict
from trainer.files import INCOMPLETE, fill_folder, replace_folder

ROOT = Path(__file__).parents[3]
# Ends the run at the first rename or append in a mounted folder, which blob storage may not do.
STRICT = """
    import os, runpy, sys
    mounted = tuple(sys.argv.pop(1).split(":"))
    def watch(event, arguments):
        inside = [a for a in arguments if isinstance(a, str | os.PathLike) and os.fspath(a).startswith(mounted)]
        if inside and (event == "os.rename" or event == "open" and "a" in str(arguments[1])):
            os.write(2, f"refused: {event} {inside}\\n".encode())
            os._exit(99)
    sys.addaudithook(watch)
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


@pytest.fixture
def elsewhere():
    """A folder on another file system than the tests'."""
    if not Path("/dev/shm").is_dir() or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev:
        pytest.skip("/dev/shm is not another file system here")
    folder = Path("/dev/shm") / f"phiflow-test-{os.getpid()}"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


def package(folder: Path, **files: str) -> Path:
    """A folder with an MLmodel and files below it."""
    (folder / "model").mkdir(parents=True)
    (folder / "MLmodel").write_text("flavors: {}\n")
    for name, text in files.items():
        (folder / "model" / name).write_text(text)
    return folder


def listing(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_package_goes_to_another_file_system(tmp_path, elsewhere):
    """A package replaces what a folder on another file system held, completely."""
    target = package(elsewhere / "out", old="1")
    replace_folder(package(tmp_path / "new", weights="2"), target)
    assert listing(target) == ["MLmodel", "model/weights"]
    assert not (tmp_path / "new").exists() and os.listdir(elsewhere) == ["out"]


def test_a_link_stays_a_link(tmp_path, elsewhere):
    """A folder given as a link is filled where it is."""
    (elsewhere / "out").mkdir()
    (tmp_path / "out").symlink_to(elsewhere / "out")
    replace_folder(package(tmp_path / "new", weights="2"), tmp_path / "out")
    assert (tmp_path / "out").is_symlink() and listing(elsewhere / "out") == ["MLmodel", "model/weights"]


def test_filling_that_is_cut_short_leaves_no_model(tmp_path, monkeypatch):
    """While a folder is filled it holds no MLmodel, and what a kill leaves is replaced by the next attempt."""
    source, target = package(tmp_path / "new", weights="2"), package(tmp_path / "out", old="1")
    copy, seen = shutil.copyfile, []

    def killed(origin, place):
        seen.append(place.relative_to(target).as_posix())
        if place.name == "MLmodel":
            raise KeyboardInterrupt
        return copy(origin, place)

    monkeypatch.setattr(shutil, "copyfile", killed)
    with pytest.raises(KeyboardInterrupt):
        fill_folder(source, target)
    assert seen == ["model/weights", "MLmodel"]
    assert listing(target) == [INCOMPLETE, "model/weights"]
    monkeypatch.undo()
    fill_folder(source, target)
    assert listing(target) == ["MLmodel", "model/weights"]


def test_the_first_failure_is_what_is_told(tmp_path, monkeypatch):
    """When one process fails and the others are then stopped, the result says why the first one failed."""
    monkeypatch.setenv("RANK", "1")
    Verdict(tmp_path).fail(TrainerError("Out of memory.", kind="out_of_memory"))
    Verdict(tmp_path).fail(TrainerError("Stopped by SIGTERM.", kind="preempted"))
    assert json.loads((tmp_path / "error.json").read_text())["kind"] == "out_of_memory"
    monkeypatch.setenv("RANK", "0")
    Verdict(tmp_path).fail(TrainerError("Stopped by SIGTERM.", kind="preempted"))
    assert json.loads((tmp_path / "error.json").read_text())["kind"] == "preempted"


@pytest.fixture(scope="module")
def mounted_run(tiny_model, corpus, tmp_path_factory) -> Path:
    """A run whose base model is mounted read-only, and whose outputs are each a mount of their own."""
    folder = tmp_path_factory.mktemp("mounted")
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets no test mount a folder")
    base, outputs = folder / "base", [folder / name for name in ("model", "checkpoints", "result")]
    (folder / "train.json").write_text(json.dumps(SETTINGS))
    (folder / "strict.py").write_text(textwrap.dedent(STRICT))
    script = [f"mount --bind {tiny_model} {base}", f"mount -o remount,bind,ro {base}"]
    for path in [base, *outputs]:
        path.mkdir()
    script += [f"mount -t tmpfs none {path}" for path in outputs]
    strict = f"{sys.executable} {folder / 'strict.py'} {':'.join(map(str, outputs))}"
    arguments = f"--train-file {corpus} --eval-file {corpus} --config {folder / 'train.json'} --base-model {base}"
    arguments += f" --model-output-dir {outputs[0]} --checkpoint-dir {outputs[1]} --result-dir {outputs[2]}"
    script += [
        f"touch {base}/x 2>/dev/null && exit 98",
        f"{strict} trainer {arguments} --log-dir {folder / 'logs'}",
        f"{strict} trainer.evaluate --model-dir {outputs[0]} --eval-file {corpus} --result-dir {outputs[2]}/scores",
        f"cp -r {' '.join(map(str, outputs))} {folder / 'seen'}",
    ]
    (folder / "seen").mkdir()
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = ["unshare", "-rm", "sh", "-ec", "\n".join(script)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "seen"


@pytest.mark.slow
def test_a_run_writes_to_mounts_without_a_rename(mounted_run):
    """Model, checkpoints and result arrive whole in mounted folders, from a base model that is read-only."""
    result = json.loads((mounted_run / "result" / "result.json").read_text())
    assert result["train"]["num_steps"] == 4
    assert {"MLmodel", "model/config.json", "model/model.safetensors"} <= set(listing(mounted_run / "model"))
    assert not (mounted_run / "model" / INCOMPLETE).exists()
    names = {path.name for path in (mounted_run / "checkpoints").glob("checkpoint-*")}
    assert names == {"checkpoint-2", "checkpoint-4"}


@pytest.mark.slow
def test_an_evaluation_leaves_its_result_in_a_mounted_folder(mounted_run):
    """Scoring the packaged model there gives the scores that the run reported."""
    scores = json.loads((mounted_run / "result" / "scores" / "result.json").read_text())
    result = json.loads((mounted_run / "result" / "result.json").read_text())
    assert scores["model_digest"] == result["model_digest"]


@pytest.mark.slow
def test_an_unfinished_checkpoint_is_not_resumed_from(mounted_run, tmp_path):
    """A checkpoint whose last file is missing is passed over, and cleared away before the next is written there."""
    folder = tmp_path / "checkpoints"
    shutil.copytree(mounted_run / "checkpoints", folder)
    assert last_complete_checkpoint(folder) == (folder / "checkpoint-4", 4)
    (folder / "checkpoint-4" / "complete.json").unlink()
    assert last_complete_checkpoint(folder) == (folder / "checkpoint-2", 2)
    assert not (folder / "checkpoint-4").exists() and (folder / "checkpoint-2").exists()
