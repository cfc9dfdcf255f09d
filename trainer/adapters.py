"""LoRA: small matrices beside the linear layers of the transformer blocks learn; the weights themselves are frozen.

Every linear layer gets them, those of the MLP included: on the attention's alone LoRA learns less (Schulman et al.,
"LoRA Without Regret", 2025).
"""

from __future__ import annotations

import difflib
import json
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config import ALL_LINEAR, TrainConfig
from trainer.errors import TrainerError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

# Names of the layer that sends a token to its experts; its few outputs decide too much to learn at LoRA's rate.
_ROUTER = re.compile(r"(^|_)(router|gate)$")


def with_adapters(model: PreTrainedModel, config: TrainConfig) -> PeftModel:
    """Freeze the model and put LoRA matrices in 32 bits beside its linear layers.

    Raises:
        TrainerError: `lora_target_modules` names what the model has not.
    """
    from peft import LoraConfig, get_peft_model

    targets = chosen_targets(model, config.lora_target_modules)
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        lora_dropout=config.lora_dropout,
        target_modules=targets,
    )
    adapted = get_peft_model(model, lora)
    # What it would otherwise ask the hub about, at each checkpoint.
    adapted.peft_config["default"].base_model_name_or_path = None
    learning, total = adapted.get_nb_trainable_parameters()
    log.info("Chose lora_target_modules=%s num_learning=%d of %d", ",".join(targets), learning, total)
    return adapted


def linear_layers(model: PreTrainedModel) -> list[str]:
    """Names, within their block, of the linear layers that LoRA can learn beside: neither the head nor routers.

    bitsandbytes' 4-bit layers are linear layers too.
    """
    import torch

    head = model.get_output_embeddings()
    names = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not head
    }
    return sorted(name for name in names if not _ROUTER.search(name))


def chosen_targets(model: PreTrainedModel, wanted: str) -> list[str]:
    """The layers that `lora_target_modules` names.

    Raises:
        TrainerError: the nearest name, for one that the model has not.
    """
    known = linear_layers(model)
    if not known:
        raise TrainerError(
            f"A {type(model).__name__} has no linear layers that LoRA could learn beside.",
            "Set train.method to full.",
            "configuration",
        )
    if wanted == ALL_LINEAR:
        return known
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in known:
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"Did you mean {nearest[0]}? " if nearest else ""
            raise TrainerError(
                f"train.lora_target_modules names {name!r}, which is no linear layer of {type(model).__name__} "
                "that LoRA can learn beside.",
                f"{hint}The ones there are: {', '.join(known)}.",
                "configuration",
            )
    return sorted(set(names))


def save_adapter(adapted: PeftModel, folder: Path, base: str) -> None:
    """Write the adapter in peft's layout; a small part of the model, to be loaded onto the base that it names.

    Args:
        base: hub id of the base model, or what else people know it by; never a path of this machine.
    """
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    (folder / "README.md").unlink(missing_ok=True)  # a form that nobody filled in
    config = folder / "adapter_config.json"
    settings: dict[str, Any] = json.loads(config.read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base
    settings["target_modules"] = sorted(settings["target_modules"])  # a set, in another order each time
    config.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n", encoding="utf-8")
