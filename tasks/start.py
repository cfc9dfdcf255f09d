"""Stage: what a training starts from, when it goes on from the version that serves; `tasks.lineage` decides."""

from __future__ import annotations

from prefect.cache_policies import NO_CACHE

from tasks.config import PipelineConfig
from tasks.evaluation import champion_of
from tasks.job_spec import training_spec
from tasks.lineage import choose_start
from tasks.platforms.connect import connect
from tasks.platforms.refs import BaseModelRef, ComputeRef, DataManifest, EnvironmentRef
from tasks.step import step


@step(cache_policy=NO_CACHE)
def start_from_champion(
    config: PipelineConfig, base: BaseModelRef, data: DataManifest, environment: EnvironmentRef, compute: ComputeRef
) -> BaseModelRef:
    """The version that serves, its parent where nothing changed since, or the base while nothing serves."""
    champion = champion_of(connect(config.platform), config.endpoint_name, config.model_name)
    return choose_start(
        config.model, base, champion, lambda start: training_spec(config, start, data, environment, compute)
    )
