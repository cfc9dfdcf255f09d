"""PlatformConfig -> Platform: the only place that knows which adapters exist."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasks.platforms.port import Platform

if TYPE_CHECKING:
    from tasks.config import PlatformConfig


def connect(config: PlatformConfig) -> Platform:
    """Open the platform that the configuration names; imports only what that one needs."""
    from tasks.platforms.local.platform import LocalPlatform
    from tasks.platforms.local.state import Home

    return LocalPlatform(Home.open(config.home))
