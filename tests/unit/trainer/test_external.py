"""`train.command`: another program with this trainer's command line, its model scored and packaged as one of ours."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import FACTS, chat, write_chats

from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.events import EventLog
from trainer.external import Trained, trained_by_command
from trainer.interruption import Interruption
from trainer.job import Reporting, TrainJob
from trainer.tracking import Tracker

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "tests" / "examples" / "own_trainer"
PREAMBLE = """
import os, pathlib, sys
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out, log = pathlib.Path(given['--model-output-dir']), pathlib.Path(given['--log-dir'])
out.mkdir()
"""
MODEL = """
(out / 'config.json').write_text('{"model_type": "phi3"}')
(out / 'model.safetensors').write_text('')
(out / 'tokenizer.json').write_text('{}')
"""
SETTINGS = {"num_train_epochs": 2, "learning_rate": 3e-3, "num_eval_generations": 2, "max_new_tokens_eval": 8}


def arguments(folder: Path, base_model: Path, **settings: object) -> list[str]:
    """The command line of a run whose files are all in a folder."""
    chats = write_chats(folder / "chats.jsonl", [chat(question, answer) for question, answer in FACTS.items()])
    config = folder / "train.json"
    config.write_text(json.dumps(SETTINGS | settings), encoding="utf-8")
    return [
        *("--base-model", str(base_model), "--train-file", str(chats), "--eval-file", str(chats)),
        *("--model-output-dir", str(folder / "model"), "--log-dir", str(folder / "logs"), "--config", str(config)),
    ]


def trainer(folder: Path, base_model: Path, **settings: object) -> subprocess.CompletedProcess[str]:
    """Run `python -m trainer` to its end."""
    command = [sys.executable, "-m", "trainer", *arguments(folder, base_model, **settings)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment(), timeout=300)


def environment() -> dict[str, str]:
    """The project on the path; one thread, for so small a model."""
    return {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def script(folder: Path, text: str) -> str:
    """A program as a command line."""
    (folder / "program.py").write_text(text, encoding="utf-8")
    return f"python {folder / 'program.py'}"


def events(folder: Path, kind: str) -> list[dict]:
    """The events of one kind."""
    lines = (folder / "logs" / "events.jsonl").read_text(encoding="utf-8").splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


@pytest.mark.slow
def test_own_trainer_is_scored_and_packaged_as_ours(tiny_model: Path, tmp_path: Path) -> None:
    """The example learns, its progress is shown, and it leaves the result and the MLflow model of any other run."""
    (tmp_path / "mine").symlink_to(EXAMPLE)
    ended = trainer(tmp_path, tiny_model, command="python fine_tune.py", command_dir="mine")
    assert ended.returncode == 0, ended.stderr
    result = json.loads((tmp_path / "logs" / "result.json").read_text(encoding="utf-8"))
    assert result["metrics"]["candidate"]["loss"] < result["metrics"]["base"]["loss"] - 1
    assert result["base_model"] == str(tiny_model)
    assert result["model_dir"] == str(tmp_path / "model")
    assert result["train"]["command"] == "python fine_tune.py"
    assert (tmp_path / "model" / "MLmodel").is_file()
    assert (tmp_path / "model" / "model" / "tokenizer.json").is_file()
    assert [event["step"] for event in events(tmp_path, "progress")] == list(range(1, 17))
    assert [step for step, _ in result["loss_curve"]] == list(range(1, 17))
    assert not list(tmp_path.glob(".*command"))


def leave(folder: Path, command: str, **settings: object) -> Trained:
    """Run a command alone, without the scoring after it."""
    job = TrainJob(
        base_model="a/model",
        revision=None,
        train_file=write_chats(folder / "chats.jsonl", [chat("Why?", "So.")]),
        eval_file=folder / "chats.jsonl",
        model_output_dir=folder / "model",
        checkpoint_dir=folder / "checkpoints",
        config=TrainConfig(command=command, **settings),
    )
    reporting = Reporting(EventLog(folder / "logs"), Tracker(), Interruption())
    with trained_by_command(job, reporting) as left:
        return left


@pytest.mark.parametrize(
    ("program", "said"),
    [
        ("", "wrote no model"),
        ("(out / 'weights.bin').write_text('x')", "without config.json and weights beside it, but weights.bin"),
        ("(out / 'adapter_config.json').write_text('{}')", "adapter without its model"),
        ("sys.exit('no such optimizer: adamm')", "exit code 1: no such optimizer: adamm"),
        ("os.kill(os.getpid(), 9)", "was ended by SIGKILL"),
        ("(log / 'error.json').write_text('{\"message\": \"Row 3 is empty.\"}'); sys.exit(3)", "Row 3 is empty."),
        (MODEL + "(log / 'result.json').write_text('[]')", "a result.json that is no JSON object"),
    ],
)
def test_broken_contract_is_one_line(tmp_path: Path, program: str, said: str) -> None:
    """A program that fails or leaves no model ends the run with one line that names what is missing."""
    with pytest.raises(TrainerError) as caught:
        leave(tmp_path, script(tmp_path, PREAMBLE + program))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.exit_code, (tmp_path / "model").exists()) == (2, False)


@pytest.mark.parametrize(
    ("command", "command_dir", "said"),
    [
        ("no-such-program --fast", "", "cannot be started: no-such-program: No such file"),
        ("python 'x", "", "is not a command line: No closing quotation"),
        ("python x", "/no/such/folder", "command_dir /no/such/folder is not a folder"),
    ],
)
def test_command_that_cannot_start(tmp_path: Path, command: str, command_dir: str, said: str) -> None:
    """A command that does not exist or does not parse, or a folder that is not there, is said in one line."""
    with pytest.raises(TrainerError, match=said):
        leave(tmp_path, command, command_dir=command_dir)


def test_both_layouts_and_own_numbers(tmp_path: Path) -> None:
    """A model in MLflow's layout is found; of result.json the training's numbers are kept, its scores are not."""
    told = {
        "metrics": {"candidate": {"loss": 0}},
        "train": {"num_steps": 7, "note": "x"},
        "loss_curve": [[1, 2.5], "x"],
    }
    program = MODEL.replace("out /", "out / 'model' /").replace("(out /", "(out / 'model').mkdir(); (out /", 1)
    program += f"(log / 'result.json').write_text({json.dumps(json.dumps(told))})"
    left = leave(tmp_path, script(tmp_path, PREAMBLE + program))
    summary = left.summary
    assert left.model.parts[-2:] == ("model", "model")
    assert (summary["num_steps"], summary["curves"].loss) == (7, [[1, 2.5]])
    assert not {"note", "metrics"} & set(summary)


def test_checkpoints_are_of_the_same_folder_content(tmp_path: Path) -> None:
    """Checkpoints belong to what the command's folder holds, not to where it lies."""
    keys = []
    for name, text in (("one", "1"), ("two", "1"), ("three", "2")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "program.py").write_text(text, encoding="utf-8")
        file = write_chats(tmp_path / "chats.jsonl", [chat("Why?", "So.")])
        job = TrainJob(
            base_model="a/model",
            revision=None,
            train_file=file,
            eval_file=file,
            model_output_dir=tmp_path / "model",
            checkpoint_dir=tmp_path / "checkpoints",
            config=TrainConfig(command="python program.py", command_dir=str(tmp_path / name)),
        )
        keys.append(job.fingerprint())
    assert keys[0] == keys[1] != keys[2]


def test_events_that_are_none_are_left_out(tmp_path: Path) -> None:
    """What the program writes as events reaches a watcher only as numbers it can show."""
    lines = 'no json\\n[1]\\n{"event": "progress", "step": 3, "loss": "low", "seconds_left": NaN}\\n'
    program = f"(log / 'events.jsonl').write_text('{lines}')"
    with pytest.raises(TrainerError):
        leave(tmp_path, script(tmp_path, PREAMBLE + program))
    (event,) = events(tmp_path, "progress")
    assert {key: value for key, value in event.items() if key != "time"} == {"event": "progress", "step": 3}


def test_signal_reaches_the_program(tiny_model: Path, tmp_path: Path) -> None:
    """SIGTERM goes on to the program and its whole group, which may save before the run ends as interrupted."""
    program = (
        "import pathlib, signal, subprocess, sys, time\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "kept = pathlib.Path(given['--checkpoint-dir'])\n"
        "worker = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        "signal.signal(signal.SIGTERM, lambda *_: ((kept / 'saved').write_text(str(worker.pid)), sys.exit(0)))\n"
        "print('begun', flush=True)\n"
        "time.sleep(300)\n"
    )
    given = arguments(tmp_path, tiny_model, command=script(tmp_path, program))
    process = subprocess.Popen(
        [sys.executable, "-m", "trainer", *given],
        stdout=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=environment(),
    )
    assert any("begun" in line for line in process.stdout)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    worker = int((tmp_path / "model.checkpoints" / "saved").read_text())
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists() and time.monotonic() < deadline:
        if "State:\tZ" in Path(f"/proc/{worker}/status").read_text():
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{worker}").exists()


def test_command_is_started_once(tiny_model: Path, tmp_path: Path) -> None:
    """Where the trainer would start several processes of its own, a command is started once."""
    command = script(tmp_path, PREAMBLE + "sys.exit('begun')")
    given = [*arguments(tmp_path, tiny_model, command=command), "--num-processes", "2"]
    ended = subprocess.run(
        [sys.executable, "-m", "trainer", *given], capture_output=True, text=True, env=environment(), timeout=300
    )
    assert ended.returncode == 2
    assert ended.stdout.count("begun") == 1
    assert "exit code 1: begun" in ended.stderr
