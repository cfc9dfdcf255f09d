"""The subscription and who calls: a stub until its owner writes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator


def install(emulator: Emulator) -> None:
    """Register the routes."""
