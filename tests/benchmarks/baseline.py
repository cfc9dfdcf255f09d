"""Runs the tutorial's script with a stopwatch: python -m tests.benchmarks.baseline REPORT.json ARGUMENTS-OF-IT."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from tests.benchmarks.tutorial import fine_tune


class Stopwatch(TrainerCallback):
    """Writes the time of each step as the trainer's own events do, one JSON line."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("w", encoding="utf-8")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """One line a step; on a GPU when its work is done."""
        line: dict[str, float] = {"step": state.global_step, "num_steps": state.max_steps}
        if torch.cuda.is_available():
            torch.cuda.synchronize()
            line["memory_bytes"] = torch.cuda.max_memory_allocated()
        self._file.write(json.dumps({**line, "seconds": time.time()}) + "\n")
        self._file.flush()


def main(report: Path, arguments: list[str]) -> None:
    """Train, save, and write what was measured."""
    options = fine_tune.read_options(arguments)
    stopwatch = Stopwatch(report.with_suffix(".steps.jsonl"))
    trainer, tokenizer = fine_tune.build_trainer(options, [stopwatch])
    metrics = trainer.train().metrics
    trainer.save_model(options.model_output_dir)
    tokenizer.save_pretrained(options.model_output_dir)
    told = {"seconds": metrics["train_runtime"], "num_steps": trainer.state.global_step}
    report.write_text(json.dumps(told) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
