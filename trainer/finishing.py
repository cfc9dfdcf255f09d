"""From trained weights to the model that is scored and packaged: merged, verified, rounded to the base's precision."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.adapters import save_adapter, with_adapters
from trainer.merging import (
    MergeReport,
    forget,
    logits_of,
    merge_in_place,
    merge_into_stored,
    probe_rows,
    round_weights,
)
from trainer.model import fit_tokenizer, load_model, stop_at
from trainer.precision import held_as_stored, held_to_train
from trainer.provenance import public_name
from trainer.ranks import is_first

if TYPE_CHECKING:
    from trainer.job import Run


@dataclass(frozen=True, slots=True)
class Finished:
    """What training left.

    Args:
        model: plain and whole, its values those that will be stored; None in all processes but the first, of those
            that shared it in parts.
        adapter: folder with the adapter in peft's layout; None where every weight learned.
        merge: what merging changed.
    """

    model: Any
    adapter: Path | None = None
    merge: MergeReport | None = None


def finish_model(run: Run, trainer: Any) -> Finished:
    """Take the model out of the loop; afterwards neither run nor trainer holds what was trained.

    Raises:
        TrainerError: the merged model says something else than the one that was trained.
    """
    run.model = None
    if run.distribution == "fsdp" and not gather_model(run, trainer):
        return Finished(None)
    if run.config.method == "full":
        finished = Finished(trainer.accelerator.unwrap_model(trainer.model))
    else:
        finished = _merged(run, trainer)
    forget(trainer)
    round_weights(finished.model, run.stored_dtype)
    finished.model.config.use_cache = True
    stop_at(finished.model, run.tokenizer, run.stop_token_ids)
    return finished


def model_as_stored(run: Run) -> Any:
    """The base model in the precision of its files, read anew, with the run's tokenizer."""
    job = run.job
    model = load_model(job.base_model, job.revision, run.hardware, held_as_stored(run.hardware))
    fit_tokenizer(model, run.tokenizer)
    stop_at(model, run.tokenizer, run.stop_token_ids)
    return model


def gather_model(run: Run, trainer: Any) -> bool:
    """Put the parts of a sharded model together in the first process, in a model read anew; whether this is the one."""
    whole = trainer.whole_state()
    if is_first():
        job, hardware = run.job, run.hardware
        model: Any = load_model(job.base_model, job.revision, hardware, held_to_train(run.config.method, hardware))
        fit_tokenizer(model, run.tokenizer)
        model = model if run.config.method == "full" else with_adapters(model, run.config)
        model.load_state_dict(whole)
        trainer.model = trainer.model_wrapped = model
    return is_first()


def _merged(run: Run, trainer: Any) -> Finished:
    adapted = trainer.accelerator.unwrap_model(trainer.model)
    folder = Path(tempfile.mkdtemp(prefix="phiflow-adapter-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    save_adapter(adapted, folder, public_name(run.job.base_model))
    rows = probe_rows(trainer.train_dataset)
    if _holds_base(run):
        merged, report = merge_in_place(adapted, rows, run.stored_dtype)
        return Finished(merged, folder, report)
    trained = logits_of(adapted, rows)
    del adapted
    forget(trainer)
    merged, report = merge_into_stored(folder, lambda: model_as_stored(run), rows, trained, run.stored_dtype)
    return Finished(merged, folder, report)


def _holds_base(run: Run) -> bool:
    """Whether the weights that were trained on are exactly those of the base model's files."""
    held = held_to_train(run.config.method, run.hardware)
    return "quantization_config" not in held and held["dtype"] in (torch.float32, run.stored_dtype)
