"""Stage: chat data in, one validated training and one test file out."""

from __future__ import annotations

from tasks.config import DataConfig, PlatformConfig
from tasks.platforms.connect import connect
from tasks.platforms.refs import BaseModelRef, DataManifest, EnvironmentRef
from tasks.step import step


@step()
def prepare_data(
    place: PlatformConfig,
    data: DataConfig,
    base: BaseModelRef,
    environment: EnvironmentRef,
    max_length: int,
) -> DataManifest:
    """Read, validate and split the data; token counts are those of the base model's tokenizer."""
    return connect(place).prepare_data(data, base, environment, max_length)
