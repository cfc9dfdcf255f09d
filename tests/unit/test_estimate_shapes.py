"""How many parameters a model has, from its config.json or the table of those that are known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasks.estimate.model_shapes import KNOWN, find_shape, shape_of
from tasks.platforms.errors import ConfigError

PHI3 = {
    "model_type": "phi3",
    "hidden_size": 3072,
    "intermediate_size": 8192,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 32,
    "vocab_size": 32064,
    "max_position_embeddings": 4096,
    "tie_word_embeddings": False,
}
# Published configurations; the numbers are what the model pages count in the weights.
PUBLISHED: list[tuple[str, dict[str, Any], int]] = [
    ("Phi-3-mini-4k-instruct", PHI3, 3_821_079_552),
    (
        "Phi-4-mini-instruct",
        PHI3 | {"num_attention_heads": 24, "num_key_value_heads": 8, "vocab_size": 200064, "tie_word_embeddings": True},
        3_836_021_760,
    ),
    (
        "TinyLlama-1.1B",
        {
            "model_type": "llama",
            "hidden_size": 2048,
            "intermediate_size": 5632,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "vocab_size": 32000,
        },
        1_100_048_384,
    ),
    (
        "Qwen2.5-0.5B",
        {
            "model_type": "qwen2",
            "hidden_size": 896,
            "intermediate_size": 4864,
            "num_hidden_layers": 24,
            "num_attention_heads": 14,
            "num_key_value_heads": 2,
            "vocab_size": 151936,
            "tie_word_embeddings": True,
        },
        494_032_768,
    ),
]


@pytest.mark.parametrize(("name", "config", "number"), PUBLISHED, ids=[name for name, *_ in PUBLISHED])
def test_parameters_are_those_of_the_weights(name: str, config: dict[str, Any], number: int) -> None:
    """The count from config.json is the count of the published weights, to the last one."""
    shape = shape_of(config, name)
    assert shape is not None
    assert shape.num_parameters == number


def test_built_in_model_is_as_the_trainer_counts_it() -> None:
    """The table's shape of the built-in model has the number of parameters that the trainer logs."""
    assert KNOWN["builtin/tiny-phi3"].num_parameters == 1_992_384


def test_floor_of_the_arithmetic_is_the_known_one() -> None:
    """What every token is multiplied with leaves out the input embedding, unless it is the output's too."""
    phi = KNOWN["microsoft/phi-3.5-mini-instruct"]
    assert phi.num_parameters - phi.num_multiplied_parameters == 32064 * 3072
    tied = KNOWN["microsoft/phi-4-mini-instruct"]
    assert tied.num_multiplied_parameters == tied.num_parameters


def test_lora_is_on_every_linear_layer() -> None:
    """Rank 16 on the four fused matrices of Phi-3 is 25 million parameters; where they are apart there are seven."""
    assert KNOWN["microsoft/phi-3.5-mini-instruct"].lora_parameters(16) == 32 * 16 * (
        (3072 + 9216) + (3072 + 16384) + (3072 + 3072) + (8192 + 3072)
    )
    apart = shape_of(PHI3 | {"model_type": "llama"}, "")
    assert apart is not None
    assert len(apart.layer_matrices) == 7


def test_local_folder_says_its_shape(tmp_path: Path) -> None:
    """A folder's own config.json counts, also below a packaged model's folders; nothing is asked elsewhere."""
    (tmp_path / "data" / "model").mkdir(parents=True)
    (tmp_path / "data" / "model" / "config.json").write_text(json.dumps(PHI3))
    shape = find_shape(str(tmp_path))
    assert shape is not None
    assert (shape.num_parameters, shape.context_tokens) == (3_821_079_552, 4096)
    assert shape.source.endswith("config.json")


@pytest.mark.parametrize(
    "config",
    [{}, {"hidden_size": 8}, PHI3 | {"num_local_experts": 8}, PHI3 | {"hidden_size": None}],
    ids=["empty", "partial", "experts", "null"],
)
def test_other_architecture_has_no_shape(config: dict[str, Any]) -> None:
    """What is no plain decoder is not guessed at."""
    assert shape_of(config, "") is None


def test_broken_config_is_told(tmp_path: Path) -> None:
    """A config.json that is no JSON is named in one line."""
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"config\.json cannot be read"):
        find_shape(str(tmp_path))


@pytest.mark.parametrize("base", ["azureml:phi:3", "azureml://registries/x/models/y", "somebody/unheard-of"])
def test_unreachable_model_has_no_shape(base: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model in Azure, or on a hub that is off, has a shape that nobody knows; nothing is raised."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert find_shape(base) is None
