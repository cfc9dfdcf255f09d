"""The first stage of a run: data, tokenizer and model, each checked before the slow one after it."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from typing import Any

from trainer.chats import read_chats, require_chats
from trainer.checkpoints import claim_checkpoints
from trainer.checks import require_learned_stop, require_supervision, supervision_of
from trainer.encoding import encode_chats
from trainer.evaluate import evenly_chosen
from trainer.hardware import choose_hardware, require_hardware_for, short_context
from trainer.job import Reporting, Run, TrainJob
from trainer.model import (
    choose_threads,
    ensure_pad_token,
    fitting_length,
    load_model,
    load_tokenizer,
    read_model_config,
    require_reachable,
    stop_at,
)
from trainer.precision import held_to_train
from trainer.ranks import is_first
from trainer.templates import adapt_template
from trainer.tokens import TokenPlan, tokenise

log = logging.getLogger(__name__)


def load_run(job: TrainJob, reporting: Reporting) -> Run:
    """Read and encode the chats, load the model.

    Raises:
        TrainerError: a file, the base model or the configuration cannot be used.
    """
    require_chats(job.train_file)
    held_out = evenly_chosen(read_chats(job.eval_file), job.config.max_eval_examples)  # before the slow imports
    from transformers import set_seed

    set_seed(job.config.seed)
    require_hardware_for(job.config)
    require_reachable(job.base_model, job.revision)
    model_config = read_model_config(job.base_model, job.revision)
    hardware = choose_hardware(job.config, model_config)
    for reason in hardware.reasons:
        log.info("Chose %s", reason)
    tokenizer = load_tokenizer(job.base_model, job.revision)
    for reason in adapt_template(tokenizer, job.config.system_message):
        log.info("Chose %s", reason)
    max_length = fitting_length(model_config, job.config.max_length)

    if is_first():
        claim_checkpoints(job.checkpoint_dir, job.fingerprint())
    eval_chats, _ = encode_chats(held_out, tokenizer, max_length, job.eval_file.name)
    plan = TokenPlan(file=job.train_file, max_length=max_length, short_context=short_context(model_config))
    told = partial(reporting.events.emit, "tokenising")
    train_chats = tokenise(plan, tokenizer, job.checkpoint_dir / "tokens", told).chats()
    summary = train_chats.summary
    stop_token_ids = set(summary.stop_token_ids)
    supervision = supervision_of(summary)
    require_supervision(supervision, job.train_file.name, max_length, job.config.max_left_out_share)

    model = load_model(job.base_model, job.revision, hardware, held_to_train(job.config.method, hardware))
    ensure_pad_token(tokenizer, model, stop_token_ids)
    require_learned_stop(train_chats.learns, stop_token_ids, tokenizer, job.train_file.name)
    stop_at(model, tokenizer, stop_token_ids)
    mean_length = summary.num_tokens / (summary.num_rows if hardware.packing else summary.num_chats)
    choose_threads(model, job.config.per_device_train_batch_size * mean_length)
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    log.info("Loaded base_model=%s num_parameters=%d", job.base_model, num_parameters)
    return Run(
        job=replace(job, config=replace(job.config, max_length=max_length)),
        reporting=reporting,
        hardware=hardware,
        tokenizer=tokenizer,
        model=model,
        stored_dtype=_stored_dtype(model_config),
        train_chats=train_chats,
        eval_chats=eval_chats,
        stop_token_ids=stop_token_ids,
        supervision=supervision,
    )


def _stored_dtype(model_config: Any) -> Any:
    """The precision of the base model's own files, which the result keeps."""
    import torch

    dtype = getattr(model_config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
