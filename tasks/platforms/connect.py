"""PlatformConfig -> Platform: the only place that knows which adapters exist."""

from __future__ import annotations

import functools
import importlib.util
import os
from typing import TYPE_CHECKING, Literal

from tasks.platforms.errors import ConfigError
from tasks.platforms.port import Platform
from tasks.platforms.upkeep import Scope

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tasks.config import AzurePlatformConfig, PipelineConfig, PlatformConfig
    from tasks.platforms.azure.clean_up.tear_down import AzureTearDown
    from tasks.platforms.azure.client import Workspace
    from tasks.platforms.azure.foundation.provisioning import Provisioning
    from tasks.platforms.azure.storage import Storage
    from tasks.platforms.local.local_platform import LocalPlatform
    from tasks.platforms.local.services import Services
    from tasks.platforms.local.tear_down import LocalTearDown
    from tasks.platforms.upkeep import Check, Removal, TearDown

# Of what `pip install 'phiflow[azure]'` brings, the modules that the adapter imports itself.
_AZURE_MODULES = (
    "azure.core",
    "azure.identity",
    "azure.storage.blob",
    "azure.ai.ml",
    "azure.mgmt.resource.deployments",
)


def connect(config: PlatformConfig) -> Platform:
    """Open the platform that the configuration names; imports only what that one needs.

    Raises:
        ConfigError: the packages for Azure are not installed.
    """
    from tasks.platforms.local.local_platform import LocalPlatform
    from tasks.platforms.local.state import Home

    _keep_loopback_off_proxies()
    this_machine = LocalPlatform(Home.open(config.home))
    if config.kind == "local":
        return this_machine
    return _connect_azure(config, this_machine)


@functools.lru_cache(maxsize=8)
def _workspace(config: AzurePlatformConfig) -> Workspace:
    """One client a workspace and process: opening it takes seconds, and it holds no state of a run."""
    for module in _AZURE_MODULES:
        if not _is_installed(module):
            raise ConfigError(
                f"A run on Azure Machine Learning needs packages that are not installed: no module {module}.",
                fix="Install them with: pip install 'phiflow[azure]'",
            )
    from tasks.platforms.azure.client import Workspace

    return Workspace(config)


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent is not
        return False


def _open(config: AzurePlatformConfig) -> Workspace:
    # Where this machine keeps its state makes no other workspace of it.
    return _workspace(config.model_copy(update={"home": ""}))


def workspace_storage(config: AzurePlatformConfig) -> Storage:
    """The blobs of a workspace."""
    return _open(config).storage


def _connect_azure(config: AzurePlatformConfig, this_machine: LocalPlatform) -> Platform:
    workspace = _open(config)
    from tasks.platforms.azure.azure_platform import AzurePlatform

    return AzurePlatform(workspace, this_machine)


def _keep_loopback_off_proxies() -> None:
    """A proxy for the outside cannot reach this machine's own services."""
    for name in ("NO_PROXY", "no_proxy"):
        kept = [host for host in os.environ.get(name, "").split(",") if host]
        os.environ[name] = ",".join(dict.fromkeys([*kept, "127.0.0.1", "localhost"]))


def local_services(home: str = "") -> Services:
    """The programs on this machine that outlive a run, whatever platform the run is on."""
    from tasks.platforms.local.services import Services
    from tasks.platforms.local.state import Home

    _keep_loopback_off_proxies()
    return Services(Home.open(home))


def provisioning(config: PipelineConfig) -> Provisioning:
    """What makes the workspace of a configuration on Azure, and what belongs to it."""
    assert config.platform.kind == "azure"
    workspace = _open(config.platform)
    from tasks.platforms.azure.foundation.provisioning import Provisioning

    return Provisioning(config, workspace)


def run_checks(
    config: PipelineConfig, purpose: Literal["run", "up"] = "run", part: Literal["all", "owner", "engineer"] = "all"
) -> Iterator[Check]:
    """Look at what a run, or a part of `phiflow up`, needs, in the order in which it matters; changes nothing."""
    _keep_loopback_off_proxies()
    if config.platform.kind == "azure":
        workspace = _open(config.platform)
        from tasks.platforms.azure.checks.run_checks import run_checks

        yield from run_checks(config, workspace, purpose, part)
    else:
        from tasks.platforms.local.checks import run_checks as run_local_checks

        yield from run_local_checks(config)


def plan_tear_down(config: PipelineConfig, scope: Scope) -> TearDown:
    """What a tear-down of that scope deletes, and what it leaves; changes nothing."""
    return _tear_down(config).plan(scope)


def remove(config: PipelineConfig, removal: Removal) -> None:
    """Delete one thing that `plan_tear_down` listed, and return when it is gone."""
    _tear_down(config).remove(removal)


def _tear_down(config: PipelineConfig) -> AzureTearDown | LocalTearDown:
    from tasks.platforms.local.local_platform import LocalPlatform
    from tasks.platforms.local.state import Home
    from tasks.platforms.local.tear_down import LocalTearDown

    _keep_loopback_off_proxies()
    this_machine = LocalPlatform(Home.open(config.platform.home))
    if config.platform.kind == "local":
        return LocalTearDown(config, this_machine)
    workspace = _open(config.platform)
    from tasks.platforms.azure.clean_up.tear_down import AzureTearDown

    return AzureTearDown(config, workspace, this_machine)


def request_quota(config: PipelineConfig) -> Iterator[str]:
    """Ask Azure for the vCPUs that a configuration lacks; yields how each request ended, and what is left to do."""
    assert config.platform.kind == "azure"
    workspace = _open(config.platform)
    from tasks.platforms.azure.quota.request import request_quota

    for check in request_quota(config, workspace):
        yield f"{check.outcome}: {check.found}{f'. {check.fix}' if check.fix else ''}"


def tear_down(config: PipelineConfig) -> Iterator[str]:
    """Delete what bills of a run on Azure and the files of its jobs, and end the chat app; yields what was done."""
    from tasks.platforms.azure.clean_up.tear_down import delete_files

    assert config.platform.kind == "azure"
    for scope in (Scope.ENDPOINT, Scope.COMPUTE):
        for removal in plan_tear_down(config, scope).removals:
            remove(config, removal)
            yield f"deleted {removal.kind} {removal.name}"
    yield from delete_files(config, _open(config.platform))


def tracking_uri(config: PlatformConfig) -> str:
    """What MLflow's own tools are given to find the runs."""
    if config.kind == "local":
        return local_services(config.home).mlflow_url()
    return _open(config).mlflow_tracking_uri


def stop_local_jobs(home: str = "") -> tuple[str, ...]:
    """Stop the jobs that run on this machine, each with a checkpoint; returns their names."""
    from tasks.platforms.local.local_platform import LocalPlatform
    from tasks.platforms.local.state import Home

    return LocalPlatform(Home.open(home)).stop_jobs()


def region(config: PipelineConfig) -> str:
    """The region that a run's machines are in; empty on this machine."""
    return _open(config.platform).location if config.platform.kind == "azure" else ""


def require_place(config: PipelineConfig) -> None:
    """Read the workspace itself: what is in one that is not there looks like what is yet to be made.

    Raises:
        PhiflowError: it is not there, or not reached from here, or not shown to the caller.
    """
    if config.platform.kind == "azure":
        _open(config.platform).properties  # noqa: B018  (read once, and kept)


def require_runnable(config: PipelineConfig) -> None:
    """Refuse a run that can be seen to fail, before anything is built or started for it."""
    if config.platform.kind == "azure":
        workspace = _open(config.platform)
        from tasks.platforms.azure import preflight

        _keep_loopback_off_proxies()
        preflight.require_runnable(config, workspace)
        return
    from tasks.platforms.local.preflight import require_runnable

    require_runnable(config)


def home_folder(configured: str = "") -> Path:
    """Where this machine's state is kept; not created."""
    from tasks.platforms.local.state import home_folder

    return home_folder(configured)


def project_folder(*parts: str) -> Path:
    """A folder or file that ships with phiflow."""
    from tasks.platforms.local.state import project_folder

    return project_folder(*parts)
