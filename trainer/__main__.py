"""Command line of the trainer: checks what it was given, runs the job, ends with an exit code.

Exit codes: 0 done, 1 bug or failed training, 2 something to correct in the command, data or settings,
75 stopped by a signal, to be run again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from trainer.base_model import resolve_base_model
from trainer.command_line import OneLineParser, explained, log_to_console, read_config, require_file
from trainer.errors import TrainerError
from trainer.events import EventLog
from trainer.files import INCOMPLETE
from trainer.hub_token import provide_hub_token
from trainer.interruption import Interruption
from trainer.launch import end_with_launcher, launch, num_processes_to_start
from trainer.model import quiet_libraries
from trainer.ranks import is_first
from trainer.tracking import Tracker

DEFAULT_BASE_MODEL = "microsoft/Phi-3.5-mini-instruct"


def main(arguments: list[str] | None = None) -> int:
    """Fine-tune a model; see --help."""
    given = _with_dashes(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    output = Path(options.model_output_dir).expanduser().absolute()
    interruption, tracker = Interruption(), Tracker()
    events = None
    log_to_console()
    log_dir = Path(options.log_dir).absolute() if options.log_dir else output.with_name(f"{output.name}.logs")
    with explained() as outcome:
        end_with_launcher()
        interruption.listen()
        events = EventLog(log_dir, _absolute(options.result_dir))
        config = read_config(options.config)
        num_processes = num_processes_to_start(options.num_processes)
        if num_processes > 1 and not config.command:  # another trainer starts its own
            with interruption.deferred():
                return launch(num_processes, given, log_dir)
        base_model = resolve_base_model(options.base_model)
        if not Path(base_model).is_dir():
            provide_hub_token()
        require_file(options.train_file, "--train-file")
        require_file(options.eval_file, "--eval-file")
        _require_replaceable(output)
        quiet_libraries(base_model)
        events.emit("started", base_model=base_model, train=config.to_dict(), pid=os.getpid())
        from trainer.train import TrainJob, run_job

        job = TrainJob(
            base_model=base_model,
            revision=options.base_model_revision,
            train_file=options.train_file,
            eval_file=options.eval_file,
            model_output_dir=output,
            checkpoint_dir=_checkpoint_dir(options.checkpoint_dir, output),
            config=config,
        )
        result = run_job(job, events, tracker, interruption)
        if is_first():
            events.finish(result)
    interruption.settle()
    if outcome.error:
        tracker.finish({}, "KILLED" if outcome.error.kind == "preempted" else "FAILED")
        if events:
            events.fail(outcome.error)
    return outcome.exit_code


def _parser() -> OneLineParser:
    parser = OneLineParser(prog="python -m trainer", description="Fine-tunes a chat model on prepared chats.")
    parser.add_argument("--base-model", default=DEFAULT_BASE_MODEL, help="hub id or folder (default: %(default)s)")
    parser.add_argument("--base-model-revision", help="branch, tag or commit of a hub model")
    parser.add_argument("--train-file", type=Path, required=True, help="chats to learn, JSONL")
    parser.add_argument("--eval-file", type=Path, required=True, help="chats to score on, JSONL")
    parser.add_argument("--model-output-dir", required=True, help="MLflow model folder to write")
    parser.add_argument("--checkpoint-dir", help="kept between attempts (default: beside the model)")
    parser.add_argument("--log-dir", help="events.jsonl, result.json, error.json (default: beside the model)")
    parser.add_argument("--result-dir", help="result.json or error.json here too, where it outlives the machine")
    parser.add_argument(
        "--num-processes",
        type=_count,
        help="processes to start on this machine (default: one a GPU; those that a platform started join each other)",
    )
    parser.add_argument("--config", type=Path, help="JSON file with the train section")
    return parser


def _with_dashes(arguments: list[str]) -> list[str]:
    """Accept --model_output_dir for --model-output-dir."""
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        result.append(name.replace("_", "-") + equals + value if name.startswith("--") else argument)
    return result


def _count(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 64:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 to 64")
    return int(text)


def _absolute(given: str | None) -> Path | None:
    return Path(given).expanduser().absolute() if given else None


def _checkpoint_dir(given: str | None, output: Path) -> Path:
    return _absolute(given) or output.with_name(f"{output.name}.checkpoints")


def _require_replaceable(output: Path) -> None:
    ours = any((output / name).is_file() for name in ("MLmodel", INCOMPLETE))
    if output.is_dir() and any(output.iterdir()) and not ours:
        raise TrainerError(
            f"--model-output-dir {output} exists and is not a model folder.",
            "Give a new or empty folder.",
            "configuration",
        )
    if output.exists() and not output.is_dir():
        raise TrainerError(
            f"--model-output-dir {output} is not a folder.", "Give a new or empty folder.", "configuration"
        )


if __name__ == "__main__":
    sys.exit(main())
