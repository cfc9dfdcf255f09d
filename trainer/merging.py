"""Folds what LoRA learned into the base model's weights, and makes sure that the model still says the same.

What is packaged is one plain model, which any server loads. The weights that are merged into are the base model's
own, in the precision of its files: those that were cast or quantised for training are dropped and read again.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from trainer.errors import TrainerError

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

# Most that rounding may change in the logits, as a share of their spread (root mean squares). Merging rounds each
# weight once, by half a unit in its last place (2^-9 of it in bf16, 2^-12 in fp16), and the merged model rounds its
# activations at other places than the adapter's; measured in bf16 on random networks of 4 and 32 layers: 0.9 to 2.8 %.
_TOLERANCE = {torch.bfloat16: 0.1, torch.float16: 0.0125, torch.float32: 0.001}
_POSITIONS = 64  # of each conversation whose logits are compared
_LONGEST = 4096  # tokens


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What merging changed, each as a share of the logits' spread over `num_rows` conversations.

    Args:
        difference: of the merged model from the adapter on the same base weights.
        learned: of the adapter from the base: what training changed.
        quantised_difference: of the merged model from the 4-bit one that was trained; None without 4 bits.
    """

    difference: float
    learned: float
    quantised_difference: float | None
    num_rows: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)


def probe_rows(dataset: Any, num_rows: int = 4, num_looked_at: int = 256) -> list[list[int]]:
    """Token ids of a few conversations that were trained on: the longest of those looked at, and others.

    Args:
        dataset: of Rows; of each, the first conversation is looked at.
    """
    places = range(0, len(dataset), max(1, len(dataset) // num_looked_at))
    found = []
    for place in places:
        row = dataset[place]
        found.append([int(token) for token in row.input_ids[: min(int(row.lengths[0]), _LONGEST)]])
    longest = max(range(len(found)), key=lambda i: len(found[i]))
    others = [i * len(found) // num_rows for i in range(num_rows)]
    return [found[i] for i in sorted({longest, *others})]


def logits_of(model: Any, rows: Sequence[list[int]]) -> list[torch.Tensor]:
    """Logits at positions spread evenly over each row, in 32 bits on the CPU."""
    model.eval()
    found = []
    for row in rows:
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row], device=model.device), use_cache=False).logits[0]
        # From the end, so that the last position, which has seen all of the row, is among them.
        found.append(logits.flip(0)[:: max(1, len(row) // _POSITIONS)].float().cpu())
    return found


def merge_in_place(adapted: PeftModel, rows: Sequence[list[int]], dtype: torch.dtype) -> tuple[Any, MergeReport]:
    """Merge into the weights that the adapter lies on, round them as they will be stored, and verify.

    Raises:
        TrainerError: the merged model's logits are others.
    """
    with adapted.disable_adapter():
        base = logits_of(adapted, rows)
    adapter = logits_of(adapted, rows)
    merged = adapted.merge_and_unload()
    round_weights(merged, dtype)
    report = _compared(base, adapter, logits_of(merged, rows))
    _require_equal(report, dtype)
    log.info("Merged LoRA relative_difference=%.2g learned=%.2g precision=%s", report.difference, report.learned, dtype)
    return merged, report


def merge_into_stored(
    adapter_folder: Path,
    load_base: Callable[[], Any],
    rows: Sequence[list[int]],
    trained: Sequence[torch.Tensor],
    dtype: torch.dtype,
) -> tuple[Any, MergeReport]:
    """Put the adapter on the base as its files have it, merge, verify, and say how far that is from what was trained.

    Args:
        load_base: reads the base model again; what was trained must be gone by then, for the memory.
        trained: logits of the model that was trained, cast or quantised.
    """
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(load_base(), str(adapter_folder))
    merged, report = merge_in_place(adapted, rows, dtype)
    now = logits_of(merged, rows)
    difference = _relative(now, trained, now)
    log.info("Merged into the base as stored: relative_difference from the model that was trained=%.2g", difference)
    return merged, MergeReport(report.difference, report.learned, difference, report.num_rows)


def round_weights(model: Any, dtype: torch.dtype) -> None:
    """Round the weights as they will be stored; on a CPU they stay in 32 bits, which it computes faster.

    Buffers stay as they are: the angles of rotary positions, rounded, are other positions.
    """
    for parameter in model.parameters():
        rounded = parameter.data.to(dtype)
        parameter.data = rounded.float() if rounded.device.type == "cpu" else rounded


def forget(trainer: Any) -> None:
    """Let go of the model, gradients and optimizer that a transformers Trainer holds."""
    for holder in (trainer, trainer.callback_handler):
        holder.model = holder.optimizer = holder.lr_scheduler = None
    trainer.model_wrapped = None
    trainer.accelerator.free_memory()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _compared(base: list[torch.Tensor], adapter: list[torch.Tensor], merged: list[torch.Tensor]) -> MergeReport:
    return MergeReport(
        difference=_relative(merged, adapter, adapter),
        learned=_relative(adapter, base, adapter),
        quantised_difference=None,
        num_rows=len(adapter),
    )


def _relative(some: Sequence[torch.Tensor], others: Sequence[torch.Tensor], scale: Sequence[torch.Tensor]) -> float:
    """Root mean square difference over the standard deviation of `scale` at a position; adding a constant is nothing.

    That all logits of a position shift alike changes no probability, so their mean is taken off first.
    """
    changed = torch.cat([_centred(a - b).pow(2).mean(-1) for a, b in zip(some, others, strict=True)]).mean()
    spread = torch.cat([_centred(logits).pow(2).mean(-1) for logits in scale]).mean()
    return float((changed / spread.clamp_min(1e-12)).sqrt())


def _centred(logits: torch.Tensor) -> torch.Tensor:
    return logits - logits.mean(-1, keepdim=True)


def _require_equal(report: MergeReport, dtype: torch.dtype) -> None:
    """Refuse a merge that differs by more than rounding, or that lost half of what was learned where that shows."""
    most = _TOLERANCE.get(dtype, max(_TOLERANCE.values()))
    allowed = min(most, max(report.learned / 2, most / 3))
    if not report.difference <= allowed:
        raise TrainerError(
            f"Merging LoRA into {str(dtype).removeprefix('torch.')} weights changed the model: its logits differ by "
            f"{report.difference:.2%} of their spread, {allowed:.2%} is rounding's.",
            "Nothing was packaged. Report this, with the base model's name.",
            "bug",
        )
    if report.difference > report.learned / 2 and report.learned:
        log.warning(
            "LoRA learned little: it changed the logits by %.2g of their spread, and rounding them to %s by %.2g",
            report.learned,
            dtype,
            report.difference,
        )
