"""The run's configuration and choices as transformers' TrainingArguments."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.job import Run

if TYPE_CHECKING:
    from transformers import TrainingArguments

# Fields of TrainConfig that transformers knows by the same name.
_SHARED = (
    "num_train_epochs", "max_steps", "lr_scheduler_type", "weight_decay", "max_grad_norm", "seed",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
    "logging_steps", "save_steps",
)  # fmt: skip


def training_arguments(run: Run) -> TrainingArguments:
    """Everything that transformers' Trainer is told."""
    from transformers import TrainingArguments

    from trainer.sharding import keep_gradients_precise, sharding_arguments

    config, hardware = run.config, run.hardware
    checkpointing = bool(config.gradient_checkpointing)
    sharded = run.distribution == "fsdp"
    distribution = sharding_arguments(config, checkpointing) if sharded else {"gradient_checkpointing": checkpointing}
    arguments = TrainingArguments(
        output_dir=str(run.job.checkpoint_dir),
        **{name: getattr(config, name) for name in _SHARED},
        learning_rate=config.peak_learning_rate,
        **distribution,
        warmup_steps=config.warmup_share,  # below 1 it is a share
        data_seed=config.seed,
        optim=config.optim,
        tf32=True if hardware.device != "cpu" and hardware.bf16 else None,  # both came with the same GPUs
        torch_compile=bool(config.torch_compile),  # null: nothing measured says that it pays
        bf16=hardware.bf16,
        use_cpu=hardware.device == "cpu",
        remove_unused_columns=False,
        label_names=["labels"],
        prediction_loss_only=True,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        eval_strategy="no",  # evaluations.py says when
        metric_for_best_model="eval_loss" if config.early_stopping_patience else None,
        ddp_find_unused_parameters=False,  # every parameter is used, and looking costs a pass a step
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=hardware.device != "cpu",
        dataloader_num_workers=0 if hardware.device == "cpu" else 2,  # a CPU has nothing to spare, a GPU must not wait
    )
    # transformers would refuse it above, for want of evaluations that it knows of.
    arguments.load_best_model_at_end = bool(config.early_stopping_patience)
    keep_gradients_precise(arguments)
    return arguments
