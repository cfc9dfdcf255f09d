"""Fine-tunes one model, stage by stage: load, score the base, train, score the result, package."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from trainer.adapters import with_adapters
from trainer.chats import read_chats
from trainer.checkpoints import last_complete_checkpoint
from trainer.curves import curves_of
from trainer.evaluate import Evaluation, answered_chats, evaluate_model
from trainer.events import EventLog
from trainer.files import write_in_place
from trainer.finishing import Finished, finish_model, model_as_stored
from trainer.flops import flops_per_token, peak_flops
from trainer.interruption import Interruption
from trainer.job import Reporting, Run, TrainJob
from trainer.loading import load_run
from trainer.outcome import tell_outcome
from trainer.preview import preview_run
from trainer.ranks import is_first, joined, of_first, world_size
from trainer.result import package_run
from trainer.tracking import Tracker

log = logging.getLogger(__name__)


def run_job(job: TrainJob, events: EventLog, tracker: Tracker, interruption: Interruption) -> dict[str, Any]:
    """Run every stage and return what result.json holds; nothing, in any but the first of several processes.

    Raises:
        TrainerError: whatever a person can act on, by kind.
    """
    if job.config.command:
        return _run_command(job, Reporting(events, tracker, interruption))
    events.stage("loading")
    run = load_run(job, Reporting(events, tracker, interruption))
    with joined(run.hardware.device):
        checkpoint = of_first(last_complete_checkpoint(job.checkpoint_dir) if is_first() else None)
        tracker.start({"base_model": job.base_model, **job.config.to_dict()})
        preview_run(run)
        base = _score_base(run) if is_first() else None
        of_first(None)  # the others wait here until the base is scored
        events.stage("training")
        finished, summary = _train(run, checkpoint)
    return _finish(run, finished, base, summary) if base else {}


def _run_command(job: TrainJob, reporting: Reporting) -> dict[str, Any]:
    """Another program trains; its model is scored, compared and packaged as one of ours."""
    from trainer.external import trained_by_command

    for file in (job.train_file, job.eval_file):
        read_chats(file)  # what is wrong with them is said before the training
    reporting.tracker.start({"base_model": job.base_model, **job.config.to_dict()})
    with trained_by_command(job, reporting) as trained:
        if not is_first():
            return {}
        plain_config = replace(job.config, method="full", preview_examples=0)
        plain = replace(job, checkpoint_dir=trained.folder / "scoring", config=plain_config)
        base = _score_base(load_run(plain, reporting))
        run = load_run(replace(plain, base_model=str(trained.model), revision=None), reporting)
        run.job = replace(job, config=replace(job.config, max_length=run.config.max_length))
        run.model.config.use_cache = True
        known = {"num_examples": len(run.train_chats), "device": run.hardware.device, "resumed_from_step": None}
        return _finish(run, Finished(run.model), base, known | trained.summary)


def _score_base(run: Run) -> Evaluation:
    """Score the base model, or read what an earlier attempt of this run found."""
    stored = run.job.checkpoint_dir / "base_evaluation.json"
    try:
        return Evaluation.from_dict(json.loads(stored.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        pass
    run.reporting.events.stage("evaluating base")
    # In 4 bits the base would score worse than it is, and what was merged into it would look the better for that.
    model = model_as_stored(run) if run.config.method == "qlora" else run.model
    evaluation = evaluate_model(model, run.tokenizer, run.eval_chats, run.config, run.hardware.bf16)
    write_in_place(stored, json.dumps(evaluation.to_dict(), ensure_ascii=False))
    log.info("Evaluated base loss=%.4f", evaluation.metrics["loss"])
    return evaluation


def _train(run: Run, checkpoint: tuple[Path, int] | None) -> tuple[Finished, dict[str, Any]]:
    """Train run.model, and return what became of it with the summary for result.json."""
    from trainer.fitting import less_after_out_of_memory

    trainer = _trainer(run)
    watcher = trainer.watcher
    watcher.flops_per_token = flops_per_token(run.model, trainer.train_dataset, run.config.method == "full")
    watcher.peak_flops, peak = peak_flops(run.hardware)
    resumed = checkpoint[1] if checkpoint else None
    if checkpoint:
        run.reporting.events.emit("resumed", step=resumed, path=checkpoint[0].name)
        log.info("Resumed checkpoint=%s", checkpoint[0].name)
    begun = time.monotonic()
    with run.reporting.interruption.deferred(), less_after_out_of_memory(run):
        trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
    seconds = time.monotonic() - begun
    summary = _summary(run, trainer, seconds) | {"resumed_from_step": resumed, "peak_flops": peak}
    return finish_model(run, trainer), summary


def _trainer(run: Run) -> Any:
    """The loop over run.model's rows, with everything that watches it."""
    from transformers import PrinterCallback

    from trainer.arguments import training_arguments
    from trainer.batches import collator, rows_of
    from trainer.fitting import fit_run
    from trainer.guard import Guard
    from trainer.hardware import short_context
    from trainer.loop import RowTrainer
    from trainer.loss import learn_supervised_tokens
    from trainer.sharding import distribute

    learn_supervised_tokens(run.model)
    distribute(run)
    model = run.model if run.config.method == "full" else with_adapters(run.model, run.config)
    rows = _train_rows(run)
    collate = collator(run.hardware.attention, run.tokenizer.pad_token_id, short_context(run.model.config))
    fit_run(run, model, rows, collate)
    config = run.config
    watcher, *others = _callbacks(run)
    guard = Guard(run.reporting.interruption, run.job.train_file.name)
    trainer = RowTrainer(
        model=model,
        args=training_arguments(run),
        train_dataset=_even(rows, config.per_device_train_batch_size * config.gradient_accumulation_steps),
        eval_dataset=rows_of(run.eval_chats) if config.eval_strategy != "no" else None,
        data_collator=collate,
        processing_class=run.tokenizer,
        callbacks=[watcher, guard, *others],
    )
    trainer.watcher, trainer.guard, trainer.save_total_limit = watcher, guard, config.save_total_limit
    trainer.order = _order(run, trainer.train_dataset)
    trainer.remove_callback(PrinterCallback)  # it prints every log entry as a dictionary
    return trainer


def _train_rows(run: Run) -> Any:
    """The dataset that is trained on: rows, packed or one conversation each."""
    config, packed = run.config, run.train_chats.packed()
    step_rows = config.per_device_train_batch_size * config.gradient_accumulation_steps * world_size()
    if run.hardware.packing and len(packed) < step_rows:
        log.info("Chose packing=off (%d packed rows are fewer than the %d of one step)", len(packed), step_rows)
    elif run.hardware.packing:
        log.info("Chose packing=on (%d rows, %.1f %% full)", len(packed), 100 * packed.summary.fill_share)
        return packed
    return run.train_chats


def _even(rows: Any, num_rows: int) -> Any:
    """Rows in equal shares for several processes, each of which takes so many a step."""
    from trainer.shares import EvenRows

    return rows if world_size() == 1 else EvenRows(rows, num_rows * world_size())


def _order(run: Run, rows: Any) -> Any:
    """Rows of like length together where they are padded to one width; None: any order is as good."""
    from trainer.batches import is_padded, row_lengths
    from trainer.order import LengthGroups

    if not (run.config.group_by_length and is_padded(run.hardware.attention)):
        return None
    return LengthGroups(row_lengths(rows), run.config.per_device_train_batch_size, run.config.seed)


def _callbacks(run: Run) -> list[Any]:
    """What happens between steps; the first one watches the loss and the clock."""
    from trainer.callbacks import ProgressCallback
    from trainer.evaluations import Evaluations
    from trainer.sampling import Sampling

    evaluations = Evaluations(run.config)
    num_tokens = sum(len(chat.input_ids) for chat in run.eval_chats)
    watcher = ProgressCallback(run.reporting.events, run.reporting.tracker, evaluations, num_tokens)
    asked = [run.eval_chats[i] for i in answered_chats(run.eval_chats, run.config)]
    return [watcher, evaluations, Sampling(run.config, run.tokenizer, asked, watcher)]


def _summary(run: Run, trainer: Any, seconds: float) -> dict[str, Any]:
    """What result.json says of the training under `train`, and its curves."""
    from trainer.callbacks import memory_bytes

    watcher = trainer.watcher
    return {
        "num_steps": trainer.state.global_step,
        "num_epochs": round(trainer.state.epoch or 0.0, 3),
        "seconds": round(seconds, 2),
        "num_tokens": watcher.num_tokens,
        "num_supervised_tokens": watcher.num_supervised_tokens,
        "tokens_per_second": round(watcher.num_tokens / seconds, 1),
        "supervised_tokens_per_second": round(watcher.num_supervised_tokens / seconds, 1),
        "mfu": watcher.mfu,
        "peak_memory_bytes": memory_bytes(),
        "num_examples": len(run.train_chats),
        "num_processes": world_size(),
        "device": run.hardware.device.partition(":")[0],
        "attention": run.hardware.reasons[0].removeprefix("attention="),
        "choices": list(run.hardware.reasons),
        "curves": curves_of(trainer.state.log_history, watcher.rates),
    }


def _finish(run: Run, finished: Finished, base: Evaluation, summary: dict[str, Any]) -> dict[str, Any]:
    """Score and package what was trained."""
    events, tracker = run.reporting.events, run.reporting.tracker
    events.stage("evaluating")
    candidate = evaluate_model(finished.model, run.tokenizer, run.eval_chats, run.config, run.hardware.bf16)
    told = tell_outcome(run, base, candidate, summary.pop("curves"))
    events.stage("packaging")
    result = package_run(run, finished, base, candidate)
    tracker.finish({}, "FINISHED")
    data = run.supervision.to_dict()
    return result | told | {"mlflow_run_id": tracker.run_id, "train": summary, "data": data}
