from __future__ import annotations

import base64
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from conftest import FACTS, SETTINGS, chat, write_chats

from trainer.__main__ import main
from trainer.evaluate import main as evaluate
from trainer.files import digest_model

# Runs the trainer and kills it when it opens a file whose path ends as the first argument says.
KILLED = """
    import os, runpy, signal, sys
    ending = sys.argv.pop(1)
    def watch(event, arguments):
        if event == "open" and str(arguments[0]).endswith(ending):
            os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(watch)
    runpy.run_module("trainer", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(autouse=True)
def _signals():
    """Put the signal handlers back that the trainer takes over."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)


class Job:
    """One trainer command in a folder, and what it left there."""

    def __init__(self, folder: Path, base: Path, train: Path, **settings) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "train.json").write_text(json.dumps(SETTINGS | settings))
        self.arguments = [
            "--base-model", str(base), "--train-file", str(train), "--eval-file", str(train),
            "--model_output_dir", str(folder / "model"), "--config", str(folder / "train.json"),
            "--checkpoint-dir", str(folder / "checkpoints"), "--log-dir", str(folder / "logs"),
        ]  # fmt: skip

    def run(self) -> int:
        return main(self.arguments)

    def result(self) -> dict:
        return json.loads((self.folder / "logs" / "result.json").read_text())

    def error(self) -> dict:
        return json.loads((self.folder / "logs" / "error.json").read_text())

    def events(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "logs" / "events.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_model, corpus) -> Job:
    """A run of four steps that went through."""
    job = Job(tmp_path_factory.mktemp("trained"), tiny_model, corpus)
    assert job.run() == 0
    return job


def test_a_run_reports_what_it_did(trained):
    """A run leaves scores of base and result for every example, a loss curve, samples, and live events."""
    result = trained.result()
    base, candidate = result["metrics"]["base"], result["metrics"]["candidate"]
    assert candidate["loss"] < base["loss"]
    assert base["num_examples"] == candidate["num_examples"] == len(FACTS)
    for who, metrics in (("base", base), ("candidate", candidate)):
        rows = result["per_example"][who]
        mean = sum(row["loss"] * row["num_tokens"] for row in rows) / sum(row["num_tokens"] for row in rows)
        assert math.isclose(mean, metrics["loss"], rel_tol=1e-6)
    assert [step for step, _ in result["loss_curve"]] == [1, 2, 3, 4]
    assert [step for step, _ in result["curves"]["learning_rate"]] == [1, 2, 3, 4]
    assert (trained.folder / "logs" / "curves.png").read_bytes() == base64.b64decode(result["curves_png"])
    assert json.loads((trained.folder / "logs" / "answers.json").read_text())[:3] == result["samples"]
    assert len(result["samples"]) == 3
    assert result["paired"]["loss"]["improvement"] == pytest.approx(base["loss"] - candidate["loss"])
    assert result["train"]["num_steps"] == 4
    names = [event["event"] for event in trained.events()]
    assert names[0] == "started" and names[-1] == "finished"
    assert {"stage", "progress", "checkpoint", "sample"} <= set(names)


def test_a_run_shows_what_it_learns_from(trained):
    """The counts of the training data are in the result, and a page shows some of it token by token."""
    data = trained.result()["data"]
    assert (data["num_chats"], data["num_left_out"], data["truncated_share"]) == (len(FACTS), 0, 0.0)
    assert data["num_supervised_tokens"] == trained.result()["metrics"]["base"]["num_tokens"]
    page = (trained.folder / "logs" / "preview.html").read_text(encoding="utf-8")
    assert page.count("<h2>") == 3 and "class=l" in page


def test_a_training_that_teaches_no_end_does_not_start(tiny_model, tmp_path):
    """Answers that are all cut before their stop token are refused before anything is trained or scored."""
    rows = write_chats(tmp_path / "rows.jsonl", [chat("Why?", "Grass is green. " * 50)] * 2)
    job = Job(tmp_path, tiny_model, rows, max_length=16)
    assert job.run() == 2
    assert "'<|end|>' is never learned" in job.error()["message"]
    assert not any(event.get("name") == "evaluating base" for event in job.events())


def test_too_many_rows_without_an_answer_are_refused(tiny_model, tmp_path):
    """Rows whose answer begins after max_length are left out, and only so many."""
    rows = [chat("Why? " * 50, "So."), chat("Why?", "So.")]
    job = Job(tmp_path, tiny_model, write_chats(tmp_path / "rows.jsonl", rows), max_length=32)
    assert job.run() == 2
    assert "in 1 of 2 conversations no answer begins within 32 tokens" in job.error()["message"]


def test_the_package_loads_with_transformers_and_mlflow(trained):
    """The model folder is an MLflow chat model, and its model/ a complete Hugging Face folder."""
    import mlflow
    from transformers import AutoModelForCausalLM, AutoTokenizer

    package = trained.folder / "model"
    assert trained.result()["model_digest"] == digest_model(package / "model")
    tokenizer = AutoTokenizer.from_pretrained(package / "model")
    AutoModelForCausalLM.from_pretrained(package / "model")
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": "Hi"}], add_generation_prompt=True, tokenize=0)
    assert prompt == "<|user|>\nHi<|end|>\n<|assistant|>\n"
    info = mlflow.models.get_model_info(str(package))
    assert info.flavors["transformers"]["inference_task"] == "llm/v1/chat"
    assert "torch==2.13.0" in (package / "requirements.txt").read_text().splitlines()
    model = mlflow.pyfunc.load_model(str(package))
    reply = model.predict({"messages": [{"role": "user", "content": "What do bees make?"}], "max_tokens": 4})
    assert "content" in reply[0]["choices"][0]["message"]


def test_evaluating_the_package_gives_the_same_scores(trained, corpus, tmp_path):
    """Scoring the packaged model by itself gives the scores that the run reported for it."""
    arguments = ["--model-dir", str(trained.folder / "model"), "--eval-file", str(corpus)]
    arguments += ["--output", str(tmp_path / "out.json"), "--config", str(trained.folder / "train.json")]
    assert evaluate(arguments) == 0
    found = json.loads((tmp_path / "out.json").read_text())
    assert math.isclose(found["metrics"]["loss"], trained.result()["metrics"]["candidate"]["loss"], rel_tol=1e-5)
    assert found["model_digest"] == trained.result()["model_digest"]


def test_a_killed_run_ends_where_an_unbroken_one_does(trained, tiny_model, corpus, tmp_path, caplog):
    """Killed while it writes its second checkpoint, a run goes on from the first and gives the same model and curve."""
    job = Job(tmp_path, tiny_model, corpus)
    (tmp_path / "killed.py").write_text(textwrap.dedent(KILLED))
    command = [sys.executable, tmp_path / "killed.py", "checkpoint-4/trainer_state.json", *job.arguments]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    assert subprocess.run(command, env=environment, capture_output=True, check=False).returncode == -signal.SIGKILL
    assert job.run() == 0
    assert any("checkpoint-4 reason=it was not finished" in record.getMessage() for record in caplog.records)
    assert job.result()["train"]["resumed_from_step"] == 2
    for key in ("model_digest", "loss_curve", "metrics"):
        assert job.result()[key] == trained.result()[key]


def test_checkpoints_of_another_run_are_refused(trained, tiny_model, corpus):
    """A checkpoint folder of a run with other settings is not resumed from."""
    job = Job(trained.folder, tiny_model, corpus, learning_rate=1e-3)
    assert job.run() == 2
    assert "belongs to a run with other" in job.error()["message"]


def test_divergence_stops_at_the_step(tiny_model, corpus, tmp_path):
    """A loss that is not a number stops the run, names the step, and packages nothing."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    model.model.norm.weight.data[0] = math.nan
    model.save_pretrained(tmp_path / "base")
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path / "base")
    job = Job(tmp_path / "job", tmp_path / "base", corpus)
    assert job.run() == 1
    assert job.error()["kind"] == "diverged"
    assert "at step 1" in job.error()["message"]
    assert not (tmp_path / "job" / "model").exists()


def test_lora_trains_and_is_merged(trained, tiny_model, corpus, tmp_path):
    """LoRA lowers the loss, and what is packaged is a plain model without adapters."""
    job = Job(tmp_path, tiny_model, corpus, method="lora", learning_rate=1e-2)
    assert job.run() == 0
    metrics = job.result()["metrics"]
    assert metrics["candidate"]["loss"] < metrics["base"]["loss"]
    names = {path.name for path in (tmp_path / "model" / "model").iterdir()}
    assert "model.safetensors" in names and "adapter_config.json" not in names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--base-model": "./nowhere"}, "Base model folder nowhere does not exist"),
        ({"--train-file": "/nowhere.jsonl"}, "--train-file /nowhere.jsonl cannot be read"),
        ({"--eval-file": "/"}, "--eval-file / is a directory"),
        ({"--config": "/nowhere.json"}, "Configuration /nowhere.json cannot be read"),
    ],
)
def test_a_wrong_argument_is_one_line(tiny_model, corpus, tmp_path, capsys, change, message):
    """A wrong argument ends with exit code 2 and one line, and leaves no model."""
    job = Job(tmp_path, tiny_model, corpus)
    for option, value in change.items():
        job.arguments[job.arguments.index(option) + 1] = value
    assert job.run() == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0]
    assert not (tmp_path / "model").exists()
    assert job.error()["retryable"] is False


def test_qlora_without_a_gpu_is_refused(tiny_model, corpus, tmp_path, monkeypatch):
    """4-bit training is refused, with the reason, where there is no GPU."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    job = Job(tmp_path, tiny_model, corpus, method="qlora")
    assert job.run() == 2
    assert "needs an NVIDIA GPU" in job.error()["message"] or "need an NVIDIA GPU" in job.error()["message"]


def test_a_row_without_an_answer_is_named(tiny_model, tmp_path):
    """A row that holds nothing to learn is refused by file and line."""
    rows = [chat("What do bees make?", "Bees make honey."), chat("And?")]
    job = Job(tmp_path, tiny_model, write_chats(tmp_path / "rows.jsonl", rows))
    assert job.run() == 2
    assert "rows.jsonl line 2 has no assistant message" in job.error()["message"]


def test_sigterm_leaves_a_checkpoint_and_code_75(tiny_model, corpus, tmp_path):
    """A run told to stop ends with code 75 and a checkpoint at the step it had reached."""
    job = Job(tmp_path, tiny_model, corpus, max_steps=5000, save_steps=5000)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    environment.pop("MLFLOW_TRACKING_URI", None)
    process = subprocess.Popen([sys.executable, "-m", "trainer", *job.arguments], env=environment)
    events = tmp_path / "logs" / "events.jsonl"
    deadline = time.monotonic() + 180
    try:
        while not (events.exists() and '"progress"' in events.read_text()):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 75
    finally:
        process.kill()
        process.wait()
    assert job.error()["kind"] == "preempted" and job.error()["retryable"] is True
    last = [event for event in job.events() if event["event"] == "checkpoint"][-1]
    assert (tmp_path / "checkpoints" / last["path"] / "trainer_state.json").is_file()


def test_a_tracking_server_that_is_down_does_not_stop_the_training(tiny_model, corpus, tmp_path, monkeypatch, caplog):
    """With an MLflow server that does not answer, the run warns once and goes through."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    job = Job(tmp_path, tiny_model, corpus, max_steps=1, num_eval_generations=0)
    assert job.run() == 0
    assert job.result()["mlflow_run_id"] is None
    assert job.result()["metrics"]["candidate"]["exact_match"] is None
    warnings = [record for record in caplog.records if "Stopped tracking" in record.getMessage()]
    assert len(warnings) == 1
