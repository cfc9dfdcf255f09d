"""What a run computes on: device, precision and attention, each chosen by hardware and said why."""

from __future__ import annotations

from dataclasses import dataclass

from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.ranks import local_rank, world_size


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the run computes on, and each choice with its reason."""

    device: str
    bf16: bool
    attention: str
    packing: bool
    reasons: tuple[str, ...]


def choose_hardware(config: TrainConfig) -> Hardware:
    """Choose device, precision, attention and packing.

    Raises:
        TrainerError: the configuration asks for what this machine cannot do.
    """
    import importlib.util

    import torch

    gpu = torch.cuda.is_available()
    flash = gpu and importlib.util.find_spec("flash_attn") is not None
    if config.bf16 and not (gpu and torch.cuda.is_bf16_supported()):
        raise TrainerError(
            "train.bf16 is true, but this machine has no GPU with bfloat16.",
            "Leave train.bf16 out; it is chosen by hardware.",
            "configuration",
        )
    if config.method == "qlora" and not gpu:
        raise TrainerError(
            "train.method is qlora, but its 4-bit weights need an NVIDIA GPU and this machine has none.",
            "Set train.method to lora.",
            "configuration",
        )
    if config.attn_implementation == "flash_attention_2" and not flash:
        raise TrainerError(
            "train.attn_implementation is flash_attention_2, but flash-attn is not installed or there is no GPU.",
            "Set train.attn_implementation to auto.",
            "configuration",
        )
    bf16 = bool(gpu and torch.cuda.is_bf16_supported() and config.bf16 is not False)
    attention, why = config.attn_implementation, "as configured"
    if attention == "auto":
        attention = "flash_attention_2" if flash and bf16 else "documents"
        why = "flash-attn is installed" if flash and bf16 else "each conversation by itself, without padding"
    packing = config.packing
    reasons = [f"attention={attention} ({why})", f"precision={'bf16' if bf16 else 'fp32'}"]
    device = f"cuda:{local_rank()}" if gpu and world_size() > 1 else "cuda" if gpu else "cpu"
    return Hardware(device, bf16, attention, packing, tuple(reasons))
