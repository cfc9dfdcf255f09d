"""Packages a trained model: an MLflow transformers model whose model/ is a complete Hugging Face folder."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import os
import re
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.files import CARD, digest_model, replace_folder

log = logging.getLogger(__name__)

TASK = "llm/v1/chat"
_TRACES = ("auto_map", "custom_pipelines", "is_local", "local_files_only")
_NOTICE = re.compile(r"(licen[cs]e|notice)(\.(md|txt))?$", re.IGNORECASE)
_REQUIRED = ("mlflow", "torch", "transformers", "accelerate", "tokenizers", "safetensors", "huggingface-hub", "jinja2")


def installed_versions() -> dict[str, str]:
    """The versions that a packaged model needs to load; torch without the tag of one machine's build."""
    return {name: importlib.metadata.version(name).split("+")[0] for name in _REQUIRED}


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What goes into a package.

    Args:
        dtype: precision that the weights are stored in.
        name: what the base model is known by, for MLflow's record; never a path of this machine.
        card: text of the model's README.md.
        adapter: folder with the adapter that was merged, if one was.
        notices: licence files of the base model, which come along.
    """

    model: Any
    tokenizer: Any
    dtype: Any
    name: str
    card: str
    adapter: Path | None = None
    notices: tuple[Path, ...] = ()


def package_model(parts: Parts, target: Path) -> str:
    """Write the model folder, whole or not at all, and return the digest of its weights and tokenizer."""
    for parameter in parts.model.parameters():
        parameter.data = parameter.data.to(parts.dtype)
    work = _work_folder(target)
    try:
        package = work / "package"
        _save_mlflow(parts, package)
        # MLflow keeps the tokenizer in components/; with it in model/ too, that folder serves by itself.
        parts.tokenizer.save_pretrained(package / "model")
        for folder in (package / "model", package / "components" / "tokenizer"):
            _leave_no_trace(folder)
        for notice in parts.notices:
            shutil.copyfile(notice, package / "model" / notice.name)
        (package / "model" / CARD).write_text(parts.card, encoding="utf-8")
        if parts.adapter:
            shutil.copytree(parts.adapter, package / "adapter")
        digest = digest_model(package / "model")
        replace_folder(package, target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    log.info("Packaged model folder=%s digest=%s", target, digest[:12])
    return digest


def notices_in(base_model: str) -> tuple[Path, ...]:
    """Licence files of a base model that is a folder; its terms ask that they stay with what is made from it."""
    folder = Path(base_model)
    if not folder.is_dir():
        return ()
    return tuple(sorted(path for path in folder.iterdir() if path.is_file() and _NOTICE.match(path.name)))


def _leave_no_trace(folder: Path) -> None:
    """Take from the settings what asks for remote code, and what tells how this process loaded the files."""
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        path = folder / name
        if not path.is_file():
            continue
        settings = json.loads(path.read_text(encoding="utf-8"))
        kept = {key: value for key, value in settings.items() if key not in _TRACES}
        if kept != settings:
            path.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _work_folder(target: Path) -> Path:
    """A folder beside the target, from where the package is renamed; anywhere, where only the target is writable."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    except OSError:
        if not target.is_dir():
            raise
        return Path(tempfile.mkdtemp(prefix=f"{target.name}."))


def _save_mlflow(parts: Parts, target: Path) -> None:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # importing it would report that
    import mlflow.transformers

    logging.getLogger("mlflow").setLevel(logging.ERROR)  # it advises about cards and signatures we set
    parts.model.name_or_path = parts.model.config._name_or_path = parts.name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        mlflow.transformers.save_model(
            transformers_model={"model": parts.model, "tokenizer": parts.tokenizer},
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
