"""Scores a model on a file of chats: loss on what the assistant says, and answers word for word.

python -m trainer.evaluate --model-dir DIR --eval-file FILE --output FILE|--result-dir DIR [--config train.json]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.base_model import resolve_base_model
from trainer.chats import read_chats
from trainer.command_line import OneLineParser, explained, read_config
from trainer.config import TrainConfig
from trainer.encoding import encode_chats
from trainer.errors import TrainerError
from trainer.events import Verdict
from trainer.files import digest_folder, write_atomic
from trainer.hardware import choose_hardware
from trainer.model import (
    ensure_pad_token,
    fitting_length,
    load_model,
    load_tokenizer,
    quiet_libraries,
    read_model_config,
    stop_at,
)

if TYPE_CHECKING:
    from trainer.chat_template import EncodedChat

_CACHED_TOKENS = 8192  # of one generation batch; 3 GB for Phi-3.5-mini in bf16


@dataclass(frozen=True, slots=True)
class Evaluation:
    """A model's scores on a list of chats.

    Args:
        metrics: loss, perplexity, token_accuracy, exact_match (None when nothing was generated), counts.
        per_example: for each chat its mean negative log likelihood and number of learned tokens.
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


def evaluate_model(model: Any, tokenizer: Any, chats: Sequence[EncodedChat], config: TrainConfig) -> Evaluation:
    """Score a model; the same chats are answered for every model."""
    training, attention = model.training, model.config._attn_implementation
    model.eval()
    if attention == "documents":  # it knows rows without padding alone
        model.set_attn_implementation("sdpa")
    losses = _losses(model, chats, config.per_device_eval_batch_size, tokenizer.pad_token_id)
    chosen = _spread(
        [i for i, chat in enumerate(chats) if len(chat.prompt_ids) < config.max_length], config.num_eval_generations
    )
    answers = dict(zip(chosen, _answers(model, tokenizer, [chats[i] for i in chosen], config), strict=True))
    model.train(training)
    model.set_attn_implementation(attention)
    num_tokens = sum(chat.num_learned_tokens for chat in chats)
    loss = sum(total for total, _ in losses) / num_tokens
    matches = sum(answers[i].strip() == chats[i].expected.strip() for i in chosen)
    metrics = {
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "token_accuracy": sum(correct for _, correct in losses) / num_tokens,
        "exact_match": matches / len(chosen) if chosen else None,
        "num_examples": len(chats),
        "num_tokens": num_tokens,
        "num_generations": len(chosen),
    }
    per_example = [
        {"loss": total / chat.num_learned_tokens, "num_tokens": chat.num_learned_tokens}
        for chat, (total, _) in zip(chats, losses, strict=True)
    ]
    return Evaluation(metrics, per_example, answers)


def _losses(model: Any, chats: Sequence[EncodedChat], batch_size: int, pad: int) -> list[tuple[float, int]]:
    """Sum of negative log likelihoods and number of right first choices, for each chat."""
    import torch

    results: list[tuple[float, int]] = [(0.0, 0)] * len(chats)
    by_length = sorted(range(len(chats)), key=lambda i: len(chats[i].input_ids), reverse=True)
    for begin in range(0, len(by_length), batch_size):
        batch = by_length[begin : begin + batch_size]
        width = len(chats[batch[0]].input_ids)
        ids = torch.tensor([_padded(chats[i].input_ids, width, pad) for i in batch], device=model.device)
        labels = torch.tensor([_padded(chats[i].labels, width, -100) for i in batch], device=model.device)
        mask = torch.tensor(
            [[1] * len(chats[i].input_ids) + [0] * (width - len(chats[i].input_ids)) for i in batch],
            device=model.device,
        )
        with torch.no_grad():
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        for row, index in enumerate(batch):
            targets = labels[row, 1:]
            learned = targets != -100
            scores = logits[row, :-1][learned].float()
            nll = torch.nn.functional.cross_entropy(scores, targets[learned], reduction="sum")
            results[index] = (nll.item(), int((scores.argmax(-1) == targets[learned]).sum()))
    return results


def _padded(values: list[int], width: int, filler: int) -> list[int]:
    return values + [filler] * (width - len(values))


def _spread(indexes: list[int], most: int) -> list[int]:
    """At most that many of them, evenly spread, always the same."""
    if len(indexes) <= most:
        return indexes
    return [indexes[i * len(indexes) // most] for i in range(most)]


def _answers(model: Any, tokenizer: Any, chats: Sequence[EncodedChat], config: TrainConfig) -> list[str]:
    """Answer each chat's last question greedily, in batches padded on the left."""
    import torch
    from transformers import GenerationConfig

    settings = GenerationConfig(
        max_new_tokens=config.max_new_tokens_eval,
        do_sample=False,
        eos_token_id=model.generation_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    answers: list[str] = [""] * len(chats)
    for batch in _generation_batches([len(chat.prompt_ids) for chat in chats], config.max_new_tokens_eval):
        prompts = [chats[i].prompt_ids for i in batch]
        width = max(map(len, prompts))
        ids = [[tokenizer.pad_token_id] * (width - len(prompt)) + prompt for prompt in prompts]
        mask = [[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts]
        with torch.no_grad():
            output = model.generate(
                input_ids=torch.tensor(ids, device=model.device),
                attention_mask=torch.tensor(mask, device=model.device),
                generation_config=settings,
            )
        for index, tokens in zip(batch, output[:, width:], strict=True):
            answers[index] = tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return answers


def _generation_batches(prompt_lengths: list[int], num_new: int) -> Iterator[list[int]]:
    """Group prompts of like length, as many as the key-value cache of a batch has room for."""
    batch: list[int] = []
    for index in sorted(range(len(prompt_lengths)), key=prompt_lengths.__getitem__):
        if batch and (len(batch) + 1) * (prompt_lengths[index] + num_new) > _CACHED_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


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
    chats = read_chats(options.eval_file)
    quiet_libraries(folder)

    tokenizer = load_tokenizer(folder)
    config = replace(config, max_length=fitting_length(read_model_config(folder, None), config.max_length))
    encoded, stop_token_ids = encode_chats(chats, tokenizer, config.max_length, options.eval_file.name)
    hardware = choose_hardware(config)
    model = load_model(folder, None, hardware)
    ensure_pad_token(tokenizer, model, stop_token_ids)
    stop_at(model, tokenizer, stop_token_ids)
    evaluation = evaluate_model(model, tokenizer, encoded, config)
    return {"model_digest": digest_folder(folder), **evaluation.to_dict()}


if __name__ == "__main__":
    sys.exit(main())
