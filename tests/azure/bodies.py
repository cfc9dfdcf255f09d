"""What tests of the emulator's core send: paths, api-versions and small bodies that the service would accept."""

from __future__ import annotations

from typing import Any

from tests.azure_emulator.server import SCOPE

W = SCOPE.workspace_id
PREVIEW = "?api-version=2023-04-01-preview"
COMPUTE = "?api-version=2023-08-01-preview"


def environment_body(**changes: Any) -> dict[str, Any]:
    return {"properties": {"image": "mcr.microsoft.com/x", **changes}}


def cluster_body(size: str = "Standard_DS3_v2", most: int = 1, **changes: Any) -> dict[str, Any]:
    inner = {"vmSize": size, "scaleSettings": {"minNodeCount": 0, "maxNodeCount": most}}
    return {"location": "westeurope", "properties": {"computeType": "AmlCompute", "properties": inner}, **changes}
