"""The checks of what a run starts from: the base model on the hub or in a folder, and the data."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.errors import PermissionDeniedError
from tasks.platforms.local.checking import failed, passed, warned
from tasks.platforms.local.preflight import (
    BUILTIN,
    registered_version,
    require_base_model,
    require_files,
    require_source,
)
from tasks.platforms.local.preparation import hub_commit
from tasks.platforms.upkeep import Check

if TYPE_CHECKING:
    from tasks.config import DataConfig, ModelConfig, PipelineConfig

_SECONDS = 10
# Weights, gradients and Adam's two moments in 32 bits; with adapters the base's weights alone.
_BYTES_A_PARAMETER = {"full": 16, "lora": 4}
_TEMPLATE_FILES = ("chat_template.jinja", "chat_template.json")


def check_base_model(model: ModelConfig, hub_token_secret: str | None = None) -> Iterator[Check]:
    """Whether the base model is there, may be read, and has a chat template.

    Args:
        hub_token_secret: on Azure the secret that jobs read the hub's token from, or an empty string.
    """
    require_base_model(model)
    if model.base == BUILTIN:
        yield passed("base model", f"{model.base}, built here")
    elif registered_version(model.base):
        yield passed("base model", f"{model.base}, which the run looks up in the registry")
    elif Path(model.base).is_absolute():
        yield _with_template(model.base, _has_template(Path(model.base)))
    else:
        yield from _check_hub(model, hub_token_secret)


def check_data(data: DataConfig) -> Iterator[Check]:
    """Whether the data can be read; of the hub's, whether it is there."""
    sources = [*data.sources, *([data.tests] if data.tests else [])]
    if not sources:  # it lies elsewhere
        return
    require_source(data)
    for source in sources:
        name = source.source
        if source.is_file:
            files = require_files(name)
            several = f" in {len(files)} files" if len(files) > 1 else ""
            yield passed("data", f"{name}, {sum(path.stat().st_size for path in files) / 1e3:,.0f} kB{several}")
            continue
        try:
            commit = hub_commit(name, source.revision, "dataset")
        except PermissionDeniedError as error:
            yield failed("data", error.message, f"Accept its terms at {_page(f'datasets/{name}')}, and set HF_TOKEN")
            return
        yield passed("data", f"{name} at {commit[:12]}")


def check_memory(config: PipelineConfig) -> Iterator[Check]:
    """Whether this machine's memory holds the training of a model whose parameters the hub counts."""
    if config.model.base == BUILTIN or registered_version(config.model.base) or Path(config.model.base).is_absolute():
        return
    import psutil

    parameters = int((getattr(_info(config.model), "safetensors", None) or {"total": 0})["total"])
    method = "full" if config.train.method == "full" else "lora"
    wanted, there = parameters * _BYTES_A_PARAMETER[method] / 1e9, psutil.virtual_memory().total / 1e9
    told = f"{parameters / 1e9:.1f} billion parameters take about {wanted:.0f} GB, this machine has {there:.0f} GB"
    if wanted > there:
        yield warned("memory", f"{told} (not counting a GPU's)", "--set train.method=lora, or a smaller model.base")
    elif parameters:
        yield passed("memory", told)


def _check_hub(model: ModelConfig, hub_token_secret: str | None) -> Iterator[Check]:
    try:
        commit = hub_commit(model.base, model.revision, "model")
        info = _info(model)
        if getattr(info, "gated", False):
            _require_open(model.base, commit)
    except PermissionDeniedError as error:
        yield failed("base model", error.message, _token_fix(model.base, hub_token_secret))
        return
    names = {file.rfilename for file in info.siblings or ()} if info else set()
    licence = getattr(getattr(info, "card_data", None), "license", None)
    told = f"{model.base} at {commit[:12]}" + (f", licence {licence}" if licence else "")
    if info is None:
        yield warned("base model", f"{told}, from this machine's cache: the hub was not reached")
        return
    yield _with_template(told, bool(names & set(_TEMPLATE_FILES)) or _template_on_hub(model.base, commit))


def _info(model: ModelConfig) -> Any:
    """What the hub says of a model, or None when it does not answer."""
    from huggingface_hub import HfApi

    try:
        return HfApi().model_info(model.base, revision=model.revision or None, timeout=_SECONDS)
    except Exception:  # the hub's and its HTTP library's errors have no base in common
        return None


def _require_open(base: str, commit: str) -> None:
    """PermissionDeniedError when a gated model does not open with this machine's token; its page always does."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import GatedRepoError

    try:
        get_hf_file_metadata(hf_hub_url(base, "config.json", revision=commit), timeout=_SECONDS)
    except GatedRepoError as error:
        raise PermissionDeniedError(f"{base} is gated, and the hub's token does not open it") from error


def _template_on_hub(base: str, commit: str) -> bool:
    import requests
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    url = hf_hub_url(base, "tokenizer_config.json", revision=commit)
    answer = requests.get(url, headers=build_hf_headers(), timeout=_SECONDS)
    return answer.ok and bool(answer.json().get("chat_template"))


def _has_template(folder: Path) -> bool:
    if any((folder / name).is_file() for name in _TEMPLATE_FILES):
        return True
    try:
        return bool(json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template"))
    except (OSError, ValueError):
        return False


def _with_template(told: str, has_template: bool) -> Check:
    if has_template:
        return passed("base model", f"{told}, with a chat template")
    return failed("base model", f"{told} has no chat template", "Choose an instruction-tuned model as model.base")


def _token_fix(base: str, hub_token_secret: str | None) -> str:
    accept = f"Accept its licence at {_page(base)}"
    if hub_token_secret is None:
        return f"{accept}, and set HF_TOKEN"
    name = hub_token_secret or "hub-token"
    setting = "" if hub_token_secret else f", and platform.hub_token_secret: {name}"
    return (
        f"{accept}; set HF_TOKEN here, and az keyvault secret set --vault-name VAULT --name {name} --file FILE{setting}"
    )


def _page(path: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{path}"
