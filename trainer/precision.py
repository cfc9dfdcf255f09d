"""How a model's weights are held in memory, by what is done with them.

- full: 32 bits, which the optimizer changes; bf16 arithmetic casts from them.
- lora: frozen, and so in bf16 on a GPU, in half the memory; the matrices that learn are in 32 bits.
- qlora: frozen in 4 bits (normal float, its scales quantised too: Dettmers et al., "QLoRA", 2023), computed in bf16.
  What peft's own preparation would do besides, it leaves: embeddings, norms and head stay in 16 bits, for nothing
  of them learns, and norms compute in 32 bits whatever their weights are in.
- scored or merged: as the files have them.

A CPU computes in 32 bits, into which 16 fit exactly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.hardware import Hardware


def held_to_train(method: str, hardware: Hardware) -> dict[str, Any]:
    """What from_pretrained is told when the model is going to be trained by a method."""
    import torch

    if method == "qlora":
        return {
            "dtype": _arithmetic(hardware),
            "quantization_config": four_bits(_arithmetic(hardware)),
            "device_map": {"": hardware.device},
        }
    frozen = method == "lora"
    return {"dtype": _arithmetic(hardware) if frozen else torch.float32}


def held_as_stored(hardware: Hardware) -> dict[str, Any]:
    """What from_pretrained is told when the weights are scored, or an adapter is merged into them."""
    import torch

    return {"dtype": torch.float32 if hardware.device == "cpu" else "auto"}


def four_bits(arithmetic: Any) -> Any:
    """bitsandbytes' 4-bit normal floats with quantised scales; the head stays as it is."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=arithmetic,
    )


def _arithmetic(hardware: Hardware) -> Any:
    import torch

    return torch.bfloat16 if hardware.bf16 and hardware.device != "cpu" else torch.float32
