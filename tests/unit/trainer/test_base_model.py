from __future__ import annotations

import json
from pathlib import Path

import pytest

from trainer.base_model import resolve_base_model
from trainer.errors import TrainerError


def model(folder: Path, *, tokenizer: bool = True) -> Path:
    """Empty files by the names of a Hugging Face model's."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "phi3"}))
    (folder / "model.safetensors").write_text("weights")
    if tokenizer:
        (folder / "tokenizer_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "place",
    ["", "model", "data/model", "mlflow_model_folder/model", "mlflow_model_folder/data/model"],
    ids=["hugging-face", "mlflow", "registry", "mlflow-inside", "registry-inside"],
)
def test_a_model_is_found_where_it_is_packaged(tmp_path, place):
    """The folder with configuration, weights and tokenizer is found in each layout that models are registered in."""
    folder = model(tmp_path / "given" / place)
    (tmp_path / "given" / "MLmodel").write_text("flavors: {}\n")
    assert resolve_base_model(str(tmp_path / "given")) == str(folder)


def test_a_tokenizer_from_its_own_folder_joins_the_model(tmp_path):
    """A model whose tokenizer is packaged beside it becomes one folder with both, and the package stays as it is."""
    folder = model(tmp_path / "data" / "model", tokenizer=False)
    tokenizer = tmp_path / "data" / "tokenizer"
    tokenizer.mkdir()
    (tokenizer / "tokenizer_config.json").write_text('{"of": "tokenizer"}')
    (tokenizer / "config.json").write_text('{"of": "tokenizer"}')
    joined = Path(resolve_base_model(str(tmp_path)))
    assert joined.joinpath("tokenizer_config.json").read_text() == '{"of": "tokenizer"}'
    assert json.loads(joined.joinpath("config.json").read_text()) == {"model_type": "phi3"}
    assert joined.joinpath("model.safetensors").read_text() == "weights"
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [((), "holds no config.json"), (("a", "b"), "holds several models: a, b")],
)
def test_no_one_model_is_one_line(tmp_path, names, expected):
    """A folder with no model, or with several, is refused by name."""
    for name in names:
        model(tmp_path / name)
    with pytest.raises(TrainerError, match=expected):
        resolve_base_model(str(tmp_path))


def test_a_hub_id_is_no_folder(tmp_path, monkeypatch):
    """What is not a folder here is a hub id, unless it is written as a path."""
    monkeypatch.chdir(tmp_path)
    assert resolve_base_model("microsoft/Phi-3.5-mini-instruct") == "microsoft/Phi-3.5-mini-instruct"
    with pytest.raises(TrainerError, match="does not exist"):
        resolve_base_model("./microsoft/Phi-3.5-mini-instruct")
