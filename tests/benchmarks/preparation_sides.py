"""The parts of the data preparation benchmark that run in the training environment, each a process of its own.

python -m tests.benchmarks.preparation_sides {corpus,tokenizer,ours,trl,compare} ...; each prints one JSON document.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAX_LENGTH = 2048
_NUM_WORDS = 150_000
_NUM_DRAWS = 1 << 22
_NUM_FORMS = 4  # of a word: as it is, capitalised, before a comma, before a full stop
_SYLLABLES = [
    first + vowel + last for first in "bcdfghklmnprstvwz" for vowel in "aeiou" for last in ("", "n", "r", "s", "t")
]
_VOCABULARY_SIZE = 32_000
_TOKENIZER_CHATS = 4_000
_OPEN = "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' }}"
_CLOSE = (
    "{{ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
TEMPLATE = _OPEN + "{{ message['content'] + '<|end|>' }}" + _CLOSE
# What TRL needs to know the answers: the same text, the answers and their stop tokens marked.
MARKED_TEMPLATE = (
    _OPEN + "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] + '<|end|>' }}"
    "{% endgeneration %}{% else %}{{ message['content'] + '<|end|>' }}{% endif %}" + _CLOSE
)


def write_corpus(path: Path, number: int) -> dict[str, Any]:
    """Conversations of the shape of ultrachat_200k: 4 to 8 messages, about 1,150 tokens, words by Zipf's law."""
    chance = np.random.default_rng(0)
    forms = _words(chance)
    shares = np.tile([0.82, 0.05, 0.06, 0.07], _NUM_WORDS)
    ends = np.cumsum(np.repeat(1 / (np.arange(_NUM_WORDS) + 2.7) ** 1.05, _NUM_FORMS) * shares)
    # What a draw below that many means; a search in ends for every word would take most of the time.
    drawn = np.searchsorted(ends, (np.arange(_NUM_DRAWS) + 0.5) / _NUM_DRAWS * ends[-1])
    with path.open("w", encoding="utf-8") as file:
        for _ in range(number):
            file.write(json.dumps({"messages": list(_messages(chance, forms, drawn))}, ensure_ascii=False) + "\n")
    return {"num_bytes": path.stat().st_size}


def _words(chance: np.random.Generator) -> list[str]:
    words: dict[str, None] = {}
    while len(words) < _NUM_WORDS:
        length = int(chance.choice((1, 2, 2, 3, 3, 4)))
        words["".join(chance.choice(_SYLLABLES, length))] = None
    return [form for word in words for form in (word, word.capitalize(), word + ",", word + ".")]


def _messages(chance: np.random.Generator, forms: list[str], drawn: np.ndarray) -> Iterator[dict[str, str]]:
    for number in range(2 * int(chance.choice((2, 2, 3, 3, 4)))):
        answer = number % 2
        num_words = max(int(chance.normal(245, 90)), 8) if answer else int(chance.exponential(25)) + 5
        chosen = drawn[chance.integers(_NUM_DRAWS, size=num_words)].tolist()
        text = " ".join([forms[index] for index in chosen])
        if answer:
            text = "\n\n".join(text[start : start + 600] for start in range(0, len(text), 600))
        yield {"role": ("user", "assistant")[answer], "content": text}


def build_tokenizer(corpus: Path, folder: Path) -> dict[str, Any]:
    """A byte-level BPE fit to the first conversations, with Phi-3's special tokens."""
    from trainer.tiny_model import train_tokenizer

    with corpus.open(encoding="utf-8") as file:
        lines = (line for line, _ in zip(file, range(_TOKENIZER_CHATS), strict=False))
        texts = (message["content"] for line in lines for message in json.loads(line)["messages"])
        tokenizer = train_tokenizer(texts, _VOCABULARY_SIZE, MAX_LENGTH, TEMPLATE)
    tokenizer.save_pretrained(folder)
    return {"vocabulary": len(tokenizer)}


def prepare_ours(file: Path, tokenizer_dir: Path, folder: Path) -> dict[str, Any]:
    """JSONL to packed rows by trainer.tokens."""
    from transformers import PreTrainedTokenizerFast

    from trainer.tokens import TokenPlan, tokenise

    logging.basicConfig(level=logging.INFO, stream=sys.stderr)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir)
    begun, cpu = time.perf_counter(), _cpu_seconds()
    rows = tokenise(TokenPlan(file=file, max_length=MAX_LENGTH), tokenizer, folder / "tokens")
    seconds, cpu = time.perf_counter() - begun, _cpu_seconds() - cpu
    summary = rows.summary
    return {
        "seconds": seconds,
        "cpu_seconds": cpu,
        "num_chats": summary.num_chats,
        "num_tokens": summary.num_tokens,
        "num_rows": summary.num_rows,
        "fill_share": summary.fill_share,
        "encoder": summary.encoder,
        "worker_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
    }


def compare_ours(folder: Path, num_compared: int) -> dict[str, Any]:
    """Digests of the first conversations' tokens and labels; apart, so that reading them back counts as no memory."""
    from trainer.tokens.store import read_rows

    rows = read_rows(next((folder / "tokens").glob("*.arrow")))
    assert rows is not None
    chats = rows.chats()
    digests = [
        _digest(row.input_ids, row.labels)
        for row in map(chats.__getitem__, range(len(chats)))
        if row.lines[0] <= num_compared
    ]
    (folder / "digests.json").write_text(json.dumps(sorted(digests)), encoding="utf-8")
    return {}


def prepare_trl(file: Path, tokenizer_dir: Path, folder: Path) -> dict[str, Any]:
    """JSONL to a packed dataset by TRL's SFTTrainer, as it is when a person gives it the file; one process."""
    from datasets import load_dataset
    from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast
    from trl import SFTConfig, SFTTrainer

    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_dir, chat_template=MARKED_TEMPLATE)
    model = Phi3ForCausalLM(_smallest(Phi3Config, len(tokenizer)))
    spent: list[float] = []
    used: list[float] = []
    prepare: Callable[..., Any] = SFTTrainer._prepare_dataset

    def timed(*arguments: Any, **options: Any) -> Any:
        begun, cpu = time.perf_counter(), _cpu_seconds()
        prepared = prepare(*arguments, **options)
        spent.append(time.perf_counter() - begun)
        used.append(_cpu_seconds() - cpu)
        return prepared

    SFTTrainer._prepare_dataset = timed  # type: ignore[method-assign]
    begun, cpu = time.perf_counter(), _cpu_seconds()
    dataset = load_dataset("json", data_files=str(file), split="train", cache_dir=str(folder / "datasets"))
    loading, cpu = time.perf_counter() - begun, _cpu_seconds() - cpu
    config = SFTConfig(
        output_dir=str(folder / "out"),
        max_length=MAX_LENGTH,
        packing=True,
        packing_strategy="bfd",
        assistant_only_loss=True,
        shuffle_dataset=False,
        bf16=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
    )
    trainer = SFTTrainer(model=model, args=config, train_dataset=dataset, processing_class=tokenizer)
    packed = trainer.train_dataset
    seen = [digest for row in packed.with_format("numpy") for digest in _digests_of_row(row)]
    (folder / "digests.json").write_text(json.dumps(sorted(seen)), encoding="utf-8")
    return {
        "seconds": loading + sum(spent),
        "cpu_seconds": cpu + sum(used),
        "num_chats": len(dataset),
        "num_rows": len(packed),
    }


def _cpu_seconds() -> float:
    """Of this process and those it has ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _smallest(config: Any, vocabulary: int) -> Any:
    return config(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        pad_token_id=0,
    )


def _digests_of_row(row: dict[str, Any]) -> Iterator[str]:
    start = 0
    for length in row["seq_lengths"]:
        part = slice(start, start + int(length))
        yield _digest(row["input_ids"][part], row["labels"][part])
        start += int(length)


def _digest(ids: Any, labels: Any) -> str:
    pair = np.stack([np.asarray(ids, np.int64), np.asarray(labels, np.int64)])
    pair[1, 0] = -100  # the first token's label predicts nothing
    return hashlib.sha1(pair.tobytes()).hexdigest()


def main() -> None:
    """Run one part."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("part", choices=("corpus", "tokenizer", "ours", "trl", "compare"))
    parser.add_argument("--file", type=Path)
    parser.add_argument("--number", type=int, default=0)
    parser.add_argument("--tokenizer-dir", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    parts: dict[str, Callable[[], dict[str, Any]]] = {
        "corpus": lambda: write_corpus(options.file, options.number),
        "tokenizer": lambda: build_tokenizer(options.file, options.tokenizer_dir),
        "ours": lambda: prepare_ours(options.file, options.tokenizer_dir, options.folder),
        "trl": lambda: prepare_trl(options.file, options.tokenizer_dir, options.folder),
        "compare": lambda: compare_ours(options.folder, options.number),
    }
    print(json.dumps(parts[options.part]()))


if __name__ == "__main__":
    main()
