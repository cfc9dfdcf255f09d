"""How several processes share a model: each a copy (ddp), or each a part of it (fsdp, torch's fully_shard)."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from accelerate.state import DistributedType
from accelerate.utils import FullyShardedDataParallelPlugin
from peft import get_peft_model_state_dict
from torch.distributed.checkpoint.filesystem import FileSystem
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
)
from transformers import Trainer

from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.job import Run
from trainer.ranks import is_first, world_size

log = logging.getLogger(__name__)

# Beside the weights, of what learns: a gradient and two moments of AdamW's, in 32 bits. Adapters are small.
_LEARNING_BYTES = 12
_SHARE_FOR_WEIGHTS = 0.8  # of a GPU's memory; the rest is for activations


def choose_distribution(
    config: TrainConfig, num_parameters: int, weights_bytes: int, gpu_bytes: int
) -> tuple[str, str]:
    """Choose ddp or fsdp, and say why.

    Args:
        weights_bytes: of the model as it is held to train.
        gpu_bytes: memory of one GPU; 0 where there is none.
    Raises:
        TrainerError: fsdp is asked for with qlora.
    """
    if world_size() == 1:
        return "single", "one process"
    if config.method == "qlora":
        if config.distribution == "fsdp":
            raise TrainerError(
                "train.distribution is fsdp, but weights in 4 bits are not shared in parts here.",
                "Set train.distribution to ddp, or train.method to lora.",
                "configuration",
            )
        return "ddp", "weights in 4 bits are small"
    if config.distribution != "auto":
        return config.distribution, "as configured"
    needed = weights_bytes + (num_parameters * _LEARNING_BYTES if config.method == "full" else 0)
    if gpu_bytes and needed > _SHARE_FOR_WEIGHTS * gpu_bytes:
        return "fsdp", f"weights and optimizer take {needed / 1e9:.0f} GB, a GPU has {gpu_bytes / 1e9:.0f}"
    return "ddp", "each device can hold the model"


def distribute(run: Run) -> None:
    """Choose how the run's processes share its model."""
    gpu = torch.cuda.get_device_properties(run.hardware.device).total_memory if run.hardware.device != "cpu" else 0
    weights = sum(parameter.numel() * parameter.element_size() for parameter in run.model.parameters())
    run.distribution, why = choose_distribution(run.config, run.model.num_parameters(), weights, gpu)
    if run.distribution == "single":
        return
    log.info("Chose distribution=%s (%s)", run.distribution, why)
    run.hardware = replace(run.hardware, reasons=(*run.hardware.reasons, f"distribution={run.distribution} ({why})"))
    if run.distribution == "fsdp" and gpu:
        run.model.to("cpu")  # each process moves its part back
        torch.cuda.empty_cache()


def sharding_arguments(config: TrainConfig, checkpointing: bool) -> dict[str, Any]:
    """What TrainingArguments needs for fsdp: the model's own blocks as units, checkpoints in parts.

    accelerate recomputes activations without the random numbers of the first pass, so that with dropout the model's
    own way is taken, which keeps them.
    """
    own_way = checkpointing and config.method != "full" and config.lora_dropout > 0
    return {
        "fsdp": True,
        "fsdp_config": {
            "version": 2,
            "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",  # by the model's _no_split_modules
            "reshard_after_forward": True,
            "state_dict_type": "SHARDED_STATE_DICT",
            "activation_checkpointing": checkpointing and not own_way,
        },
        "gradient_checkpointing": own_way,
    }


def keep_gradients_precise(arguments: Any) -> None:
    """Compute in bf16 but sum gradients, and give the loss, in 32 bits; accelerate would round both to bf16."""
    if arguments.fsdp_plugin_args is not None and arguments.bf16:
        arguments.fsdp_plugin_args["mixed_precision_policy"] = {
            "param_dtype": torch.bfloat16,
            "reduce_dtype": torch.float32,
            "output_dtype": torch.float32,
        }


class ShardingTrainer(Trainer):
    """Trainer that shards a model on CPUs too, and writes its parts where nothing may be renamed."""

    is_fsdp_enabled: bool

    def create_accelerator_and_postprocess(self) -> None:
        """Have accelerate shard; it does so by itself on GPUs alone."""
        super().create_accelerator_and_postprocess()
        if self.args.fsdp and not self.is_fsdp_enabled:
            plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            self.accelerator.state.fsdp_plugin = plugin
            self.accelerator.state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not self.is_fsdp_enabled:
            super()._save_optimizer_and_scheduler(output_dir)
            return
        adapters_alone = hasattr(self.model, "peft_config")
        options = StateDictOptions(cpu_offload=True)
        whole = get_model_state_dict(self.model, options=options)
        model = get_peft_model_state_dict(self.model) if adapters_alone else whole
        optimizer = get_optimizer_state_dict(self.model, self.optimizer, options=options)
        # Names as accelerate reads them.
        for name, state in (("pytorch_model_fsdp_0", {"model": model}), ("optimizer_0", {"optimizer": optimizer})):
            writer = dcp.FileSystemWriter(Path(output_dir) / name)
            writer.fs = _InPlace()
            dcp.save(state, storage_writer=writer)
        if is_first():
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / "scheduler.pt")

    def whole_state(self) -> dict[str, torch.Tensor]:
        """The weights of a sharded model put together, on the CPU of the first process; nothing in the others."""
        return get_model_state_dict(self.model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))


class _InPlace(FileSystem):
    """torch writes its table of contents under another name and renames it; a marker of ours makes that needless."""

    def rename(self, path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        Path(new_path).write_bytes(Path(path).read_bytes())
        Path(path).unlink()
