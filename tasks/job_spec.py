"""What a training job is: all that decides its result, and so its name. No Prefect here, so that looking is fast."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import trainer
from tasks.config import PipelineConfig
from tasks.estimate.cap import job_timeout_seconds
from tasks.platforms.errors import ConfigError
from tasks.platforms.refs import COMMAND_DIR, BaseModelRef, ComputeRef, DataManifest, EnvironmentRef, JobKind, JobSpec
from trainer.config import TrainConfig
from trainer.files import sha256_file

# What copy_folder of tasks/platforms/local/files.py leaves behind.
_STAYS = re.compile(r"(^|/)(\.|__pycache__/|[^/]+\.egg-info/)|\.pyc$")


def trainer_digest() -> dict[str, str]:
    """The digest of each source file that decides what a training job does."""
    folder = Path(trainer.__file__).parent
    return {path.relative_to(folder).as_posix(): sha256_file(path) for path in sorted(folder.rglob("*.py"))}


def training_spec(
    config: PipelineConfig,
    base: BaseModelRef,
    data: DataManifest,
    environment: EnvironmentRef,
    compute: ComputeRef,
) -> JobSpec:
    """Everything the training job's result depends on, and its limits."""
    return JobSpec(
        kind=JobKind.TRAINING,
        run_name=config.name,
        code_digest=json.dumps(trainer_digest() | _command_digest(config.train), sort_keys=True),
        settings=json.dumps(_settings(config.train), sort_keys=True),
        model=base,
        data=data,
        environment=environment,
        compute=compute,
        command_dir=config.train.command_dir,
        num_nodes=config.compute.num_nodes,
        processes_per_node=config.compute.processes_per_node,
        shm_size=config.compute.shm_size,
        timeout_seconds=job_timeout_seconds(config),
        max_attempts=config.compute.max_attempts,
    )


def _settings(train: TrainConfig) -> dict[str, Any]:
    """What the job reads: the folder of a command by the name it has there, wherever it is on this machine."""
    return train.to_dict() | ({"command_dir": COMMAND_DIR} if train.command_dir else {})


def _command_digest(train: TrainConfig) -> dict[str, str]:
    """The digest of the folder that travels with `train.command`.

    Raises:
        ConfigError: it is not a folder, or there is no command.
    """
    if not train.command_dir:
        return {}
    if not train.command:
        raise ConfigError("train.command_dir is set, but train.command is not.", fix="Set train.command.")
    if not Path(train.command_dir).is_dir():
        raise ConfigError(
            f"train.command_dir {train.command_dir} is not a folder.", fix="It is relative to the configuration file."
        )
    folder = Path(train.command_dir)
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in files}
    return {f"{COMMAND_DIR}/{name}": sha256_file(path) for name, path in names.items() if not _STAYS.search(name)}
