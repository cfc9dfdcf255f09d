"""PlatformConfig -> Platform: the only place that knows which adapters exist."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tasks.platforms.port import Platform

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.config import DataConfig, PlatformConfig
    from tasks.platforms.local.services import Services


def connect(config: PlatformConfig) -> Platform:
    """Open the platform that the configuration names; imports only what that one needs."""
    from tasks.platforms.local.local_platform import LocalPlatform
    from tasks.platforms.local.state import Home

    _keep_loopback_off_proxies()
    return LocalPlatform(Home.open(config.home))


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


def require_local_space(home: str = "") -> None:
    """Refuse a full disk before anything is started on it."""
    from tasks.platforms.local.state import LEAST_FREE_BYTES, Home

    Home.open(home).require_space(LEAST_FREE_BYTES)


def stop_local_jobs(home: str = "") -> tuple[str, ...]:
    """Stop the jobs that run on this machine, each with a checkpoint; returns their names."""
    from tasks.platforms.local.local_platform import LocalPlatform
    from tasks.platforms.local.state import Home

    return LocalPlatform(Home.open(home)).stop_jobs()


def require_source(data: DataConfig) -> None:
    """Refuse a data source that is wrong at first sight, before anything is started."""
    from tasks.platforms.local.preparation import require_source

    require_source(data)


def require_chat_port(home: str, endpoint: str, port: int) -> None:
    """Refuse a chat port that somebody else listens on, before a model is trained for it.

    Raises:
        ConfigError: names who listens.
    """
    from tasks.platforms.errors import ConfigError, ConflictError
    from tasks.platforms.local.chat import program_name

    try:
        if port:
            local_services(home).port(program_name(endpoint), port, setting="chat.port")
    except ConflictError as error:
        raise ConfigError(error.message, fix=error.fix) from error


def project_folder(*parts: str) -> Path:
    """A folder or file that ships with phiflow."""
    from tasks.platforms.local.state import project_folder

    return project_folder(*parts)
