"""Greedy answers to conversations' last questions, in batches padded on the left.

Training's attention knows rows without padding alone, so that generation switches to another one, and back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

_CACHED_TOKENS = 8192  # of one generation batch; 3 GB for Phi-3.5-mini in bf16


@dataclass(frozen=True, slots=True)
class Answer:
    """What a model said.

    Args:
        text: without control tokens.
        token_ids: generated, without the stop token.
        stopped: whether it ended by itself; False where it was cut at max_new_tokens.
    """

    text: str
    token_ids: tuple[int, ...]
    stopped: bool


@contextmanager
def generating(model: Any) -> Iterator[None]:
    """Within, the model is in evaluation mode and takes padded batches; afterwards it is as before, and so is what is
    random.
    """
    training, attention = model.training, model.config._attn_implementation
    devices = [model.device] if model.device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.no_grad():
        model.eval()
        model.set_attn_implementation("eager" if attention == "eager" else "sdpa")
        try:
            yield
        finally:
            model.set_attn_implementation(attention)
            model.train(training)


def greedy_answers(model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int) -> list[Answer]:
    """Answer each prompt, given as token ids; within generating(model)."""
    from transformers import GenerationConfig

    stops = model.generation_config.eos_token_id
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=stops,
        pad_token_id=tokenizer.pad_token_id,
        use_cache=True,
    )
    stops = {stops} if isinstance(stops, int) else set(stops)
    answers: dict[int, Answer] = {}
    for batch in generation_batches([len(prompt) for prompt in prompts], max_new_tokens):
        width = max(len(prompts[i]) for i in batch)
        ids = [[tokenizer.pad_token_id] * (width - len(prompts[i])) + list(prompts[i]) for i in batch]
        mask = [[0] * (width - len(prompts[i])) + [1] * len(prompts[i]) for i in batch]
        output = model.generate(
            input_ids=torch.tensor(ids, device=model.device),
            attention_mask=torch.tensor(mask, device=model.device),
            generation_config=settings,
        )
        for index, tokens in zip(batch, output[:, width:].tolist(), strict=True):
            answers[index] = _answer(tokens, tokenizer, stops)
    return [answers[index] for index in range(len(prompts))]


def generation_batches(prompt_lengths: Sequence[int], num_new: int) -> Iterator[list[int]]:
    """Group prompts of like length, as many as the key-value cache of a batch has room for."""
    batch: list[int] = []
    for index in sorted(range(len(prompt_lengths)), key=prompt_lengths.__getitem__):
        if batch and (len(batch) + 1) * (prompt_lengths[index] + num_new) > _CACHED_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _answer(tokens: list[int], tokenizer: Any, stops: set[int]) -> Answer:
    end = next((place for place, token in enumerate(tokens) if token in stops), len(tokens))
    # An answer that was cut may end within a letter of several tokens, which a longer one completes.
    text = tokenizer.decode(tokens[:end], skip_special_tokens=True).rstrip("\ufffd").strip()
    return Answer(text, tuple(tokens[:end]), end < len(tokens))
