"""What a run computes on: device, precision and attention, each chosen by hardware and said why."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass
from typing import Any

from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.ranks import local_rank, world_size

# Parameters from which a CPU that multiplies bfloat16 uses it. Measured on two cores with avx512_bf16: a pass takes 1.1
# to 1.4 times as long in 32 bits for 2 million parameters and short rows, 1.7 to 1.9 times for 6 million and long ones.
_CPU_BF16_FROM = 5_000_000
_ISOLATED_LAYERS = {"full_attention", "sliding_attention"}


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the run computes on, and each choice with its reason.

    Args:
        device: cpu, cuda, or cuda:N of one of several processes.
        bf16: matrices are multiplied in bfloat16; weights and sums stay in 32 bits.
        packing: rows hold several conversations.
    """

    device: str
    bf16: bool
    attention: str
    packing: bool
    reasons: tuple[str, ...]


def require_hardware_for(config: TrainConfig) -> None:
    """Refuse a method that cannot run here, before anything is downloaded.

    Raises:
        TrainerError: QLoRA without a GPU, or without bitsandbytes.
    """
    import torch

    if config.method == "qlora" and not importlib.util.find_spec("bitsandbytes"):
        raise TrainerError(
            "train.method is qlora, but this environment has no bitsandbytes, which holds weights in 4 bits.",
            "Add bitsandbytes to the training environment, or set train.method to lora.",
            "configuration",
        )
    if config.method == "qlora" and not torch.cuda.is_available():
        raise TrainerError(
            "train.method is qlora, but its 4-bit weights need an NVIDIA GPU and this machine has none.",
            "Set train.method to lora.",
            "configuration",
        )


def choose_hardware(config: TrainConfig, model_config: Any = None) -> Hardware:
    """Choose device, precision, attention and packing.

    Args:
        model_config: of the base model, transformers'; without it nothing is known of the model.
    Raises:
        TrainerError: the configuration asks for what this machine cannot do.
    """
    import torch

    gpu = torch.cuda.is_available()
    bf16, why_bf16 = _precision(config, gpu, model_config)
    packing, why_packing = _packing(config, model_config)
    attention, why = _attention(config, gpu and bf16, packing, model_config)
    reasons = (
        f"attention={attention} ({why})",
        f"precision={'bf16' if bf16 else 'fp32'} ({why_bf16})",
        f"packing={str(packing).lower()} ({why_packing})",
    )
    device = f"cuda:{local_rank()}" if gpu and world_size() > 1 else "cuda" if gpu else "cpu"
    return Hardware(device, bf16, attention, packing, reasons)


def _precision(config: TrainConfig, gpu: bool, model_config: Any) -> tuple[bool, str]:
    import torch

    if gpu:
        supported = torch.cuda.is_bf16_supported(including_emulation=False)
        name = torch.cuda.get_device_name()
    else:
        supported = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        name = "this CPU"
    if config.bf16 and not supported:
        raise TrainerError(
            f"train.bf16 is true, but {name} has no bfloat16 arithmetic.",
            "Leave train.bf16 out; it is chosen by hardware.",
            "configuration",
        )
    if config.bf16 is not None:
        return config.bf16, "as configured"
    if not supported:
        return False, f"{name} has no bfloat16 arithmetic"
    if gpu:
        return True, f"{name} multiplies it faster"
    if model_config is None or (number := count_parameters(model_config)) < _CPU_BF16_FROM:
        return False, f"a model under {_CPU_BF16_FROM // 10**6} million parameters is fast in 32 bits"
    return True, f"{name} multiplies it natively, {number / 1e6:.0f} million parameters"


def _packing(config: TrainConfig, model_config: Any) -> tuple[bool, str]:
    """Conversations share rows only where nothing but attention mixes tokens."""
    mixing = set(getattr(_text(model_config), "layer_types", None) or ()) - _ISOLATED_LAYERS
    if config.packing and mixing:
        return False, f"the model's {', '.join(sorted(mixing))} layers would mix conversations"
    return config.packing, "as configured"


def _attention(config: TrainConfig, gpu_bf16: bool, packing: bool, model_config: Any) -> tuple[str, str]:
    """The attention's name and why; of the configured one, whether it can be had."""
    import torch

    wanted = config.attn_implementation
    sm80 = gpu_bf16 and torch.cuda.get_device_capability() >= (8, 0)
    flash = sm80 and importlib.util.find_spec("flash_attn") is not None
    possible = {"flash_attention_2": flash, "varlen": sm80, "flex": torch.cuda.is_available()}
    if not possible.get(wanted, True):
        needs = {
            "flash_attention_2": "flash-attn and a GPU that computes in bfloat16 (compute capability 8.0)",
            "varlen": "a GPU that computes in bfloat16 (compute capability 8.0)",
            "flex": "a GPU",
        }[wanted]
        raise TrainerError(
            f"train.attn_implementation is {wanted}, but this machine lacks {needs}.",
            "Set train.attn_implementation to auto.",
            "configuration",
        )
    if wanted != "auto":
        return wanted, "as configured"
    if special := _special_attention(model_config):
        return "eager", f"the model's attention has {special}"
    if set(getattr(_text(model_config), "layer_types", None) or ()) - _ISOLATED_LAYERS:
        return "sdpa", "one conversation a row, for layers that are no attention"
    if flash:
        return "flash_attention_2", "flash-attn is installed"
    if sm80 and _kernel_fits(model_config):
        return "varlen", "torch's own kernel over rows without padding"
    return "documents", "each conversation by itself, without padding"


def _special_attention(model_config: Any) -> str | None:
    """What of the model's attention the fast kernels leave out."""
    text = _text(model_config)
    if getattr(text, "attn_logit_softcapping", None):
        return "capped scores"
    return "sinks" if getattr(text, "model_type", "") == "gpt_oss" else None


def _kernel_fits(model_config: Any) -> bool:
    """Whether torch's flash attention takes the model's heads; dropout it does not know."""
    text = _text(model_config)
    if text is None:
        return False
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return size % 8 == 0 and size <= 256 and not getattr(text, "attention_dropout", 0.0)


def _text(model_config: Any) -> Any:
    return model_config.get_text_config() if model_config is not None else None


def short_context(model_config: Any) -> int | None:
    """Tokens up to which a conversation has a longrope model's short rotary factors; None for other models."""
    rope = getattr(_text(model_config), "rope_parameters", None) or {}
    return rope.get("original_max_position_embeddings") if rope.get("rope_type") == "longrope" else None


def count_parameters(model_config: Any) -> int:
    """Of the model, without its weights."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return int(AutoModelForCausalLM.from_config(model_config).num_parameters())
