"""Scores a model on a file of chats: loss on what the assistant says, and answers compared with the expected ones.

python -m trainer.evaluate --model-dir DIR --eval-file FILE --output FILE|--result-dir DIR [--config train.json]
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from trainer.base_model import resolve_base_model
from trainer.chats import read_chats
from trainer.command_line import OneLineParser, explained, read_config
from trainer.config import TrainConfig
from trainer.encoding import encode_chats
from trainer.errors import TrainerError
from trainer.events import Verdict
from trainer.files import digest_model, write_atomic
from trainer.hardware import choose_hardware, short_context
from trainer.model import (
    choose_threads,
    ensure_pad_token,
    fitting_length,
    load_model,
    load_tokenizer,
    quiet_libraries,
    read_model_config,
    stop_at,
)
from trainer.precision import held_as_stored
from trainer.templates import adapt_template

if TYPE_CHECKING:
    from trainer.chat_template import EncodedChat

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's scores on a list of chats.

    Args:
        metrics: loss, perplexity, token_accuracy; exact_match, chrf, stop_rate, mean_answer_tokens, repetition (None
            when nothing was generated); counts.
        per_example: for each chat its mean negative log likelihood and number of learned tokens, and where it was
            answered whether word for word, and chrF's counts.
        answers: greedy answers by index of the chat.
    """

    metrics: dict[str, Any]
    per_example: list[dict[str, Any]]
    answers: dict[int, str]

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        answers = {str(index): answer for index, answer in self.answers.items()}
        return {"metrics": self.metrics, "per_example": self.per_example, "answers": answers}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Evaluation:
        """From the values of to_dict."""
        answers = {int(index): answer for index, answer in values["answers"].items()}
        return cls(values["metrics"], values["per_example"], answers)


def evaluate_model(
    model: Any, tokenizer: Any, chats: Sequence[EncodedChat], config: TrainConfig, bf16: bool
) -> Evaluation:
    """Score a model, in bfloat16 arithmetic or not; the same chats are answered for every model."""
    from trainer.batches import collator, rows_of
    from trainer.generation import generating, greedy_answers
    from trainer.losses import autocast, chat_losses, token_metrics
    from trainer.text_metrics import answer_metrics, answer_statistics

    training = model.training
    model.eval()
    rows, size = rows_of(chats), config.per_device_eval_batch_size
    collate = collator(model.config._attn_implementation, tokenizer.pad_token_id, short_context(model.config))
    batches = (collate(rows[begin : begin + size]) for begin in range(0, len(rows), size))
    losses = chat_losses(model, batches, bf16)
    model.train(training)
    per_example: list[dict[str, Any]] = [
        {"loss": loss.nll / loss.num_tokens, "num_tokens": loss.num_tokens} for loss in losses
    ]
    chosen = answered_chats(chats, config)
    prompts = [chats[i].prompt_ids for i in chosen]
    with generating(model), autocast(model.device.type, bf16):
        answers = greedy_answers(model, tokenizer, prompts, config.max_new_tokens_eval)
    statistics = [answer_statistics(answer, chats[i].expected) for i, answer in zip(chosen, answers, strict=True)]
    for i, statistic in zip(chosen, statistics, strict=True):
        per_example[i] |= statistic
    metrics = token_metrics(losses) | answer_metrics(answers, statistics)
    return Evaluation(metrics, per_example, {i: answer.text for i, answer in zip(chosen, answers, strict=True)})


def answered_chats(chats: Sequence[EncodedChat], config: TrainConfig) -> list[int]:
    """Which conversations' last questions are answered: num_eval_generations of those whose prompt fits."""
    fitting = [i for i, chat in enumerate(chats) if len(chat.prompt_ids) < config.max_length]
    return evenly_chosen(fitting, config.num_eval_generations)


def evenly_chosen(items: Sequence[Item], most: int) -> list[Item]:
    """At most that many of them, evenly spread, always the same."""
    if len(items) <= most:
        return list(items)
    return [items[i * len(items) // most] for i in range(most)]


def main(arguments: list[str] | None = None) -> int:
    """Run from the command line."""
    parser = OneLineParser(prog="python -m trainer.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--model-dir", required=True, help="Hugging Face folder or MLflow model folder")
    parser.add_argument("--eval-file", type=Path, required=True, help="chats, JSONL")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--result-dir", type=Path, help="result.json or error.json here, where it outlives the machine")
    parser.add_argument("--config", type=Path, help="JSON file with the train section")
    options = parser.parse_args(arguments)
    if not (options.output or options.result_dir):
        parser.error("one of --output and --result-dir is needed")
    verdict = None
    with explained() as outcome:
        verdict = Verdict(options.result_dir) if options.result_dir else None
        result = _evaluate_folder(options, read_config(options.config))
        if options.output:
            write_atomic(options.output, json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        if verdict:
            verdict.finish(result)
        metrics = result["metrics"]
        print(f"Evaluated {options.model_dir} loss={metrics['loss']:.4f} exact_match={metrics['exact_match']}")
    if outcome.error and verdict:
        verdict.fail(outcome.error)
    return outcome.exit_code


def _evaluate_folder(options: argparse.Namespace, config: TrainConfig) -> dict[str, Any]:
    if not Path(options.model_dir).is_dir():
        raise TrainerError(f"Model folder {options.model_dir} does not exist.", "Check --model-dir.", "configuration")
    folder = resolve_base_model(options.model_dir)
    chats = evenly_chosen(read_chats(options.eval_file), config.max_eval_examples)
    quiet_libraries(folder)

    tokenizer = load_tokenizer(folder)
    adapt_template(tokenizer, None)  # a model is scored with the rendering it is served with
    model_config = read_model_config(folder, None)
    config = replace(config, max_length=fitting_length(model_config, config.max_length))
    encoded, stop_token_ids = encode_chats(chats, tokenizer, config.max_length, options.eval_file.name)
    hardware = choose_hardware(config, model_config)
    model = load_model(folder, None, hardware, held_as_stored(hardware))
    mean_length = sum(len(chat.input_ids) for chat in encoded) / len(encoded)
    choose_threads(model, config.per_device_eval_batch_size * mean_length)
    ensure_pad_token(tokenizer, model, stop_token_ids)
    stop_at(model, tokenizer, stop_token_ids)
    evaluation = evaluate_model(model, tokenizer, encoded, config, hardware.bf16)
    return {"model_digest": digest_model(folder), **evaluation.to_dict()}


if __name__ == "__main__":
    sys.exit(main())
