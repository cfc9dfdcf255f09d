"""The sizes of virtual machines that Azure Machine Learning has in a region, and what of them matters to a run."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

ML = "providers/Microsoft.MachineLearningServices"
ML_API = "2024-04-01"
# Memory of one GPU, GB, by the size's name: https://learn.microsoft.com/azure/virtual-machines/sizes/overview
_GPU_MEMORY_GB = (
    (r"nc\d+ads_a100_v4", 80),
    (r"nc\d+adi?s_h100_v5", 94),
    (r"nd96asr_(?:a100_)?v4", 40),
    (r"nd96amsr_a100_v4", 80),
    (r"nd96isr?_h100_v5", 80),
    (r"nd96isr?_h200_v5", 141),
    (r"nd40rs_v2", 32),
    (r"nc\d+as_t4_v3", 16),
    (r"nc\d+r?s_v3", 16),
    (r"nc\d+r?s_v2", 16),
    (r"nv\d+adm?s_a10_v5", 24),
)
# Column "Skip 20% Reservation" of
# https://learn.microsoft.com/azure/machine-learning/reference-managed-online-endpoints-vm-sku-list
_WITHOUT_RESERVE = re.compile(
    r"nc\d+ads_a100_v4|nc\d+adi?s_h100_v5|nd96am?sr_(?:a100_)?v4|nd40rs_v2|nd96isr?_h100_v5",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """One size; memory in GB, of the machine and of all its GPUs."""

    name: str
    family: str
    vcpus: int
    gpus: int
    memory_gb: float
    low_priority: bool = True

    @property
    def gpu_memory_gb(self) -> float:
        """0 for a size without GPU, and for one that is not known here."""
        each = next((gb for pattern, gb in _GPU_MEMORY_GB if re.fullmatch(pattern, _plain(self.name))), 0)
        return float(each * self.gpus)

    def instances_reserved(self, count: int) -> int:
        """The instances that a managed online deployment needs quota for: a fifth more, rounded up, but for some.

        Source: https://learn.microsoft.com/azure/machine-learning/how-to-manage-quotas
        (Virtual machine quota allocation for deployment).
        """
        return count if _WITHOUT_RESERVE.fullmatch(_plain(self.name)) else math.ceil(1.2 * count)


def read_sizes(workspace: Workspace, location: str) -> dict[str, Size]:
    """The sizes of a region, by their name in lower case."""
    url = f"/subscriptions/{workspace.config.subscription_id}/{ML}/locations/{location}/vmSizes"
    what = f"The sizes of region {location}"
    answer = workspace.send("GET", url, params={"api-version": ML_API}, what=what).json()
    return {size.name.lower(): size for size in map(_size, answer.get("value") or ())}


def _size(entry: dict[str, Any]) -> Size:
    return Size(
        name=str(entry["name"]),
        family=str(entry.get("family") or ""),
        vcpus=int(entry.get("vCPUs") or 0),
        gpus=int(entry.get("gpus") or 0),
        memory_gb=float(entry.get("memoryGB") or 0),
        low_priority=bool(entry.get("lowPriorityCapable", True)),
    )


def _plain(name: str) -> str:
    return name.lower().removeprefix("standard_")
