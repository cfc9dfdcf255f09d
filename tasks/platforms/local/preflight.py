"""What can be seen to be wrong before anything is built or started."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.platforms.errors import ConfigError, ConflictError, DataError
from tasks.platforms.local.chat import program_name
from tasks.platforms.local.services import Services
from tasks.platforms.local.state import LEAST_FREE_BYTES, Home, project_folder
from trainer.data.listing import list_files

if TYPE_CHECKING:
    from tasks.config import DataConfig, ModelConfig, PipelineConfig, SourceConfig

BUILTIN = "builtin/tiny-phi3"
REGISTERED = re.compile(r"models:/(?P<name>[^/@:]+)/(?P<version>\d+)")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


def require_runnable(config: PipelineConfig) -> None:
    """Refuse a run that cannot succeed here.

    Raises:
        ConfigError, DataError: a value that names what is not there.
        QuotaError: the disk is full.
    """
    require_source(config.data)
    require_base_model(config.model)
    if not _has_nvidia():
        require_gpu_for(config.train.method, "this machine has none")
    for name in (config.environment.training, config.serving_environment, config.environment.chat):
        require_environment(name)
    home = Home.open(config.platform.home)  # only now: a mistake leaves nothing behind
    home.require_space(LEAST_FREE_BYTES)
    require_chat_port(home, config.endpoint_name, config.chat.port)


def require_base_model(model: ModelConfig) -> None:
    """Refuse a base model that is neither here nor on any hub."""
    if registered_version(model.base):
        return
    folder = Path(model.base)
    if folder.is_absolute() and not (folder / "config.json").is_file():
        what = "has no config.json" if folder.is_dir() else "does not exist"
        raise ConfigError(f"Base model {folder} {what}.", fix="Set model.base to a model folder or a hub id.")
    if not folder.is_absolute() and not HUB_ID.fullmatch(model.base):
        raise ConfigError(
            f"model.base '{model.base}' is neither a folder here nor a hub id.",
            fix="Name a folder, or an id such as microsoft/Phi-3.5-mini-instruct.",
        )
    if model.base.startswith("builtin/") and model.base != BUILTIN:
        raise ConfigError(f"There is no built-in model '{model.base}'.", fix=f"The one there is: {BUILTIN}.")


def require_gpu_for(method: str, why: str) -> None:
    """Refuse a method that trains on an NVIDIA GPU only, before anything is built or downloaded."""
    if method == "qlora":
        raise ConfigError(
            f"train.method is qlora, whose 4-bit weights need an NVIDIA GPU, and {why}.",
            fix="Set train.method to lora.",
        )


def _has_nvidia() -> bool:
    """Whether there is a driver; whether torch can use it is the job's to say."""
    return bool(shutil.which("nvidia-smi")) or any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg"))


def registered_version(base: str) -> tuple[str, str] | None:
    """Name and version of `models:/NAME/VERSION`; None for a base that is no registered model.

    Raises:
        ConfigError: it names no version, which would be another model tomorrow.
    """
    if not base.startswith("models:/"):
        return None
    found = REGISTERED.fullmatch(base)
    if not found:
        raise ConfigError(
            f"model.base '{base}' does not name one version of a registered model.",
            fix="Write models:/NAME/VERSION; to go on from the version that serves, set model.start_from to champion.",
        )
    return found["name"], found["version"]


def require_environment(name: str) -> None:
    """Refuse a name that no folder of environments has."""
    folder = project_folder("environments")
    if not (folder / name / "requirements.txt").is_file():
        known = ", ".join(sorted(path.parent.name for path in folder.glob("*/requirements.txt")))
        raise ConfigError(f"There is no environment '{name}'.", fix=f"The ones there are: {known}.")


def require_chat_port(home: Home, endpoint: str, port: int) -> None:
    """Refuse a configured port that another program has."""
    try:
        if port:
            Services(home).port(program_name(endpoint), port, setting="chat.port")
    except ConflictError as error:
        raise ConfigError(error.message, fix=error.fix) from error


def require_source(data: DataConfig) -> None:
    """Refuse a source that can be seen to be wrong without any environment.

    Raises:
        DataError: missing, empty or unreadable; or hub settings for a file.
    """
    tests = (data.tests,) if data.tests else ()
    if data.sources and all(source.is_file for source in data.sources):
        require_no_hub_settings(data, data.label)
    for source in (*data.sources, *tests):
        if source.is_file:
            require_no_hub_settings(source, source.source)
            for path in require_files(source.source):
                _require_readable(path)
        elif not HUB_ID.fullmatch(source.source):
            raise DataError(
                f"data.source '{source.source}' is neither a file here nor a hub data set's id.",
                fix="Name a file, or an id such as HuggingFaceH4/ultrachat_200k.",
            )


def require_no_hub_settings(settings: DataConfig | SourceConfig, name: str) -> None:
    """Refuse settings of hub data sets for what is a file."""
    for key, default in (("config", ""), ("split", "train"), ("revision", ""), ("streaming", False)):
        if (value := getattr(settings, key, default)) not in (default, ""):
            raise DataError(
                f"data.{key} '{value}' is for hub data sets, but data.source {name} is a file.",
                fix=f"Leave data.{key} out.",
            )


def require_files(source: str) -> list[Path]:
    """The files of a source of this machine: itself, those in a folder, or those that match a pattern.

    Raises:
        DataError: there are none, or the folder cannot be read.
    """
    try:
        files = list_files(source)
    except OSError as error:
        raise DataError(f"Data {source} cannot be read: {error.strerror}.", fix="Check data.source.") from error
    if not files:
        what = "is a folder without data files" if os.path.isdir(source) else "matches no file"
        raise DataError(f"Data {source} {what}.", fix="Name a file with chats.")
    return files


def _require_readable(path: Path) -> None:
    try:
        with path.open("rb") as file:
            if not file.read(1):
                raise DataError(f"Data {path} is empty.", fix="Name a file with chats.")
    except FileNotFoundError as error:
        raise DataError(f"Data {path} does not exist.", fix="Check data.source.") from error
    except PermissionError as error:
        raise DataError(f"Data {path} may not be read by this user.", fix="Give this user read permission.") from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"Data {str(path)!r} cannot be read: {reason}.", fix="Check data.source.") from error
