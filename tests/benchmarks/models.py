"""Builds the models that are measured: Phi-3's architecture, random weights, a tokenizer fit to the conversations.

python -m tests.benchmarks.models --corpus CHATS.jsonl --output-dir DIR [--shape small|phi-3.5-mini]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import Phi3Config, Phi3ForCausalLM

from trainer.tiny_model import train_tokenizer

_VOCABULARY_SIZE = 8192
_CONTEXT_TOKENS = 4096
SHAPES: dict[str, dict[str, Any]] = {
    "small": {
        "hidden_size": 384,
        "intermediate_size": 1024,
        "num_hidden_layers": 6,
        "num_attention_heads": 6,
        "num_key_value_heads": 6,
        "tie_word_embeddings": True,
    },
    # Its rotary embedding without the scaling for long contexts, which changes no amount of work at 2,048 tokens.
    "phi-3.5-mini": {
        "vocab_size": 32_064,
        "hidden_size": 3072,
        "intermediate_size": 8192,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "tie_word_embeddings": False,
    },
}


def build(corpus: Path, output_dir: Path, shape: str) -> None:
    """Write a model folder."""
    tokenizer = train_tokenizer(_texts(corpus), _VOCABULARY_SIZE, _CONTEXT_TOKENS)
    end, end_of_text, pad = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>", "<unk>"])
    config = Phi3Config(
        **{"vocab_size": _VOCABULARY_SIZE} | SHAPES[shape],
        max_position_embeddings=_CONTEXT_TOKENS,
        original_max_position_embeddings=_CONTEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_of_text,
        pad_token_id=pad,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with torch.device(device):
        model = Phi3ForCausalLM(config).to(torch.bfloat16)
    model.generation_config.eos_token_id = [end_of_text, end]
    model.generation_config.pad_token_id = pad
    tokenizer.save_pretrained(output_dir)
    model.save_pretrained(output_dir)


def _texts(corpus: Path) -> Iterator[str]:
    with corpus.open(encoding="utf-8") as file:
        for line in file:
            for message in json.loads(line)["messages"]:
                yield message["content"]


def count_tokens(model: Path, chats: Path) -> dict[str, float]:
    """Tokens of all conversations, those that the assistant says with their stop tokens, and how long they are."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    num_tokens = num_supervised = longest = squares = 0
    for line in chats.read_text(encoding="utf-8").splitlines():
        messages = json.loads(line)["messages"]
        whole = len(tokenizer.apply_chat_template(messages, tokenize=True, return_dict=False))
        num_tokens, longest, squares = num_tokens + whole, max(longest, whole), squares + whole * whole
        answers = [message["content"] for message in messages if message["role"] == "assistant"]
        num_supervised += sum(len(ids) + 1 for ids in tokenizer(answers, add_special_tokens=False)["input_ids"])
    lengths = {"longest": longest, "mean_length_of_token": squares / num_tokens}
    return {"num_tokens": num_tokens, "num_supervised": num_supervised, **lengths}


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="chats that the tokenizer is fit to; builds a model")
    parser.add_argument("--output-dir", type=Path, help="model folder to write")
    parser.add_argument("--shape", choices=SHAPES, default="small")
    parser.add_argument("--count-with", type=Path, help="model folder whose tokenizer counts the tokens of --chats")
    parser.add_argument("--chats", type=Path)
    parser.add_argument("--output", type=Path, help="JSON file for the counts")
    options = parser.parse_args()
    if options.corpus:
        build(options.corpus, options.output_dir, options.shape)
    if options.count_with:
        counts = count_tokens(options.count_with, options.chats)
        options.output.write_text(json.dumps(counts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
