"""What a training job is: all that decides its result, and so its name. No Prefect here, so that looking is fast."""

from __future__ import annotations

import json
from pathlib import Path

import trainer
from tasks.config import PipelineConfig
from tasks.estimate.cap import job_timeout_seconds
from tasks.platforms.refs import BaseModelRef, ComputeRef, DataManifest, EnvironmentRef, JobKind, JobSpec
from trainer.files import sha256_file


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
        code_digest=json.dumps(trainer_digest(), sort_keys=True),
        settings=json.dumps(config.train.to_dict(), sort_keys=True),
        model=base,
        data=data,
        environment=environment,
        compute=compute,
        num_nodes=config.compute.num_nodes,
        processes_per_node=config.compute.processes_per_node,
        shm_size=config.compute.shm_size,
        timeout_seconds=job_timeout_seconds(config),
        max_attempts=config.compute.max_attempts,
    )
