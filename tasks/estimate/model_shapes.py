"""The shape of a base model: how many parameters, in what layers; from its config.json or a small table.

The names are those of config.json on the Hugging Face hub, so that one can be compared with the other.
"""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.platforms.errors import ConfigError

_log = logging.getLogger(__name__)
_HUB_SECONDS = 5.0
_DEPTH = 4  # as trainer/base_model.py looks


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """A decoder with gated feed-forward layers, as Phi-3, Llama, Mistral and Qwen2 are.

    Args:
        source: where the numbers are from, for people.
        fused: query, key and value are one matrix, and gate and up another, as in Phi-3; decides LoRA's size.
        context_tokens: the longest row the model takes, or 0 where it is not known.
    """

    source: str
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool
    fused: bool = True
    context_tokens: int = 0
    num_bias_parameters: int = 0

    @property
    def key_value_size(self) -> int:
        """Width of keys, and of values."""
        return self.num_key_value_heads * self.head_dim

    @property
    def query_size(self) -> int:
        """Width of queries."""
        return self.num_attention_heads * self.head_dim

    @property
    def embedding_parameters(self) -> int:
        """Parameters of one matrix of token embeddings."""
        return self.vocab_size * self.hidden_size

    @property
    def num_embedding_parameters(self) -> int:
        """Parameters of the token embeddings and of the output layer."""
        return self.embedding_parameters * (1 if self.tie_word_embeddings else 2)

    @property
    def layer_matrices(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of each linear layer in one block."""
        hidden, keys = self.hidden_size, self.key_value_size
        inner: tuple[tuple[int, int], ...]
        if self.fused:
            inner = ((hidden, self.query_size + 2 * keys), (hidden, 2 * self.intermediate_size))
        else:
            inner = (
                *((hidden, self.query_size), (hidden, keys), (hidden, keys)),
                *((hidden, self.intermediate_size), (hidden, self.intermediate_size)),
            )
        return (*inner, (self.query_size, hidden), (self.intermediate_size, hidden))

    @property
    def num_parameters(self) -> int:
        """All parameters: embeddings, linear layers, norms."""
        layer = sum(inputs * outputs for inputs, outputs in self.layer_matrices) + 2 * self.hidden_size
        return (
            self.num_embedding_parameters + layer * self.num_hidden_layers + self.hidden_size + self.num_bias_parameters
        )

    @property
    def num_multiplied_parameters(self) -> int:
        """Parameters that every token is multiplied with: all but the input embedding, which is looked up."""
        tied = self.tie_word_embeddings
        return self.num_parameters if tied else self.num_parameters - self.embedding_parameters

    def lora_parameters(self, rank: int) -> int:
        """Parameters of LoRA matrices on every linear layer of the blocks, as trainer/model.py puts them."""
        each = sum(rank * (inputs + outputs) for inputs, outputs in self.layer_matrices)
        return each * self.num_hidden_layers


def _phi(heads: int, keys: int, vocabulary: int, context: int, tied: bool, page: str) -> ModelShape:
    return ModelShape(
        source=f"known shape, https://huggingface.co/{page}/blob/main/config.json",
        hidden_size=3072,
        intermediate_size=8192,
        num_hidden_layers=32,
        num_attention_heads=heads,
        num_key_value_heads=keys,
        head_dim=3072 // heads,
        vocab_size=vocabulary,
        tie_word_embeddings=tied,
        context_tokens=context,
    )


_TINY = ModelShape(
    source="trainer/tiny_model.py",
    hidden_size=192,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    head_dim=48,
    vocab_size=1152,
    tie_word_embeddings=True,
    context_tokens=1024,
)
# As the model pages say: 3.82 billion parameters, and 3.84 of Phi-4-mini.
_PHI3, _PHI4 = "microsoft/Phi-3-mini-4k-instruct", "microsoft/Phi-4-mini-instruct"
KNOWN = {
    "builtin/tiny-phi3": _TINY,
    _PHI3.lower(): _phi(32, 32, 32064, 4096, False, _PHI3),
    "microsoft/phi-3-mini-128k-instruct": _phi(32, 32, 32064, 131072, False, "microsoft/Phi-3-mini-128k-instruct"),
    "microsoft/phi-3.5-mini-instruct": _phi(32, 32, 32064, 131072, False, "microsoft/Phi-3.5-mini-instruct"),
    _PHI4.lower(): _phi(24, 8, 200064, 131072, True, _PHI4),
}


def find_shape(base: str, revision: str = "", location: str = "") -> ModelShape | None:
    """The shape of a base model; None, with a line in the log, where nothing says it.

    Looked for in a local folder, the hub's cache on this machine, the table of known models, and the hub itself.
    """
    for folder in (location, base):
        if folder and Path(folder).is_absolute() and (config := _nearest_config(Path(folder))):
            return read_shape(config)
    if cached := _cached(base, revision):
        return read_shape(cached)
    if known := KNOWN.get(base.lower()):
        return known
    if "://" in base or base.startswith("azureml:") or Path(base).is_absolute():
        return None
    return _from_hub(base, revision)


def read_shape(path: Path) -> ModelShape | None:
    """The shape that a config.json says; None where it is no decoder that is known here."""
    try:
        return shape_of(json.loads(path.read_text(encoding="utf-8")), str(path))
    except (OSError, ValueError) as error:
        raise ConfigError(f"Model configuration {path} cannot be read: {error}.", fix="Check model.base.") from error


def shape_of(config: dict[str, Any], source: str) -> ModelShape | None:
    """The shape from the keys of config.json; None where one of them is missing, or the layers are experts."""
    config = config.get("text_config") or config
    if config.get("num_local_experts") or config.get("n_routed_experts"):
        return None
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        head_dim = int(config.get("head_dim") or hidden // heads)
        keys = int(config.get("num_key_value_heads") or heads)
        layers = int(config["num_hidden_layers"])
        has_bias = config.get("attention_bias") or str(config.get("model_type")).startswith("qwen2")
        return ModelShape(
            source=source,
            hidden_size=hidden,
            intermediate_size=int(config["intermediate_size"]),
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=keys,
            head_dim=head_dim,
            vocab_size=int(config["vocab_size"]),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            fused=config.get("model_type") == "phi3",
            context_tokens=int(config.get("max_position_embeddings") or 0),
            num_bias_parameters=layers * head_dim * (heads + 2 * keys) if has_bias else 0,
        )
    except (KeyError, TypeError, ValueError):
        return None


def _nearest_config(folder: Path) -> Path | None:
    found = [path for path in folder.rglob("config.json") if len(path.relative_to(folder).parts) <= _DEPTH + 1]
    return min(found, key=lambda path: len(path.parts), default=None)


def _cached(base: str, revision: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(base, "config.json", revision=revision or None)
    except HFValidationError:  # no hub id
        return None
    return Path(found) if isinstance(found, str) else None


def _from_hub(base: str, revision: str) -> ModelShape | None:
    import requests
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes"):
        return None
    token = os.environ.get("HF_TOKEN")
    try:
        url = hf_hub_url(base, "config.json", revision=revision or None)
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        response = requests.get(url, headers=headers, timeout=_HUB_SECONDS)
        response.raise_for_status()
        return shape_of(response.json(), f"config.json of {base} on the hub")
    except (requests.RequestException, HFValidationError, ValueError) as error:
        _log.info("No configuration of %s on the hub: %s", base, type(error).__name__)
        return None
