"""How much work a training is: conversations, tokens, rows and optimizer steps, counted as the trainer counts them.

Tokens are those of the data manifest, where a tokenizer was there to count them. How they spread over rows is taken
from the first conversations of the training file: characters stand for tokens in the manifest's proportion.
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.estimate.ranges import Range, exactly

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.refs import DataManifest

SAMPLE = 2000
STAND_IN = 1000
# English prose in the tokenizers of Phi and Llama; other scripts have fewer characters a token.
_CHARACTERS_A_TOKEN = (3.3, 4.5)
_TEMPLATE_CHARACTERS = 16  # of a message, such as <|assistant|> and <|end|>
_PACKED_SHARE = (0.95, 1.0)  # of a row that best-fit packing fills


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One training's work.

    Args:
        tokens: of one epoch, cut at `max_length`, without padding: what the trainer reports.
        positions: of one epoch, with padding, or of packed rows: what is computed.
        row_tokens: mean width of a row that is computed; `longest_row` is the widest.
        test_tokens: of one pass over the test side, cut.
        counted: how the tokens were counted, for people.
    """

    num_train: int
    num_test: int
    max_length: int
    tokens: Range
    positions: Range
    row_tokens: Range
    longest_row: int
    test_tokens: Range
    truncated_share: Range
    answer_share: float | None
    num_rows: Range
    num_steps: Range
    num_epochs: Range
    is_packed: bool
    counted: str
    is_stand_in: bool = False


def measure_work(config: PipelineConfig, data: DataManifest, context_tokens: int, packs: bool) -> Work:
    """The work of training on prepared data.

    Args:
        context_tokens: the longest row that the model takes, 0 when not known.
        packs: whether the training puts several conversations in a row.
    """
    limit = _limit(config, context_tokens)
    counted = _read_json(Path(data.manifest_file)).get("tokens")
    sample = _read_sample(data)
    if not sample:
        lengths = _from_percentiles(counted, limit) if counted else (exactly(limit / 2), exactly(limit), limit)
        tokens_each, padded_each, longest = lengths
        told, answers = "the data manifest's percentiles" if counted else "nothing: half to all of max_length", None
        truncated = exactly(counted["truncated_share"]) if counted else Range(low=0, high=1)
    else:
        ratios, told = _ratios(counted, sample)
        spreads = [_spread([chars * ratio for chars, _ in sample], config, limit) for ratio in ratios]
        tokens_each = _between([spread[0] for spread in spreads])
        padded_each = _between([spread[1] for spread in spreads])
        longest = min(limit, int(counted["max"])) if counted else math.ceil(max(spread[2] for spread in spreads))
        truncated = exactly(counted["truncated_share"]) if counted else _between([spread[3] for spread in spreads])
        answers = sum(answer for _, answer in sample) / max(1, sum(chars for chars, _ in sample))
    return _work(
        config,
        (data.num_train, data.num_test),
        _Rows(limit, tokens_each, padded_each, longest, truncated, answers, packs, told),
    )


def stand_in_work(config: PipelineConfig, context_tokens: int, packs: bool) -> Work:
    """The work of a thousand conversations of which nothing is known: a quarter of `max_length` to all of it."""
    limit = _limit(config, context_tokens)
    length = Range(low=limit / 4, high=limit)
    num_test = round(STAND_IN * config.data.test_share)
    rows = _Rows(limit, length, length, limit, Range(low=0, high=1), None, packs, "nothing: the data was not read")
    return _work(config, (STAND_IN - num_test, num_test), rows, is_stand_in=True)


def num_processes(config: PipelineConfig) -> int:
    """Over how many processes a training is spread; on this machine it is one."""
    return config.compute.num_nodes * config.compute.processes_per_node if config.is_remote else 1


@dataclass(frozen=True, slots=True)
class _Rows:
    """How one conversation becomes a row, on average."""

    limit: int
    tokens_each: Range
    padded_each: Range
    longest: int
    truncated: Range
    answers: float | None
    is_packed: bool
    counted: str


def _work(config: PipelineConfig, sides: tuple[int, int], rows: _Rows, is_stand_in: bool = False) -> Work:
    num_train, num_test = sides
    tokens = rows.tokens_each.times(num_train)
    if rows.is_packed:
        num_rows = Range(
            low=math.ceil(tokens.low / rows.limit / _PACKED_SHARE[1]),
            high=math.ceil(tokens.high / rows.limit / _PACKED_SHARE[0]),
        )
        positions, row_tokens = tokens, rows.tokens_each
    else:
        num_rows, positions, row_tokens = exactly(num_train), rows.padded_each.times(num_train), rows.padded_each
    steps = [_steps(config, round(count)) for count in (num_rows.low, num_rows.high)]
    return Work(
        num_train=num_train,
        num_test=num_test,
        max_length=rows.limit,
        tokens=tokens,
        positions=positions,
        row_tokens=row_tokens,
        longest_row=rows.limit if rows.is_packed else rows.longest,
        test_tokens=rows.tokens_each.times(num_test),
        truncated_share=rows.truncated,
        answer_share=rows.answers,
        num_rows=num_rows,
        num_steps=_between([step for step, _ in steps]),
        num_epochs=_between([epochs for _, epochs in steps]),
        is_packed=rows.is_packed,
        counted=rows.counted,
        is_stand_in=is_stand_in,
    )


def _steps(config: PipelineConfig, num_rows: int) -> tuple[int, float]:
    """Optimizer steps and epochs, as transformers' Trainer counts them in `set_initial_training_values`."""
    train = config.train
    batches = math.ceil(math.ceil(num_rows / train.per_device_train_batch_size) / num_processes(config))
    an_epoch = max(1, math.ceil(batches / train.gradient_accumulation_steps))
    if train.max_steps > 0:
        return train.max_steps, train.max_steps / an_epoch
    steps = math.ceil(train.num_train_epochs * an_epoch)
    return steps, steps / an_epoch


def _limit(config: PipelineConfig, context_tokens: int) -> int:
    return min(config.train.max_length, context_tokens) if context_tokens else config.train.max_length


def _ratios(counted: dict[str, Any] | None, sample: list[tuple[int, int]]) -> tuple[tuple[float, ...], str]:
    """Tokens a character: one number from the manifest, or a range of what is usual."""
    if counted and counted.get("mean"):
        mean = sum(chars for chars, _ in sample) / len(sample)
        return (counted["mean"] / mean,), "the base model's tokenizer"
    few, many = _CHARACTERS_A_TOKEN
    return (1 / many, 1 / few), f"{few:g} to {many:g} characters a token, without the tokenizer"


def _spread(lengths: list[float], config: PipelineConfig, limit: int) -> tuple[float, float, float, float]:
    """Mean tokens, mean padded tokens and the longest row, cut at the limit; and the share that is cut."""
    cut = [min(length, limit) for length in lengths]
    batch = config.train.per_device_train_batch_size
    shuffled = random.Random(0).sample(cut, len(cut))
    batches = [shuffled[start : start + batch] for start in range(0, len(shuffled), batch)]
    padded = sum(max(rows) * len(rows) for rows in batches)
    share = sum(length > limit for length in lengths) / len(lengths)
    return sum(cut) / len(cut), padded / len(cut), max(cut), share


def _from_percentiles(counted: dict[str, Any], limit: int) -> tuple[Range, Range, int]:
    """Mean tokens, mean padded tokens and the longest row from what the manifest keeps of the lengths."""
    mean, longest = min(counted["mean"], limit), min(counted["max"], limit)
    over = counted["truncated_share"] * max(0.0, counted["max"] - limit)
    low = min(mean, max(counted["mean"] - over, counted["mean"] * (1 - counted["truncated_share"])))
    return Range(low=low, high=mean), Range(low=low, high=min(counted["p95"], limit)), longest


def _between(values: list[float]) -> Range:
    return Range(low=min(values), high=max(values))


def _read_sample(data: DataManifest) -> list[tuple[int, int]]:
    """Characters of each of the first conversations, all and of the answers; empty where the file is not here."""
    path = Path(data.train_file)
    if not path.is_file():
        path = Path(data.manifest_file).with_name("train.jsonl")
    if not path.is_file():
        return []
    with path.open(encoding="utf-8") as file:
        return [_characters(json.loads(line)["messages"]) for line in islice(file, SAMPLE)]


def _characters(messages: list[dict[str, str]]) -> tuple[int, int]:
    each = [(message["role"], len(message["content"]) + _TEMPLATE_CHARACTERS) for message in messages]
    return sum(size for _, size in each), sum(size for role, size in each if role == "assistant")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    except OSError:
        return {}
