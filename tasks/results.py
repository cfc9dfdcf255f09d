"""Where a run on Azure keeps its results: blobs of the workspace, since a container's disk dies with it.

A Prefect block over the same storage as everything else of phiflow, by the datastore's key or by whoever signed in.
prefect-azure's block would be the one to use, but with a managed identity its version 0.4.13 closes the credential
after the first result and fails at the second ("HTTP transport has already been closed"); nor does it know
`platform.credential`, or the key that people have whose rights end at the workspace.
"""

from __future__ import annotations

import asyncio
from typing import Any

from prefect.filesystems import WritableFileSystem
from pydantic import Field

from tasks.config import AzurePlatformConfig
from tasks.platforms.connect import workspace_storage
from tasks.platforms.refs import digest_of

FOLDER = "phiflow/results"


class WorkspaceResults(WritableFileSystem):
    """Results below `phiflow/results/` of a workspace's default datastore; the block itself holds no secret."""

    _block_type_name = "phiflow workspace results"
    _block_type_slug = "phiflow-workspace-results"

    platform: dict[str, Any] = Field(description="The platform section of a configuration, which names a workspace.")

    def read_path(self, path: str, **_: Any) -> bytes:  # type: ignore[override]
        """The content of a result; Prefect says with `_sync` what this always is."""
        return workspace_storage(self._place).read(f"{FOLDER}/{path}")

    async def aread_path(self, path: str) -> bytes:
        """As `read_path`, beside an event loop."""
        return await asyncio.to_thread(self.read_path, path)

    def write_path(self, path: str, content: bytes, **_: Any) -> None:  # type: ignore[override]
        """Write a result, over an older one of the same name."""
        workspace_storage(self._place).write(f"{FOLDER}/{path}", content)

    async def awrite_path(self, path: str, content: bytes) -> None:
        """As `write_path`, beside an event loop."""
        await asyncio.to_thread(self.write_path, path, content)

    @property
    def _place(self) -> AzurePlatformConfig:
        return AzurePlatformConfig.model_validate(self.platform)


def results_block(place: AzurePlatformConfig) -> WorkspaceResults:
    """The block for a workspace, made known to the Prefect server under a name of its own."""
    # The state folder is a machine's own business, and the results are the same for every one.
    platform = place.model_copy(update={"home": ""}).model_dump(mode="json")
    block = WorkspaceResults(platform=platform)
    block.save(f"phiflow-{digest_of(platform)[:12]}", overwrite=True)
    return block
