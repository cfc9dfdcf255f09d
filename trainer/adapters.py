"""LoRA: small matrices beside the linear layers learn, and are folded into them at the end."""

from __future__ import annotations

import logging
from typing import Any

from trainer.config import TrainConfig
from trainer.errors import TrainerError

log = logging.getLogger(__name__)


def with_adapters(model: Any, config: TrainConfig) -> Any:
    """LoRA on every linear layer of the transformer blocks; the output layer stays as it is."""
    import torch
    from peft import LoraConfig, get_peft_model

    head = model.get_output_embeddings()
    targets = {
        name.rsplit(".", 1)[-1]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=sorted(targets),
    )
    return get_peft_model(model, lora)


def merge_lora(model: Any, probe_ids: list[int]) -> Any:
    """Fold LoRA matrices into the weights and check that the model still says the same.

    Raises:
        TrainerError: the merged model's logits differ.
    """
    import torch

    model.eval()
    probe = torch.tensor([probe_ids], device=model.device)
    with torch.no_grad():
        before = model(input_ids=probe).logits.float()
        merged = model.merge_and_unload()
        difference = (merged(input_ids=probe).logits.float() - before).abs().max().item()
    scale = max(before.abs().max().item(), 1.0)
    if not difference <= 1e-2 * scale:
        raise TrainerError(f"Merging LoRA changed the model: logits differ by {difference:.3g}.", "Report this.", "bug")
    log.info("Merged LoRA largest_logit_difference=%.2g", difference)
    return merged
