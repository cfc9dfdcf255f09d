"""PlatformConfig -> Platform: the only place that knows which adapters exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.platforms.port import Platform

if TYPE_CHECKING:
    from tasks.config import PlatformConfig
    from tasks.platforms.local.services import Services


def connect(config: PlatformConfig) -> Platform:
    """Open the platform that the configuration names; imports only what that one needs."""
    from tasks.platforms.local.platform import LocalPlatform
    from tasks.platforms.local.state import Home

    return LocalPlatform(Home.open(config.home))


def local_services(home: str = "") -> Services:
    """The programs on this machine that outlive a run, whatever platform the run is on."""
    from tasks.platforms.local.services import Services
    from tasks.platforms.local.state import Home

    return Services(Home.open(home))
