"""Loads a base model and its tokenizer, from a hub id or a local folder, for the hardware at hand."""

from __future__ import annotations

import logging
import os
import ssl
import urllib.error
import urllib.request
from typing import Any

from trainer.errors import TrainerError
from trainer.hardware import Hardware

log = logging.getLogger(__name__)

# FLOPs of a forward and backward pass; on two busy cores, two threads took five times as long as one for 2 GFLOP.
_FEW_FLOPS = 20e9


def quiet_libraries(base_model: str) -> None:
    """Set what the libraries read from the environment at import; call before importing them."""
    os.environ["TRANSFORMERS_VERBOSITY"] = os.environ.get("TRANSFORMERS_VERBOSITY", "error")
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
    os.environ["HF_HUB_VERBOSITY"] = "error"
    os.environ["TQDM_DISABLE"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["DISABLE_MLFLOW_INTEGRATION"] = "TRUE"  # logs more parameters than Azure ML accepts
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # on a CPU it asks for a package at import
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # waiting threads give their core to the other processes
    if os.path.isdir(base_model):
        os.environ["HF_HUB_OFFLINE"] = "1"  # saving would ask the hub about the local folder, for 45 s


def require_reachable(base_model: str, revision: str | None) -> None:
    """Ask the hub once for a model that is not on this machine; the loader would retry for half a minute.

    Raises:
        TrainerError: the hub does not answer.
    """
    from huggingface_hub import hf_hub_url, try_to_load_from_cache

    if os.path.isdir(base_model):
        return
    if isinstance(try_to_load_from_cache(base_model, "config.json", revision=revision), str):
        return
    url = hf_hub_url(base_model, "config.json", revision=revision)
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=10).close()
    except urllib.error.HTTPError:
        return  # an answer; the loader says what it means
    except OSError as error:
        reason = getattr(error, "reason", error)
        if isinstance(reason, ssl.SSLError):
            return  # the hub's own client may trust other certificates
        raise TrainerError(
            f"Base model {base_model!r} is not on this machine, and {url} did not answer: {reason}.",
            "Check model.base and the network, or give a local model folder.",
            "configuration",
        ) from error


def load_tokenizer(base_model: str, revision: str | None = None) -> Any:
    """Load the tokenizer and give it a pad token that is never learned."""
    from transformers import AutoTokenizer

    tokenizer = _loaded(AutoTokenizer, base_model, revision=revision)
    tokenizer.padding_side = "right"
    return tokenizer


def load_model(base_model: str, revision: str | None, hardware: Hardware, held: dict[str, Any]) -> Any:
    """Load the weights, held in memory as trainer.precision says, with the chosen attention."""
    from transformers import AutoModelForCausalLM

    from trainer.attention import register, rotate_by_conversation

    model = _loaded(
        AutoModelForCausalLM,
        base_model,
        revision=revision,
        attn_implementation=register(hardware.attention),
        **held,
    )
    rotate_by_conversation(model)
    return model if "device_map" in held else model.to(hardware.device)


def choose_threads(model: Any, num_tokens: float) -> None:
    """Keep to one thread on a CPU where a pass over so many tokens is little work."""
    import torch

    if model.device.type != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return
    flops = 6 * model.num_parameters() * num_tokens
    if flops < _FEW_FLOPS and torch.get_num_threads() > 1:
        torch.set_num_threads(1)
        log.info("Chose threads=1 (a pass of %.1f GFLOP is too little to share)", flops / 1e9)


def read_model_config(base_model: str, revision: str | None) -> Any:
    """Read the base model's configuration, without its weights."""
    from transformers import AutoConfig

    return _loaded(AutoConfig, base_model, revision=revision)


def fitting_length(model_config: Any, max_length: int) -> int:
    """The longest conversation to learn from: what is configured, at most the model's context."""
    context = getattr(model_config.get_text_config(), "max_position_embeddings", None)
    if not context or context >= max_length:
        return max_length
    log.info("Chose max_length=%d (the model's context; train.max_length is %d)", context, max_length)
    return context


def _loaded(loader: Any, base_model: str, **arguments: Any) -> Any:
    try:
        return loader.from_pretrained(base_model, trust_remote_code=False, **arguments)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split()).split(". ")[0][:300]
        if "gated" in str(error).lower():
            raise TrainerError(
                f"Base model {base_model!r} is gated: its owner gives it to accounts that accepted the terms.",
                "Accept them on the model's page, then give a token of that account: HF_TOKEN on this machine, "
                "platform.hub_token_secret on Azure.",
                "configuration",
            ) from error
        raise TrainerError(
            f"Base model {base_model!r} could not be loaded: {reason}.",
            "Check model.base and model.revision, the network, and HF_TOKEN for a gated model.",
            "configuration",
        ) from error


def ensure_pad_token(tokenizer: Any, model: Any, stop_token_ids: set[int]) -> None:
    """Give tokenizer and model a pad token that neither ends an answer nor is learned."""
    taken = {*stop_token_ids, tokenizer.eos_token_id}
    choices = [tokenizer.pad_token, tokenizer.unk_token]
    choices += ["<|pad|>", "<pad>", "[PAD]", "<|finetune_right_pad_id|>", "<|placeholder1|>", "<|fim_pad|>"]
    vocabulary = tokenizer.get_vocab()
    pad = next((t for t in choices if t and t in vocabulary and vocabulary[t] not in taken), None)
    if pad is None:
        pad = "<|pad|>"
        tokenizer.add_special_tokens({"pad_token": pad})
    tokenizer.pad_token = pad
    fit_tokenizer(model, tokenizer)
    log.info("Chose pad_token=%s", pad)


def fit_tokenizer(model: Any, tokenizer: Any) -> None:
    """Give the model the tokenizer's pad token, and rows for tokens that it has no embedding of."""
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer), pad_to_multiple_of=64)
    model.config.pad_token_id = tokenizer.pad_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id


def stop_at(model: Any, tokenizer: Any, stop_token_ids: set[int]) -> None:
    """Make the model's own generation settings stop at the tokens it was taught to stop with."""
    known = model.generation_config.eos_token_id
    known = [known] if isinstance(known, int) else list(known or [tokenizer.eos_token_id])
    model.generation_config.eos_token_id = [*known, *sorted(stop_token_ids - set(known))]
