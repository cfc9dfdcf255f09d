"""What can be seen to be wrong with a run on Azure before anything is built, uploaded or begun."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from tasks.platforms.azure.build_context import is_defined
from tasks.platforms.azure.checks.access import missing_rights
from tasks.platforms.azure.checks.facts import Facts
from tasks.platforms.azure.checks.permissions import LATE_ACTIONS
from tasks.platforms.azure.checks.place import check_endpoint_name
from tasks.platforms.azure.deployments import require_request_time
from tasks.platforms.azure.infrastructure import cluster_name
from tasks.platforms.azure.preparation import require_file
from tasks.platforms.azure.quota.need import read_needs, require_startable
from tasks.platforms.azure.sources import (
    data_elsewhere,
    data_here,
    is_elsewhere,
    is_remote,
    open_remote,
    registered_model,
)
from tasks.platforms.errors import (
    ConfigError,
    Failure,
    PermissionDeniedError,
    TransientPlatformError,
)
from tasks.platforms.local import preflight as local
from tasks.platforms.local.state import LEAST_FREE_BYTES, Home, project_folder
from tasks.platforms.upkeep import Outcome

if TYPE_CHECKING:
    from tasks.config import DataConfig, ModelConfig, PipelineConfig
    from tasks.platforms.azure.client import Workspace

T = TypeVar("T")
_log = logging.getLogger(__name__)


def require_runnable(config: PipelineConfig, workspace: Workspace) -> None:
    """Refuse a run that cannot succeed; what needs no network is looked at first.

    Raises:
        ConfigError, DataError: a value that names what is not there.
        PermissionDeniedError: nobody is signed in, or may not see the workspace.
        NotFoundError: there is no such workspace.
        QuotaError: a job or a deployment would wait for ever.
    """
    cluster_name(config.compute)
    require_request_time(config.serving)
    _require_source(config.data)
    _require_base_model(config.model)
    if config.compute.size and not config.compute.size.lower().startswith("standard_n"):  # Azure's GPU families
        local.require_gpu_for(config.train.method, f"compute.size {config.compute.size} has none")
    for name in (config.environment.training, config.serving_environment):
        _require_environment(name)
    local.require_environment(config.environment.chat)
    home = Home.open(config.platform.home)
    home.require_space(LEAST_FREE_BYTES)
    local.require_chat_port(home, config.endpoint_name, config.chat.port)
    workspace.token("arm")
    _ = workspace.properties
    _require_startable(config, workspace)
    for key, address in data_elsewhere(config.data):
        require_file(open_remote(workspace, address, key), address)


def _require_startable(config: PipelineConfig, workspace: Workspace) -> None:
    """Refuse what would come out when money is spent: after hours in a queue, or when the model is trained.

    Four looks at once, of which each takes less than half a second; `phiflow doctor` looks at much more.
    """
    facts = Facts(config, workspace)
    checks = [functools.partial(_require_rights, facts), functools.partial(_require_name, facts)]
    checks += [functools.partial(_require_quota, facts, region, parts) for region, parts in facts.regions.items()]
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        for look in [pool.submit(check) for check in checks]:
            look.result()


def _require_rights(facts: Facts) -> None:
    missing = _look("rights", lambda: missing_rights(facts, facts.workspace.resource_id, LATE_ACTIONS))
    if missing:
        raise PermissionDeniedError(
            f"{missing[0]} is not allowed on {facts.workspace.name}, and the run needs it once it has trained.",
            fix="`phiflow doctor` tells the role and the command that gives it.",
            failure=Failure.AUTHORISATION,
        )


def _require_name(facts: Facts) -> None:
    for check in _look("endpoint's name", lambda: list(check_endpoint_name(facts))) or ():
        if check.outcome == Outcome.FAIL:
            raise ConfigError(f"endpoint.name: {check.found}.", fix=f"{check.fix}.")


def _require_quota(facts: Facts, location: str, parts: tuple[str, ...]) -> None:
    needs = _look("quota", lambda: read_needs(facts.config, facts.workspace, location, parts))
    require_startable(needs or (), location)


def _look(what: str, look: Callable[[], T]) -> T | None:
    """What was seen; None for who may not look, and may run all the same."""
    try:
        return look()
    except (PermissionDeniedError, TransientPlatformError) as error:
        _log.info("Could not look at the %s: %s", what, error.message)
        return None


def _require_source(data: DataConfig) -> None:
    """The local rules for what is not in Azure; a file in Azure is looked at when somebody is signed in."""
    if all(source.is_file or is_elsewhere(source) for source in data.sources):
        local.require_no_hub_settings(data, data.label)
    local.require_source(data_here(data))


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
