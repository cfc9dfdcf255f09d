"""Packages a trained model: an MLflow transformers model whose model/ is a complete Hugging Face folder."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import shutil
import tempfile
import warnings
from pathlib import Path
from typing import Any

from trainer.files import digest_folder, replace_folder

log = logging.getLogger(__name__)

TASK = "llm/v1/chat"
_REQUIRED = ("mlflow", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "huggingface-hub", "jinja2")


def installed_versions() -> dict[str, str]:
    """The versions that a packaged model needs to load; torch without the tag of one machine's build."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in _REQUIRED}


def package_model(model: Any, tokenizer: Any, target: Path) -> str:
    """Write the model folder, whole or not at all, and return the digest of its weights and tokenizer."""
    work = _work_folder(target)
    try:
        _save_mlflow(model, tokenizer, work / "package")
        # MLflow keeps the tokenizer in components/; with it in model/ too, that folder serves by itself.
        tokenizer.save_pretrained(work / "package" / "model")
        digest = digest_folder(work / "package" / "model")
        replace_folder(work / "package", target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("Packaged model folder=%s digest=%s", target, digest[:12])
    return digest


def _work_folder(target: Path) -> Path:
    """A folder beside the target, from where the package is renamed; anywhere, where only the target is writable."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError:
        if not target.is_dir():
            raise
        return Path(tempfile.mkdtemp(prefix=f"{target.name}."))


def _save_mlflow(model: Any, tokenizer: Any, target: Path) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # importing it would report that
    import mlflow.transformers

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it advises about cards and signatures we set
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.transformers.save_model(
            transformers_model={"model": model, "tokenizer": tokenizer},
            path=str(target),
            task=TASK,
            pip_requirements=[f"{name}=={version}" for name, version in installed_versions().items()],
        )
    _fit_signature(target)


def _fit_signature(target: Path) -> None:
    """Give the model the signature with which Azure Machine Learning serves it without code.

    The service's scoring script makes a sample of each input and output and ends at MLflow's own chat signature: a
    list as the first input, any list among the outputs. It drops parameters that the signature does not name; with
    these a request is answered greedily unless it says otherwise, where transformers would sample.
    """
    from mlflow.models import Model
    from mlflow.models.signature import ModelSignature
    from mlflow.types.schema import DataType, ParamSchema, ParamSpec, Schema

    model = Model.load(str(target))
    inputs = sorted(model.signature.inputs.inputs, key=lambda column: not isinstance(column.type, DataType))
    params = [
        ParamSpec("max_new_tokens", DataType.long, 512),
        ParamSpec("do_sample", DataType.boolean, False),
        ParamSpec("temperature", DataType.double, 1.0),
        ParamSpec("top_p", DataType.double, 1.0),
    ]
    model.signature = ModelSignature(inputs=Schema(inputs), outputs=None, params=ParamSchema(params))
    model.save(str(target / "MLmodel"))
