"""The tutorial's fine-tuning script, written anew from what it does: the baseline of the benchmark.

Changed only where the libraries force it (TRL 1.16, transformers 5.23): SFTConfig instead of TrainingArguments plus
keyword arguments, processing_class for tokenizer, dtype for torch_dtype, the warm-up share in warmup_steps. Its rows
were "wrapped": conversations behind each other, cut every 2,048 tokens, with attention across them; that is now asked
for by name, and what the same code does today without asking is "bfd". Left out: the MLflow run and the evaluation,
which are not timed, and trust_remote_code, since the architecture is in the library.

python -m tests.benchmarks.tutorial.fine_tune --train-file F --model_output_dir D [options]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import SFTConfig, SFTTrainer

MAX_LENGTH = 2048


def read_options(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The tutorial's arguments, and what the benchmark sets the same for all sides."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--train-file", required=True)
    parser.add_argument("--model_output_dir", required=True)
    parser.add_argument("--pretrained_model_name_or_path", default="microsoft/Phi-3.5-mini-instruct")
    parser.add_argument("--packing_strategy", choices=("wrapped", "bfd"), default="wrapped")
    parser.add_argument("--num_train_epochs", type=float, default=3)
    parser.add_argument("--max_steps", type=int, default=-1)
    parser.add_argument("--learning_rate", type=float, default=5e-6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--num_proc", type=int, default=10)
    return parser.parse_args(arguments)


def load_model(name: str) -> tuple[Any, Any]:
    """The model in bfloat16 with eager attention, and the tokenizer padded with its unknown token."""
    model = AutoModelForCausalLM.from_pretrained(
        name, use_cache=False, dtype=torch.bfloat16, attn_implementation="eager"
    )
    tokenizer = AutoTokenizer.from_pretrained(name)
    tokenizer.model_max_length = MAX_LENGTH
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.pad_token_id = tokenizer.convert_tokens_to_ids(tokenizer.pad_token)
    tokenizer.padding_side = "right"
    return model, tokenizer


def rendered(example: dict[str, Any], tokenizer: Any) -> dict[str, str]:
    """One conversation as text, with an empty system message where there is none."""
    messages = example["messages"]
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": ""}, *messages]
    return {"text": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=False)}


def training_settings(options: argparse.Namespace) -> SFTConfig:
    """The tutorial's hyperparameters."""
    return SFTConfig(
        output_dir=f"{options.model_output_dir}.checkpoints",
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=0.2,  # below 1 it is a share
        num_train_epochs=options.num_train_epochs,
        max_steps=options.max_steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=1,
        gradient_checkpointing=True,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        save_steps=500,
        save_total_limit=1,
        eval_strategy="no",
        seed=options.seed,
        report_to="none",
        disable_tqdm=True,
        dataset_text_field="text",
        dataset_num_proc=options.num_proc,
        max_length=MAX_LENGTH,
        packing=True,
        packing_strategy=options.packing_strategy,
    )


def build_trainer(options: argparse.Namespace, callbacks: Sequence[TrainerCallback] = ()) -> tuple[SFTTrainer, Any]:
    """TRL's trainer over the rendered conversations; the loss is on every token."""
    model, tokenizer = load_model(options.pretrained_model_name_or_path)
    chats = load_dataset("json", data_files=options.train_file, split="train")
    chats = chats.map(
        rendered, fn_kwargs={"tokenizer": tokenizer}, num_proc=options.num_proc, remove_columns=list(chats.features)
    )
    trainer = SFTTrainer(
        model=model,
        args=training_settings(options),
        train_dataset=chats,
        processing_class=tokenizer,
        callbacks=list(callbacks),
    )
    return trainer, tokenizer


def main(arguments: Sequence[str] | None = None) -> None:
    """Train and save."""
    options = read_options(arguments)
    trainer, tokenizer = build_trainer(options)
    trainer.train()
    trainer.save_model(options.model_output_dir)
    tokenizer.save_pretrained(options.model_output_dir)


if __name__ == "__main__":
    main()
