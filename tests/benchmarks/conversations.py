"""Conversations of the shape of ultrachat_200k, generated: the same number and seed, the same text.

As in that set, a conversation has two to eight exchanges, short questions and answers of several paragraphs, and
about 1,100 tokens with a vocabulary fit to it. The words are made up, but follow each other by fixed chances, so that
there is something to learn.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

NUM_WORDS = 9_000
_NUM_SENTENCES = 30_000
_NUM_FOLLOWERS = 24
_SYLLABLES = [first + vowel + last for first in "bdfgklmnprstvz" for vowel in "aeiou" for last in ("", "n", "r", "s")]


def write_conversations(path: Path, number: int, seed: int = 0, max_words: int | None = None) -> Path:
    """Write canonical records as JSONL."""
    with path.open("w", encoding="utf-8") as file:
        for record in conversations(number, seed, max_words):
            file.write(json.dumps(record) + "\n")
    return path


def conversations(number: int, seed: int = 0, max_words: int | None = None) -> Iterator[dict]:
    """Generate records; the language is the same for every seed.

    Args:
        max_words: no conversation is longer; None leaves the few that are as long as ultrachat's longest.
    """
    sentences = _sentences()
    chance = random.Random(f"conversations {seed}")
    for _ in range(number):
        yield {"messages": _messages(chance, sentences, max_words)}


def _messages(chance: random.Random, sentences: list[str], max_words: int | None) -> list[dict[str, str]]:
    messages: list[dict[str, str]] = []
    num_words = 0
    for _ in range(chance.choice((2, 3, 3, 3, 4, 4, 5, 6, 7, 8))):
        question = " ".join(chance.choices(sentences, k=chance.choice((1, 1, 2, 3))))[:-1] + "?"
        paragraphs = [" ".join(chance.choices(sentences, k=chance.randint(2, 7))) for _ in range(chance.randint(1, 4))]
        answer = "\n\n".join(paragraphs)
        num_words += len(question.split()) + len(answer.split())
        if max_words and num_words > max_words and messages:
            break
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return messages


def _sentences() -> list[str]:
    """A language: words by Zipf's law, each with its own few followers, and sentences made of them."""
    chance = random.Random("language")
    words = ["".join(chance.choices(_SYLLABLES, k=chance.choice((1, 1, 2, 2, 2, 3, 3, 4)))) for _ in range(NUM_WORDS)]
    frequency = list(accumulate(1 / (rank + 2) for rank in range(NUM_WORDS)))
    rank_weights = list(accumulate(1 / (rank + 1) for rank in range(_NUM_FOLLOWERS)))
    followers = [chance.choices(range(NUM_WORDS), cum_weights=frequency, k=_NUM_FOLLOWERS) for _ in range(NUM_WORDS)]
    sentences = []
    for _ in range(_NUM_SENTENCES):
        word = chance.choices(range(NUM_WORDS), cum_weights=frequency)[0]
        text = [words[word].capitalize()]
        for _ in range(chance.randint(4, 18)):
            word = chance.choices(followers[word], cum_weights=rank_weights)[0]
            text.append(words[word])
        if chance.random() < 0.3:
            text.insert(len(text) // 2, str(chance.randint(2, 2030)))
        sentences.append(" ".join(text) + ".")
    return sentences
