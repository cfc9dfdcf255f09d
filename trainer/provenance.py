"""Where a trained model comes from: enough to make it again, and nothing private to the machine that made it."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.files import digest_folder, sha256_file

if TYPE_CHECKING:
    from trainer.job import Run, TrainJob

ENVIRONMENT_VARIABLE = "PHIFLOW_ENVIRONMENT"  # the platform's name and digest of the environment, where it has one
BASE_VARIABLE = "PHIFLOW_BASE_MODEL"  # what the configuration calls the base, whatever folder it comes in
_LAYOUT = (os.sep, "model", "data", "artifacts", "mlflow_model_folder")  # says nothing about which model it is
_VERSIONS = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "bitsandbytes",
    "tokenizers",
    "safetensors",
    "mlflow",
)


def provenance_of(run: Run) -> dict[str, Any]:
    """Everything that decided the weights: base, data, settings, seed, code, software and machine."""
    job = run.job
    settings = job.config.to_dict()
    return {
        "base_model": base_identity(job),
        "method": job.config.method,
        "seed": job.config.seed,
        "config": settings,
        "config_digest": _digest(settings),
        "data": {
            "train": {"sha256": sha256_file(job.train_file), "num_conversations": len(run.train_chats)},
            "eval": {"sha256": sha256_file(job.eval_file), "num_conversations": len(run.eval_chats)},
        },
        "code_digest": code_digest(),
        "environment": os.environ.get(ENVIRONMENT_VARIABLE) or f"packages {_packages_digest()[:16]}",
        "versions": {"python": platform.python_version(), **_installed(_VERSIONS)},
        "machine": _machine(run.hardware.device),
    }


def base_identity(job: TrainJob) -> dict[str, Any]:
    """The base model by what others can find: a hub id and revision, or a folder's content."""
    folder = Path(job.base_model)
    digest = digest_folder(folder) if folder.is_dir() else None
    return {"name": public_name(job.base_model), "revision": job.revision, "digest": digest}


def public_name(base_model: str) -> str:
    """What people know the base by: what the platform calls it, a hub id, or a folder's name; never a path."""
    told = os.environ.get(BASE_VARIABLE) or base_model
    if not Path(told).is_absolute():
        return told
    cached = [part.removeprefix("models--").replace("--", "/") for part in Path(told).parts if "models--" in part]
    telling = [part for part in Path(told).parts if part not in _LAYOUT]
    return (cached or telling or ["model"])[-1]


def code_digest() -> str:
    """Of the trainer's own source."""
    folder = Path(__file__).parent
    files = {path.relative_to(folder).as_posix(): sha256_file(path) for path in folder.rglob("*.py")}
    return _digest(files)


def _packages_digest() -> str:
    """Of the names and versions of everything installed."""
    found = {f"{item.metadata['Name']}=={item.version}".lower() for item in importlib.metadata.distributions()}
    return _digest(sorted(found))


def _installed(names: tuple[str, ...]) -> dict[str, str]:
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _machine(device: str) -> dict[str, Any]:
    """The processors that computed; their kind decides the last bits of a weight."""
    import torch

    if device == "cpu":
        capability = torch.backends.cpu.get_cpu_capability()
        return {"device": "cpu", "name": f"{platform.machine()} {capability}", "num_threads": torch.get_num_threads()}
    return {
        "device": "cuda",
        "name": torch.cuda.get_device_name(),
        "num_devices": int(os.environ.get("WORLD_SIZE", "1")),
        "cuda": torch.version.cuda,
    }


def _digest(value: Any) -> str:
    return sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
