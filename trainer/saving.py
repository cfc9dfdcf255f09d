"""Writes checkpoints and goes on from them exactly: whole or unmarked, and an error before a disk is full."""

from __future__ import annotations

import errno
import json
import logging
import math
import time
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoints import discard_checkpoint, mark_complete, prune, written_files
from trainer.disk import require_space, shown_bytes
from trainer.errors import TrainerError
from trainer.guard import Guard
from trainer.interruption import GRACE_SECONDS
from trainer.ranks import gathered, is_first, of_first, rank, summed
from trainer.sharding import ShardingTrainer

log = logging.getLogger(__name__)

_TOKENIZER_BYTES = 64 * 2**20  # tokenizer, states of scheduler and random numbers: little, whatever the model
_FULL = {errno.ENOSPC, errno.EDQUOT}


class SavingTrainer(ShardingTrainer):
    """Trainer whose checkpoints are sealed by checkpoints.py.

    A callback that has state_dict() and load_state_dict() is kept in each, by its class, for each process.

    Args:
        save_total_limit: finished checkpoints kept; the best one, and a new one until it is whole, come on top.
    """

    guard: Guard
    save_total_limit: int

    def train(self, resume_from_checkpoint: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Train, from a checkpoint's step on when one is given."""
        self._resumed_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        self._begun = False
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self._begun:
            self._begun = True
            self._restore()
        # Without this a training that is resumed at its end, or where it had stopped early, would do one step more.
        if self.control.should_training_stop or self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)

    def _get_grad_norm(self, model: Any, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        if isinstance(norm, torch.distributed.tensor.DTensor):
            norm = norm.full_tensor()
        self.guard.grad_norm = norm
        return norm

    def _save_checkpoint(self, model: Any, trial: Any = None) -> None:
        """Write everything, agree that all of it is written, seal it, and only then let older ones go."""
        begun = time.monotonic()
        folder = Path(self.args.output_dir)
        checkpoint = folder / f"checkpoint-{self.state.global_step}"
        self._require_space(1)
        if is_first():
            discard_checkpoint(checkpoint)  # what is left of another attempt's
        of_first(None)
        failure, files = None, {}
        try:
            self._write(checkpoint)
            files = written_files(checkpoint, rank())
        except Exception as error:  # the other processes must hear of it, whatever it is
            failure = error
        if summed([float(failure is not None)], str(self.args.device))[0]:
            if is_first():
                discard_checkpoint(checkpoint)
            raise self._explained(failure, checkpoint)
        all_files = {name: file for each in gathered(files) for name, file in each.items()}
        if is_first():
            mark_complete(checkpoint, self.state.global_step, all_files)
            best = Path(self.state.best_model_checkpoint or "").name
            needed = {best, f"checkpoint-{self.state.best_global_step}"}
            prune(folder, self.state.global_step, self.save_total_limit, needed)
        self._tell(time.monotonic() - begun, sum(file["size"] for file in all_files.values()))

    def _write(self, checkpoint: Path) -> None:
        checkpoint.mkdir(parents=True, exist_ok=True)
        self.store_flos()
        self.save_model(str(checkpoint), _internal_call=True)
        self._save_optimizer_and_scheduler(str(checkpoint))
        self._save_scaler(str(checkpoint))
        self._save_rng_state(str(checkpoint))
        progress = {
            "loss_since_logged": self._tr_loss.item(),
            "step_last_logged": self._globalstep_last_logged,
            "callbacks": {type(callback).__name__: callback.state_dict() for callback in self._stateful()},
        }
        (checkpoint / f"progress_{rank()}.json").write_text(json.dumps(progress), encoding="utf-8")
        if is_first():
            self.state.save_to_json(str(checkpoint / "trainer_state.json"))

    def _restore(self) -> None:
        """Put back what transformers does not keep; without a checkpoint, see that there is space for some."""
        if not self._resumed_from:
            num_saves = math.ceil(self.state.max_steps / self.args.save_steps)
            self._require_space(min(num_saves, self.save_total_limit + 1))
            return
        progress = json.loads((self._resumed_from / f"progress_{rank()}.json").read_text(encoding="utf-8"))
        self._tr_loss.fill_(progress["loss_since_logged"])
        self._globalstep_last_logged = progress["step_last_logged"]
        for callback in self._stateful():
            if kept := progress["callbacks"].get(type(callback).__name__):
                callback.load_state_dict(kept)

    def _stateful(self) -> list[Any]:
        return [callback for callback in self.callback_handler.callbacks if hasattr(callback, "load_state_dict")]

    def _require_space(self, most: int) -> None:
        """Refuse to begin what the disk cannot hold: as many checkpoints as are there at a time."""
        problem = None
        needed = self._checkpoint_bytes()
        if is_first():
            try:
                require_space(Path(self.args.output_dir), needed, most)
            except TrainerError as error:
                problem = error
        if problem := of_first(problem):
            raise problem

    def _checkpoint_bytes(self) -> int:
        """What one checkpoint takes: the weights that are saved, and what the optimizer keeps for each."""
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        num_learning = sum(parameter.numel() for parameter in parameters)
        kept = [value for state in self.optimizer.state.values() for value in state.values()]
        optimizer = sum(value.numel() * value.element_size() for value in kept if isinstance(value, torch.Tensor))
        whole = sum(parameter.numel() * parameter.element_size() for parameter in self._saved_parameters())
        return whole + (optimizer or 8 * num_learning) + _TOKENIZER_BYTES

    def _saved_parameters(self) -> list[torch.Tensor]:
        """Adapters alone are saved where they alone learn."""
        parameters = list(self.model.parameters())
        return [p for p in parameters if p.requires_grad] if hasattr(self.model, "peft_config") else parameters

    def _explained(self, failure: Exception | None, checkpoint: Path) -> Exception:
        if failure is None:
            return TrainerError(
                f"Another process could not write {checkpoint.name}.", "Read its error.", "configuration"
            )
        if isinstance(failure, TrainerError) or not _is_full(failure):
            return failure
        return TrainerError(
            f"The disk was full while {checkpoint.name} was written to {checkpoint.parent}, which takes about "
            f"{shown_bytes(self._checkpoint_bytes())}; what there was of it is removed, those before it stay.",
            "Free some space, lower train.save_total_limit, set train.method to lora, or give another "
            "--checkpoint-dir; then run the same command again.",
            "configuration",
        )

    def _tell(self, seconds: float, size: int) -> None:
        slow = seconds > GRACE_SECONDS and (self.guard.checkpoint_seconds or 0.0) <= GRACE_SECONDS
        self.guard.checkpoint_seconds = seconds
        if slow and is_first():
            log.warning(
                "Wrote a checkpoint of %s in %.0f s, longer than the %.0f s that a preempted machine is given: "
                "a preemption loses the steps since the last one, so lower train.save_steps",
                shown_bytes(size), seconds, GRACE_SECONDS,
            )  # fmt: skip


def _is_full(error: BaseException) -> bool:
    """Whether a write failed for want of space, said by the system or by a library in its own words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in _FULL:
            return True
        text = str(seen)
        if any(words in text for words in ("No space left", "os error 28", "quota exceeded", "os error 122")):
            return True
        # torch's archive writer drops the reason.
        if isinstance(seen, RuntimeError) and ("PytorchStreamWriter" in text or "inline_container" in text):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
