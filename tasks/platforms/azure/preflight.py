"""What can be seen to be wrong with a run on Azure before anything is built, uploaded or begun."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.platforms.azure.build_context import is_defined
from tasks.platforms.azure.deployments import require_request_time
from tasks.platforms.azure.infrastructure import cluster_name
from tasks.platforms.azure.preparation import require_file
from tasks.platforms.azure.sources import is_remote, open_remote, registered_model
from tasks.platforms.errors import ConfigError, DataError
from tasks.platforms.local import preflight as local
from tasks.platforms.local.state import LEAST_FREE_BYTES, Home, project_folder

if TYPE_CHECKING:
    from tasks.config import DataConfig, ModelConfig, PipelineConfig
    from tasks.platforms.azure.client import Workspace


def require_runnable(config: PipelineConfig, workspace: Workspace) -> None:
    """Refuse a run that cannot succeed; what needs no network is looked at first.

    Raises:
        ConfigError, DataError: a value that names what is not there.
        PermissionDeniedError: nobody is signed in, or may not see the workspace.
        NotFoundError: there is no such workspace.
    """
    cluster_name(config.compute)
    require_request_time(config.serving)
    _require_source(config.data)
    _require_base_model(config.model)
    for name in (config.environment.training, config.serving_environment):
        _require_environment(name)
    local.require_environment(config.environment.chat)
    home = Home.open(config.platform.home)
    home.require_space(LEAST_FREE_BYTES)
    local.require_chat_port(home, config.endpoint_name, config.chat.port)
    workspace.token("arm")
    _ = workspace.properties
    for key in ("source", "test_source"):
        source = getattr(config.data, key)
        if is_remote(source):
            require_file(open_remote(workspace, source, f"data.{key}"), source)


def _require_source(data: DataConfig) -> None:
    """The local rules for what is not in Azure; a file in Azure is looked at when somebody is signed in."""
    if is_remote(data.source):
        for key, default in (("config", ""), ("split", "train"), ("revision", "")):
            if (value := getattr(data, key)) != default:
                raise DataError(
                    f"data.{key} '{value}' is for hub data sets, but data.source {data.source} is a file.",
                    fix=f"Leave data.{key} out.",
                )
    elsewhere = {key: "" for key in ("source", "test_source") if is_remote(getattr(data, key))}
    local.require_source(data.model_copy(update=elsewhere))


def _require_base_model(model: ModelConfig) -> None:
    if not is_remote(model.base):
        local.require_base_model(model)
    else:
        registered_model(model.base)


def _require_environment(name: str) -> None:
    folder = project_folder("environments")
    if not is_defined(folder / name):
        known = ", ".join(sorted(path.parent.name for path in folder.glob("*/environment.yaml")))
        raise ConfigError(f"There is no environment '{name}' for Azure.", fix=f"The ones there are: {known}.")
