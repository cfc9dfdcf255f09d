"""A step's retries."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prefect.states import Failed

from tasks.platforms.errors import ConfigError, TransientPlatformError
from tasks.step import is_transient


@pytest.mark.parametrize(
    ("error", "again"), [(TransientPlatformError("busy"), True), (ConfigError("wrong"), False), (OSError(), False)]
)
def test_only_a_transient_error_is_tried_again(error: Exception, again: bool) -> None:
    """A step is retried when its error says that trying again may help, and never otherwise."""
    nothing: Any = None
    assert asyncio.run(is_transient(nothing, nothing, Failed(data=error))) is again
