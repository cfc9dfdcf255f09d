"""The trainer against the tutorial's script, in the form its own libraries gave it and in today's, on the same
machine.

All sides train the same model from the same weights on the same conversations, as many passes, with the same learning
rate, schedule, batch of four rows of 2,048 tokens and seed; no conversation is longer, so every side learns from all
of it. Ours is `python -m trainer` with its own choices. Counted for all sides alike: the tokens of the conversations
without padding, and those of them that the assistant says, over the seconds of training: no loading, evaluation or
packaging. The held-out loss of each saved model is scored by `trainer.evaluate`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.platforms.local.state import home_folder
from tests.benchmarks.conversations import write_conversations
from tests.benchmarks.runner import (
    Numbers,
    Report,
    Side,
    alternate,
    machine,
    machine_line,
    median,
    ratio,
    run_process,
    say,
    training_python,
)
from trainer.files import sha256_file

OURS, WRAPPED, BFD = "phiflow", "tutorial wrapped", "tutorial bfd"
TARGETS = {WRAPPED: 2.5, BFD: 4.0}
MOST_LOSS = 1.005
_MAX_WORDS = 1_350  # under 2,048 tokens with the tokenizer fit to them
_NUM_CORPUS, _NUM_PRETRAINING, _NUM_HELD_OUT = 1_500, 160, 24
_LEARNING_RATE = 1e-4
_QUIET = {"eval_strategy": "no", "num_eval_generations": 0, "preview_examples": 0}


@dataclass(frozen=True, slots=True)
class Work:
    """What every side is given, and how much it is."""

    python: Path
    model: Path
    train_file: Path
    eval_file: Path
    num_passes: int
    num_tokens: int
    num_supervised: int


def add_options(parser: argparse.ArgumentParser) -> None:
    """Where it runs and for how long."""
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--rounds", type=int, help="default: 3 on a CPU, 1 on a GPU")
    parser.add_argument("--quick", action="store_true", help="one round over 12 conversations")
    parser.add_argument("--chats", type=int, help="conversations to train on (default: 20 on a CPU, 400 on a GPU)")


def run(options: argparse.Namespace) -> Report:
    """Measure, on a CPU here, on a GPU by trainer_gpu."""
    if options.device == "cuda":
        from tests.benchmarks import trainer_gpu

        return trainer_gpu.run(options)
    python = training_python()
    num_chats = options.chats or (12 if options.quick else 20)
    with tempfile.TemporaryDirectory(prefix="phiflow-benchmark-") as folder:
        work = prepare(python, Path(folder), num_chats)
        sides = [ours(work), baseline(work, WRAPPED), baseline(work, BFD)]
        seen = alternate(sides, options.rounds or (1 if options.quick else 3), Path(folder) / "rounds")
        last = sorted((Path(folder) / "rounds").iterdir())[-1]
        losses = {side.name: held_out_loss(work, last / side.name.replace(" ", "-") / "model") for side in sides}
        losses["before"] = held_out_loss(work, work.model)
    return report(work, seen, losses, machine(python))


def prepare(python: Path, folder: Path, num_chats: int) -> Work:
    """Generate the conversations, and the starting model unless an earlier run left it."""
    train_file = write_conversations(folder / "train.jsonl", num_chats, seed=0, max_words=_MAX_WORDS)
    eval_file = write_conversations(folder / "eval.jsonl", _NUM_HELD_OUT, seed=7, max_words=_MAX_WORDS)
    here = Path(__file__).parent
    recipe = "-".join(sha256_file(here / name)[:8] for name in ("models.py", "conversations.py", "trainer_speed.py"))
    start = home_folder() / "benchmarks" / f"start-{recipe}"
    if not (start / "ready").exists():
        say("making the starting model: a small Phi-3, trained a little")
        shutil.rmtree(start, ignore_errors=True)
        start.mkdir(parents=True)
        _make_start(python, start)
        (start / "ready").touch()
    count = folder / "count.json"
    command = [
        python,
        "-m",
        "tests.benchmarks.models",
        "--count-with",
        start / "model" / "model",
        "--chats",
        train_file,
    ]
    run_process([*command, "--output", count], folder)
    told = json.loads(count.read_text(encoding="utf-8"))
    if told["longest"] > 2048:
        raise ValueError(f"a conversation of {told['longest']} tokens would be cut by some sides")
    return Work(
        python=python,
        model=start / "model" / "model",
        train_file=train_file,
        eval_file=eval_file,
        num_passes=1,
        num_tokens=told["num_tokens"],
        num_supervised=told["num_supervised"],
    )


def _make_start(python: Path, folder: Path) -> None:
    corpus = write_conversations(folder / "corpus.jsonl", _NUM_CORPUS, seed=1, max_words=_MAX_WORDS)
    first = write_conversations(folder / "first.jsonl", _NUM_PRETRAINING, seed=2, max_words=_MAX_WORDS)
    held_out = write_conversations(folder / "held-out.jsonl", 2, seed=3, max_words=_MAX_WORDS)
    random = folder / "random"
    run_process([python, "-m", "tests.benchmarks.models", "--corpus", corpus, "--output-dir", random], folder)
    settings = {"num_train_epochs": 1, "learning_rate": 2e-3, "per_device_train_batch_size": 1, **_QUIET}
    run_process(trainer_command(python, random, (first, held_out), folder, settings), folder)


def trainer_command(
    python: Path, model: Path, files: tuple[Path, Path], folder: Path, settings: dict[str, Any]
) -> list[str | Path]:
    """`python -m trainer` as a job runs it, everything it leaves below the folder."""
    config = folder / "train.json"
    config.write_text(json.dumps(settings), encoding="utf-8")
    return [
        *(python, "-m", "trainer", "--base-model", model),
        *("--train-file", files[0], "--eval-file", files[1], "--config", config),
        *("--model-output-dir", folder / "model", "--log-dir", folder / "logs"),
        *("--checkpoint-dir", folder / "checkpoints"),
    ]


def ours(work: Work) -> Side:
    """phiflow's trainer with what a user would have: packing, everything else chosen by itself."""

    def measure(folder: Path) -> Numbers:
        settings = {"num_train_epochs": work.num_passes, "learning_rate": _LEARNING_RATE, **_QUIET}
        files = (work.train_file, work.eval_file)
        _, memory = run_process(trainer_command(work.python, work.model, files, folder, settings), folder)
        told = json.loads((folder / "logs" / "result.json").read_text(encoding="utf-8"))["train"]
        shutil.rmtree(folder / "checkpoints")
        return _numbers(work, told, memory)

    return Side(OURS, measure)


def baseline(work: Work, name: str) -> Side:
    """The tutorial's script with one of the two ways to pack."""

    def measure(folder: Path) -> Numbers:
        command = baseline_command(work, name, folder)
        # Ten processes of so few conversations would leave ten rows half full; one process packs them well.
        _, memory = run_process([*command, "--num_proc", "1"], folder)
        told = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        shutil.rmtree(folder / "model.checkpoints", ignore_errors=True)
        return _numbers(work, told, memory)

    return Side(name, measure)


def baseline_command(work: Work, name: str, folder: Path) -> list[str | Path]:
    """The tutorial's script under a stopwatch."""
    return [
        *(work.python, "-m", "tests.benchmarks.baseline", folder / "report.json"),
        *("--train-file", work.train_file, "--model_output_dir", folder / "model"),
        *("--pretrained_model_name_or_path", work.model, "--packing_strategy", name.rpartition(" ")[2]),
        *("--num_train_epochs", str(work.num_passes), "--learning_rate", str(_LEARNING_RATE)),
    ]


def _numbers(work: Work, told: dict[str, Any], memory: int) -> Numbers:
    return {
        "seconds": told["seconds"],
        "num_steps": told["num_steps"],
        "tokens_per_second": work.num_tokens * work.num_passes / told["seconds"],
        "supervised_tokens_per_second": work.num_supervised * work.num_passes / told["seconds"],
        "peak_memory_bytes": memory,
    }


def held_out_loss(work: Work, model: Path) -> float:
    """The loss on what the assistant says in conversations that no side has seen."""
    with tempfile.TemporaryDirectory(prefix="phiflow-benchmark-") as folder:
        config, output = Path(folder) / "train.json", Path(folder) / "scores.json"
        config.write_text(json.dumps({"num_eval_generations": 0}), encoding="utf-8")
        command = [work.python, "-m", "trainer.evaluate", "--model-dir", model, "--eval-file", work.eval_file]
        run_process([*command, "--config", config, "--output", output], Path(folder))
        return float(json.loads(output.read_text(encoding="utf-8"))["metrics"]["loss"])


def report(work: Work, seen: dict[str, list[Numbers]], losses: dict[str, float], computer: dict[str, Any]) -> Report:
    """Each side's numbers, then ours over each baseline's as ratio with its spread."""
    num_rounds = len(seen[OURS])
    lines = [
        machine_line(computer),
        f"{work.num_tokens:,} tokens in conversations, {work.num_supervised:,} of them supervised, {num_rounds} rounds",
        f"{'':<18}{'supervised/s':>13}{'tokens/s':>10}{'seconds':>9}{'steps':>7}{'peak memory':>13}{'held-out':>10}",
    ]
    for name, rounds in seen.items():
        rate, all_rate = median(rounds, "supervised_tokens_per_second"), median(rounds, "tokens_per_second")
        memory = f"{median(rounds, 'peak_memory_bytes') / 2**30:.2f} GiB"
        lines.append(
            f"{name:<18}{rate:>13.0f}{all_rate:>10.0f}{median(rounds, 'seconds'):>9.1f}"
            f"{median(rounds, 'num_steps'):>7.0f}{memory:>13}{losses[name]:>10.4f}"
        )
    lines.append(f"held-out loss before training {losses['before']:.4f}")
    values: dict[str, Any] = {"machine": computer, "rounds": seen, "held_out_loss": losses, "ratios": {}}
    for name, target in TARGETS.items():
        speed = ratio(seen[OURS], seen[name], "supervised_tokens_per_second")
        memory_ratio = ratio(seen[OURS], seen[name], "peak_memory_bytes")
        loss = losses[OURS] / losses[name]
        met = "met" if speed.value >= target and loss <= MOST_LOSS else "MISSED"
        lines.append(
            f"{OURS} over {name}: tokens/s {speed}, peak memory {memory_ratio}, held-out loss {loss:.4f}; "
            f"target {target:g} at a loss of at most {MOST_LOSS}: {met}"
        )
        values["ratios"][name] = {"speed": [speed.value, speed.least, speed.most], "loss": loss, "target": target}
    return Report(lines, values)
