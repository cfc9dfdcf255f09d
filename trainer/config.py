"""The training configuration: the only definition of a hyperparameter, importable without torch.

Fields are named as TRL and transformers name them; the defaults are for full fine-tuning of a Phi model.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any, get_args, get_type_hints

# Full: Microsoft's sample for Phi-3. LoRA wants at least ten times the rate of full fine-tuning (Schulman et al., "LoRA
# Without Regret", 2025), of which few steps need warming up: both as in the scripts of QLoRA's authors.
_LEARNING_RATES = {"full": 5e-6, "lora": 2e-4, "qlora": 2e-4}
_WARMUP_RATIOS = {"full": 0.2, "lora": 0.03, "qlora": 0.03}
ALL_LINEAR = "all-linear"
_SCHEDULERS = ("cosine", "linear", "constant", "constant_with_warmup", "polynomial", "inverse_sqrt")


class TrainConfigError(ValueError):
    """A value of the training configuration cannot be used."""


def _field(default: Any, about: str, **limits: Any) -> Any:
    return field(default=default, metadata={"help": about, **limits})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Everything that decides how a model is trained and evaluated, besides the data and the base model.

    Raises:
        TrainConfigError: names the field, the value and what is allowed.
    """

    method: str = _field("full", "which weights learn", choices=("full", "lora", "qlora"))
    num_train_epochs: float = _field(3.0, "passes over the training data", above=0, most=10_000)
    max_steps: int = _field(-1, "optimizer steps; -1 means num_train_epochs decides", least=-1, not_zero=True)
    learning_rate: float | None = _field(
        None, "peak learning rate; null means 5e-6 for full, 2e-4 for lora and qlora", above=0, most=1
    )
    lr_scheduler_type: str = _field("cosine", "shape of the learning rate", choices=_SCHEDULERS)
    warmup_ratio: float | None = _field(
        None, "share of the steps that warm up; null means 0.2 for full, 0.03 for lora and qlora", least=0, most=0.9
    )
    weight_decay: float = _field(0.0, "AdamW weight decay", least=0, most=1)
    max_grad_norm: float = _field(1.0, "gradient norm is clipped to this", above=0, most=1000)
    per_device_train_batch_size: int = _field(
        4, "rows a step and device: packed ones, or else conversations", least=1, most=4096
    )
    per_device_eval_batch_size: int = _field(4, "conversations a forward pass when evaluating", least=1, most=4096)
    gradient_accumulation_steps: int = _field(1, "forward passes an optimizer step", least=1, most=4096)
    gradient_checkpointing: bool | None = _field(
        None, "recompute activations to save memory; null means only where it does not fit otherwise"
    )
    max_length: int = _field(2048, "conversations are cut after this many tokens", least=8, most=1_048_576)
    max_left_out_share: float = _field(
        0.1, "share of the conversations that may be left out, as no answer begins within max_length", least=0, most=1
    )
    packing: bool = _field(True, "fill rows of max_length tokens with whole conversations, which do not see each other")
    group_by_length: bool = _field(True, "batches of like lengths, where rows must be padded")
    system_message: str | None = _field(
        None, "put before a conversation that has no system message, when training and when serving; null: nothing"
    )
    bf16: bool | None = _field(None, "bfloat16 arithmetic; null means where the hardware is faster with it")
    attn_implementation: str = _field(
        "auto",
        "attention kernel; auto chooses by hardware",
        choices=("auto", "varlen", "flash_attention_2", "flex", "documents", "sdpa", "eager"),
    )
    optim: str = _field(
        "auto",
        "optimizer; auto: AdamW, fused, in 8 bits where 32 do not fit",
        choices=("auto", "adamw_torch_fused", "adamw_torch", "adamw_8bit", "paged_adamw_8bit"),
    )
    torch_compile: bool | None = _field(None, "compile the model; null means where it pays")
    distribution: str = _field(
        "auto",
        "how several processes share a model; auto: fsdp where one GPU cannot hold it",
        choices=("auto", "ddp", "fsdp"),
    )
    lora_target_modules: str = _field(
        ALL_LINEAR, "layers beside which LoRA matrices learn: all-linear, or names with commas between them"
    )
    lora_r: int = _field(16, "rank of the LoRA matrices", least=1, most=4096)
    lora_alpha: int = _field(32, "LoRA scale is lora_alpha / lora_r", least=1, most=65_536)
    lora_dropout: float = _field(0.05, "dropout in front of the LoRA matrices", least=0, most=0.9)
    seed: int = _field(0, "seed of everything random", least=0, most=2**32 - 1)
    logging_steps: int = _field(20, "steps between two points of the loss curve", least=1)
    save_steps: int = _field(500, "steps between two checkpoints", least=1)
    save_total_limit: int = _field(2, "checkpoints kept", least=1, most=1000)
    eval_strategy: str = _field("epoch", "when to evaluate during training", choices=("no", "epoch", "steps"))
    eval_steps: int = _field(500, "steps between two evaluations, for eval_strategy: steps", least=1)
    early_stopping_patience: int = _field(
        0, "evaluations without a better loss that end the training; 0: none do", least=0, most=10_000
    )
    max_eval_examples: int = _field(
        2000, "test conversations scored, always the same; the rest is left out", least=1, most=10_000_000
    )
    sample_steps: int = _field(0, "steps between two rounds of sample answers; 0: with each evaluation", least=0)
    preview_examples: int = _field(
        3, "conversations shown before the training with what is learned marked", least=0, most=100
    )
    num_samples: int = _field(3, "sample answers in the result", least=0, most=1000)
    num_eval_generations: int = _field(
        32, "test conversations answered for exact_match; 0 skips it", least=0, most=100_000
    )
    max_new_tokens_eval: int = _field(128, "longest answer generated when evaluating, tokens", least=1, most=8192)
    command: str = _field("", "another trainer's command, run instead of this one; see the README for its contract")
    command_dir: str = _field("", "folder with that trainer's files; it travels with the job")

    def __post_init__(self) -> None:
        for spec in dataclasses.fields(self):
            _check(spec, getattr(self, spec.name))
        if self.num_samples > self.num_eval_generations:
            object.__setattr__(self, "num_samples", self.num_eval_generations)
        if self.early_stopping_patience and self.eval_strategy == "no":
            raise TrainConfigError(
                f"train.early_stopping_patience is {self.early_stopping_patience}, but train.eval_strategy is no, so "
                "nothing is evaluated. Set train.eval_strategy to epoch or steps."
            )

    @property
    def peak_learning_rate(self) -> float:
        """The learning rate in use: the one given, or the method's default."""
        return _LEARNING_RATES[self.method] if self.learning_rate is None else self.learning_rate

    @property
    def warmup_share(self) -> float:
        """The warm-up in use: the one given, or the method's default."""
        return _WARMUP_RATIOS[self.method] if self.warmup_ratio is None else self.warmup_ratio

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> TrainConfig:
        """Build a configuration from JSON or YAML values, refusing what is unknown or of the wrong type."""
        if not isinstance(values, dict):
            raise TrainConfigError(f"train must hold keys and values, not {_shown(values)}.")
        hints = get_type_hints(cls)
        for key in values:
            if key not in hints:
                raise TrainConfigError(f"train.{key} is not a known key. {_nearest(key, hints)}")
        return cls(**{key: _convert(key, value, hints[key]) for key, value in values.items()})

    def to_dict(self) -> dict[str, Any]:
        """Every field with its value, for JSON."""
        return dataclasses.asdict(self)


def _nearest(key: Any, known: dict[str, Any]) -> str:
    matches = difflib.get_close_matches(str(key), known, n=1, cutoff=0.5)
    return f"Did you mean train.{matches[0]}?" if matches else f"Known: {', '.join(known)}."


def _convert(key: str, value: Any, hint: Any) -> Any:
    allowed = get_args(hint) or (hint,)
    if value is None and type(None) in allowed:
        return None
    if float in allowed:
        if isinstance(value, int) and not isinstance(value, bool):
            return float(value)
        if isinstance(value, str):  # YAML reads 5e-6 as text
            try:
                return float(value)
            except ValueError:
                pass
    if type(value) in allowed:
        return value
    if int in allowed and isinstance(value, float) and value.is_integer():
        return int(value)
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "null"}
    wanted = " or ".join(names[kind] for kind in allowed)
    raise TrainConfigError(f"train.{key} must be {wanted}, not {_shown(value)}.")


def _check(spec: dataclasses.Field[Any], value: Any) -> None:
    limits = spec.metadata
    if value is None or isinstance(value, bool):
        return
    if "choices" in limits:
        if value not in limits["choices"]:
            matches = difflib.get_close_matches(str(value), limits["choices"], n=1)
            hint = f" Did you mean {matches[0]}?" if matches else ""
            raise TrainConfigError(
                f"train.{spec.name} must be one of {', '.join(limits['choices'])}, not {_shown(value)}.{hint}"
            )
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise TrainConfigError(f"train.{spec.name} must be a finite number, not {value}.")
    if "above" in limits and value <= limits["above"]:
        raise TrainConfigError(f"train.{spec.name} must be above {limits['above']}, not {value}.")
    if "least" in limits and value < limits["least"]:
        raise TrainConfigError(f"train.{spec.name} must be at least {limits['least']}, not {value}.")
    if "most" in limits and value > limits["most"]:
        raise TrainConfigError(f"train.{spec.name} must be at most {limits['most']}, not {value}.")
    if limits.get("not_zero") and value == 0:
        raise TrainConfigError(f"train.{spec.name} must not be 0; -1 means num_train_epochs decides.")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
