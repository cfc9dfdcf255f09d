"""Fine-tunes one model, stage by stage: load, score the base, train, score the result, package."""

from __future__ import annotations

import json
import logging
import time
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

from trainer.adapters import merge_lora, with_adapters
from trainer.chat_template import EncodedChat
from trainer.chats import read_chats
from trainer.checkpoints import claim_checkpoints, discard_broken, last_complete_checkpoint
from trainer.config import TrainConfig
from trainer.encoding import encode_chats
from trainer.evaluate import Evaluation, evaluate_model
from trainer.events import EventLog
from trainer.files import digest_folder, sha256_file, write_in_place
from trainer.hardware import Hardware, choose_hardware
from trainer.interruption import Interruption
from trainer.model import (
    ensure_pad_token,
    fitting_length,
    load_model,
    load_tokenizer,
    read_model_config,
    require_reachable,
    stop_at,
)
from trainer.package import installed_versions, package_model
from trainer.ranks import is_first, joined, of_first, world_size
from trainer.tracking import Tracker

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What one run reads and writes."""

    base_model: str
    revision: str | None
    train_file: Path
    eval_file: Path
    model_output_dir: Path
    checkpoint_dir: Path
    config: TrainConfig

    def fingerprint(self) -> str:
        """Names what the checkpoints depend on."""
        base = digest_folder(self.base_model) if Path(self.base_model).is_dir() else self.base_model
        parts = [base, self.revision, sha256_file(self.train_file), sha256_file(self.eval_file), self.config.to_dict()]
        return sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@dataclass(slots=True)
class _Run:
    """What the stages of one run share."""

    job: TrainJob
    events: EventLog
    tracker: Tracker
    interruption: Interruption
    hardware: Hardware
    tokenizer: Any
    model: Any
    stored_dtype: Any
    train_chats: list[EncodedChat]
    eval_chats: list[EncodedChat]
    stop_token_ids: set[int]


def run_job(job: TrainJob, events: EventLog, tracker: Tracker, interruption: Interruption) -> dict[str, Any]:
    """Run every stage and return what result.json holds; nothing, in any but the first of several processes.

    Raises:
        TrainerError: whatever a person can act on, by kind.
    """
    events.stage("loading")
    run = _load(job, events, tracker, interruption)
    with joined(run.hardware.device):
        checkpoint = of_first(_resumable_checkpoint(job.checkpoint_dir))
        tracker.start({"base_model": job.base_model, **job.config.to_dict()})
        base = _base_evaluation(run) if is_first() else None
        of_first(None)  # the others wait here until the base is scored
        events.stage("training")
        summary = _train(run, checkpoint)
    return _finish(run, base, summary) if base else {}


def _finish(run: _Run, base: Evaluation, summary: dict[str, Any]) -> dict[str, Any]:
    """Score and package what was trained."""
    job = run.job
    run.events.stage("evaluating")
    candidate = evaluate_model(run.model, run.tokenizer, run.eval_chats, job.config)
    samples = _samples(run, base, candidate)
    run.events.stage("packaging")
    digest = package_model(run.model, run.tokenizer, job.model_output_dir)
    run.tracker.finish(
        {
            f"{who}_{name}": value
            for who, evaluation in (("base", base), ("candidate", candidate))
            for name, value in evaluation.metrics.items()
            if isinstance(value, float)
        },
        "FINISHED",
    )
    return {
        "model_dir": str(job.model_output_dir),
        "model_digest": digest,
        "base_model": job.base_model,
        "base_model_revision": job.revision,
        "mlflow_run_id": run.tracker.run_id,
        "metrics": {"base": base.metrics, "candidate": candidate.metrics},
        "per_example": {"base": base.per_example, "candidate": candidate.per_example},
        "samples": samples,
        "loss_curve": summary.pop("loss_curve"),
        "train": summary,
        "versions": installed_versions(),
    }


def _resumable_checkpoint(folder: Path) -> tuple[Path, int] | None:
    if not is_first():
        return None
    found = last_complete_checkpoint(folder)
    discard_broken(folder)
    return found


def _load(job: TrainJob, events: EventLog, tracker: Tracker, interruption: Interruption) -> _Run:
    chats, held_out = read_chats(job.train_file), read_chats(job.eval_file)  # before the slow imports
    from transformers import set_seed

    set_seed(job.config.seed)
    hardware = choose_hardware(job.config)
    for reason in hardware.reasons:
        log.info("Chose %s", reason)
    require_reachable(job.base_model, job.revision)
    tokenizer = load_tokenizer(job.base_model, job.revision)
    model_config = read_model_config(job.base_model, job.revision)
    max_length = fitting_length(model_config, job.config.max_length)
    train_chats, stop_token_ids = encode_chats(chats, tokenizer, max_length, job.train_file.name)
    eval_chats, _ = encode_chats(held_out, tokenizer, max_length, job.eval_file.name)
    if is_first():
        claim_checkpoints(job.checkpoint_dir, job.fingerprint())
    job = replace(job, config=replace(job.config, max_length=max_length))
    model = load_model(job.base_model, job.revision, hardware)
    ensure_pad_token(tokenizer, model, stop_token_ids)
    stop_at(model, tokenizer, stop_token_ids)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("Loaded base_model=%s num_parameters=%d", job.base_model, num_parameters)
    return _Run(
        job=job,
        events=events,
        tracker=tracker,
        interruption=interruption,
        hardware=hardware,
        tokenizer=tokenizer,
        model=model,
        stored_dtype=_stored_dtype(model_config),
        train_chats=train_chats,
        eval_chats=eval_chats,
        stop_token_ids=stop_token_ids,
    )


def _stored_dtype(model_config: Any) -> Any:
    """The precision of the base model's own files, which the result keeps."""
    import torch

    dtype = getattr(model_config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32


def _base_evaluation(run: _Run) -> Evaluation:
    """Score the base model, or read what an earlier attempt of this run found."""
    stored = run.job.checkpoint_dir / "base_evaluation.json"
    try:
        return Evaluation.from_dict(json.loads(stored.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError):
        pass
    run.events.stage("evaluating base")
    evaluation = evaluate_model(run.model, run.tokenizer, run.eval_chats, run.job.config)
    write_in_place(stored, json.dumps(evaluation.to_dict(), ensure_ascii=False))
    log.info("Evaluated base loss=%.4f", evaluation.metrics["loss"])
    return evaluation


def _train(run: _Run, checkpoint: tuple[Path, int] | None) -> dict[str, Any]:
    """Train run.model in place and return the summary for result.json."""
    from trainer.batches import flatten, rows_of
    from trainer.callbacks import ProgressCallback
    from trainer.loop import RowTrainer
    from trainer.loss import learn_supervised_tokens

    config = run.job.config
    watcher = ProgressCallback(run.events, run.tracker, run.interruption)
    learn_supervised_tokens(run.model)
    trainer = RowTrainer(
        model=run.model if config.method == "full" else with_adapters(run.model, config),
        args=_training_arguments(run),
        train_dataset=rows_of(run.train_chats),
        eval_dataset=rows_of(run.eval_chats) if config.eval_strategy != "no" else None,
        data_collator=flatten,
        processing_class=run.tokenizer,
        callbacks=[watcher],
    )
    trainer.watcher = watcher
    _silence(trainer)
    resumed = checkpoint[1] if checkpoint else None
    if checkpoint:
        run.events.emit("resumed", step=resumed, path=checkpoint[0].name)
        log.info("Resumed checkpoint=%s", checkpoint[0].name)
    begun = time.monotonic()
    with run.interruption.deferred():
        trainer.train(resume_from_checkpoint=str(checkpoint[0]) if checkpoint else None)
    seconds = time.monotonic() - begun
    run.model = _finished_model(run, trainer)
    return {
        "num_steps": trainer.state.global_step,
        "num_epochs": round(trainer.state.epoch or 0.0, 3),
        "seconds": round(seconds, 2),
        "num_tokens": watcher.num_tokens,
        "tokens_per_second": round(watcher.num_tokens / seconds, 1),
        "num_examples": len(run.train_chats),
        "num_processes": world_size(),
        "resumed_from_step": resumed,
        "device": run.hardware.device.partition(":")[0],
        "attention": run.hardware.reasons[0].removeprefix("attention="),
        "choices": list(run.hardware.reasons),
        "loss_curve": watcher.loss_curve,
    }


def _training_arguments(run: _Run) -> Any:
    from transformers import TrainingArguments

    config, hardware = run.job.config, run.hardware
    shared = (
        "num_train_epochs", "max_steps", "lr_scheduler_type", "weight_decay", "max_grad_norm", "seed",
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "logging_steps", "save_steps", "save_total_limit",
        "eval_strategy", "eval_steps",
    )  # fmt: skip
    return TrainingArguments(
        output_dir=str(run.job.checkpoint_dir),
        **{name: getattr(config, name) for name in shared},
        learning_rate=config.peak_learning_rate,
        gradient_checkpointing=bool(config.gradient_checkpointing),
        warmup_steps=config.warmup_ratio,  # below 1 it is a share
        data_seed=config.seed,
        bf16=hardware.bf16,
        use_cpu=hardware.device == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        ddp_find_unused_parameters=False,  # every parameter is used, and looking costs a pass a step
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=hardware.device != "cpu",
    )


def _silence(trainer: Any) -> None:
    """Take out the callback that prints every log entry as a dictionary."""
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)


def _finished_model(run: _Run, trainer: Any) -> Any:
    """The trained model as it will be stored: LoRA merged, in the precision of the base model's files."""
    import torch

    model = trainer.accelerator.unwrap_model(trainer.model)
    if run.job.config.method != "full":
        model = merge_lora(model, run.train_chats[0].input_ids)
    model = model.to(run.stored_dtype)
    if run.hardware.device == "cpu":
        model = model.to(torch.float32)  # rounded as stored, and fast to evaluate here
    model.config.use_cache = True
    stop_at(model, run.tokenizer, run.stop_token_ids)
    return model


def _samples(run: _Run, base: Evaluation, candidate: Evaluation) -> list[dict[str, Any]]:
    samples = []
    for index in sorted(candidate.answers)[: run.job.config.num_samples]:
        chat = run.eval_chats[index]
        sample = {"messages": list(chat.prompt), "question": chat.question, "expected": chat.expected}
        sample |= {"base": base.answers.get(index, ""), "answer": candidate.answers[index]}
        run.events.emit("sample", **sample)
        log.info("Asked %r answer=%r", chat.question[:80], candidate.answers[index][:120])
        samples.append(sample)
    return samples
