"""A trainer of one's own, for `train.command: python fine_tune.py`: a plain loop over transformers."""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser()
for name in ("base-model", "train-file", "eval-file", "model-output-dir", "checkpoint-dir", "log-dir", "config"):
    parser.add_argument(f"--{name}", type=Path, required=True)
options, _ = parser.parse_known_args()
settings = json.loads(options.config.read_text())  # the `train` section
torch.manual_seed(settings["seed"])
tokenizer = AutoTokenizer.from_pretrained(options.base_model)
model = AutoModelForCausalLM.from_pretrained(options.base_model, dtype=torch.float32)
optimizer = torch.optim.AdamW(model.parameters(), lr=settings["learning_rate"])
chats = [json.loads(line)["messages"] for line in options.train_file.open(encoding="utf-8")]
num_steps = int(settings["num_train_epochs"]) * len(chats)
events = (options.log_dir / "events.jsonl").open("a")
for step in range(1, num_steps + 1):
    text = tokenizer.apply_chat_template(chats[step % len(chats)], tokenize=False)
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    progress = {"event": "progress", "step": step, "num_steps": num_steps, "loss": loss.item()}
    print(json.dumps(progress), file=events, flush=True)
model.save_pretrained(options.model_output_dir)
tokenizer.save_pretrained(options.model_output_dir)
