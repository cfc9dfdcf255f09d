"""Builds a small Phi-3 model with its own tokenizer from a file of chats: the same file, the same bytes.

python -m trainer.tiny_model --corpus CHATS.jsonl --output-dir DIR
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from trainer.chats import read_chats
from trainer.command_line import OneLineParser, explained
from trainer.files import digest_folder, replace_folder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# The order and the roles of Phi-3's own special tokens.
_SPECIAL = ("<unk>", "<s>", "</s>", "<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] in ('system', 'user', 'assistant') and message['content'] %}"
    "{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
_VOCABULARY_SIZE = 2048
_CONTEXT_TOKENS = 1024


def build_tiny_model(corpus: Path, output_dir: Path) -> str:
    """Write the model folder, whole or not at all, and return its digest."""
    chats = read_chats(corpus)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=output_dir.parent, prefix=f".{output_dir.name}."))
    try:
        texts = (message["content"] for chat in chats for message in chat.messages)
        tokenizer = train_tokenizer(texts, _VOCABULARY_SIZE, _CONTEXT_TOKENS)
        tokenizer.save_pretrained(temporary)
        _random_model(tokenizer).save_pretrained(temporary)
        replace_folder(temporary, output_dir)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest_folder(output_dir)


def train_tokenizer(
    texts: Iterable[str], vocabulary_size: int, context_tokens: int, chat_template: str = CHAT_TEMPLATE
) -> PreTrainedTokenizerFast:
    """A byte-level BPE fit to the texts, with Phi-3's special tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=list(_SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        unk_token="<unk>",
        pad_token="<unk>",
        additional_special_tokens=["<|assistant|>", "<|system|>", "<|end|>", "<|user|>"],
        chat_template=chat_template,
        model_max_length=context_tokens,
        clean_up_tokenization_spaces=False,
    )


def _random_model(tokenizer):
    import torch
    from transformers import Phi3Config, Phi3ForCausalLM

    end, end_of_text, pad = tokenizer.convert_tokens_to_ids(["<|end|>", "<|endoftext|>", "<unk>"])
    config = Phi3Config(
        vocab_size=-(-len(tokenizer) // 64) * 64,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=_CONTEXT_TOKENS,
        original_max_position_embeddings=_CONTEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=end_of_text,
        pad_token_id=pad,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Phi3ForCausalLM(config)
    model.generation_config.eos_token_id = [end_of_text, end]
    model.generation_config.pad_token_id = pad
    return model


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = OneLineParser(prog="python -m trainer.tiny_model", description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="chats the tokenizer is trained on, JSONL")
    parser.add_argument("--output-dir", type=Path, required=True, help="model folder to write")
    options = parser.parse_args(arguments)
    with explained() as outcome:
        digest = build_tiny_model(options.corpus, options.output_dir.absolute())
        print(f"Built {options.output_dir} digest={digest}")
    return outcome.exit_code


if __name__ == "__main__":
    sys.exit(main())
