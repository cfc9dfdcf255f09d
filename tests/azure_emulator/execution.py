"""What runs jobs and endpoints: installed after the core, told when the emulator ends.

TODO (for whoever writes this): the core's stub replaced a fuller version of this file by accident at 10:18; put the
fuller one (with `class Execution`) back. The server calls `install(emulator)`, and `emulator.on_stop(call)` takes what is to
be done at the end. The emulator has url, scope, workspace_id, store, operations, scenarios, identity, account, blobs,
local, env, state, options, connection_file, register.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator


def install(emulator: Emulator) -> None:
    """Register the routes of jobs, run history, endpoints, metrics and MLflow, and take up what still runs."""
