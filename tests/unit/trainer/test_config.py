from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from trainer.config import TrainConfig, TrainConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lerning_rate": 1}, "Did you mean train.learning_rate?"),
        ({"learning_rate": "fast"}, "train.learning_rate must be a number or null, not 'fast'"),
        ({"learning_rate": 0}, "must be above 0"),
        ({"learning_rate": 50}, "must be at most 1"),
        ({"learning_rate": float("nan")}, "finite"),
        ({"num_train_epochs": -1}, "must be above 0"),
        ({"max_steps": 0}, "must not be 0"),
        ({"seed": True}, "must be a whole number, not True"),
        ({"packing": 1}, "must be true or false"),
        ({"max_length": None}, "must be a whole number, not None"),
        ({"max_length": 99.5}, "must be a whole number, not 99.5"),
        ({"method": "lor"}, "Did you mean lora?"),
        ([1], "keys and values"),
    ],
)
def test_a_wrong_value_is_named(values, message):
    """A value that cannot be used is refused in one line that names the field and what is allowed."""
    with pytest.raises(TrainConfigError) as refused:
        TrainConfig.from_dict(values)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


def test_round_trip_through_json():
    """A configuration written as JSON reads back equal."""
    config = TrainConfig(learning_rate=3e-3, packing=False, bf16=None, method="lora")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_yaml_numbers_are_numbers():
    """5e-6, which YAML reads as text, is the number it looks like."""
    assert TrainConfig.from_dict({"learning_rate": "5e-6"}).learning_rate == 5e-6


def test_default_learning_rate_follows_the_method():
    """Without a learning rate, the method decides it."""
    assert TrainConfig().peak_learning_rate == 5e-6
    assert TrainConfig(method="lora").peak_learning_rate == 2e-4
    assert TrainConfig(method="lora", learning_rate=1e-3).peak_learning_rate == 1e-3


def test_importable_without_torch():
    """The configuration imports only the standard library."""
    script = (
        "import sys, trainer.config\n"
        "third = {'torch', 'transformers', 'trl', 'mlflow', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(str(third) if third else 0)"
    )
    root = Path(__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0
