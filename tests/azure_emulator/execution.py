"""What runs jobs and endpoints: installed after the core, told when the emulator ends."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator


def install(emulator: Emulator) -> None:
    """Register the routes of jobs, run history, endpoints, metrics and MLflow, and take up what still runs."""
