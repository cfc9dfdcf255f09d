"""Finds the base model: a hub id, or a folder in one of the layouts that models are registered in."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from pathlib import Path

from trainer.errors import TrainerError

_DEPTH = 4  # of a model below the folder that is given: mlflow_model_folder/data/model/
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "tokenizer.model")


def resolve_base_model(base_model: str) -> str:
    """Tell a local model folder from a hub id, and find the model in a packaged one.

    Beside a Hugging Face folder it takes MLflow's (`model/`), Azure's registries' (`data/model/` and `data/tokenizer/`)
    and a folder that holds either of them.

    Raises:
        TrainerError: a path that is not there, or holds no model.
    """
    path = Path(base_model).expanduser()
    if path.is_dir():
        return str(_with_tokenizer(_find_weights(path), path).resolve())
    if base_model.startswith((".", "/", "~")) or base_model.count("/") > 1:
        raise TrainerError(
            f"Base model folder {path} does not exist.", "Check the path, or give a hub id.", "configuration"
        )
    return base_model


def _find_weights(root: Path) -> Path:
    """The one folder that holds a model's configuration and weights; the nearest, where there are several."""
    if (root / "config.json").is_file():
        return root
    found = [path.parent for path in _below(root, "config.json") if _is_model(path)]
    if not found:
        raise TrainerError(
            f"Base model folder {root} holds no config.json with weights beside it.",
            "Give a Hugging Face or MLflow model folder, or a hub id.",
            "configuration",
        )
    nearest = [path for path in found if _depth(path, root) == _depth(found[0], root)]
    if len(nearest) > 1:
        names = ", ".join(str(path.relative_to(root)) for path in nearest)
        raise TrainerError(f"Base model folder {root} holds several models: {names}.", "Name one.", "configuration")
    return nearest[0]


def _with_tokenizer(model: Path, root: Path) -> Path:
    """The model with its tokenizer beside it; links to both where they are in different folders."""
    if any((model / name).is_file() for name in _TOKENIZER):
        return model
    found = [path.parent for name in _TOKENIZER for path in _below(root, name)]
    if not found:
        return model  # the loader says what is missing
    joined = Path(tempfile.mkdtemp(prefix="phiflow-base-model-"))
    atexit.register(shutil.rmtree, joined, ignore_errors=True)
    for folder in (found[0], model):  # the model's own files win
        for file in folder.iterdir():
            if file.is_file():
                (joined / file.name).unlink(missing_ok=True)
                (joined / file.name).symlink_to(file.resolve())
    return joined


def _below(root: Path, name: str) -> list[Path]:
    paths = [path for path in root.rglob(name) if path.is_file() and _depth(path.parent, root) <= _DEPTH]
    return sorted(paths, key=lambda path: (_depth(path, root), str(path)))


def _depth(path: Path, root: Path) -> int:
    return len(path.relative_to(root).parts)


def _is_model(config: Path) -> bool:
    try:
        known = "model_type" in json.loads(config.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return known and any(True for pattern in _WEIGHTS for _ in config.parent.glob(pattern))
