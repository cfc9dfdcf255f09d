"""The sizes of virtual machines that the emulated region has."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Size:
    """One size, as Azure lists it."""

    name: str
    family: str
    cores: int
    memory_gb: float
    gpus: int = 0
    disk_mb: int = 65536
    low_priority: bool = True

    def to_json(self) -> dict[str, Any]:
        """The entry in the list of sizes."""
        return {
            "name": self.name,
            "family": self.family,
            "vCPUs": self.cores,
            "gpus": self.gpus,
            "osVhdSizeMB": 1047552,
            "maxResourceVolumeMB": self.disk_mb,
            "memoryGB": self.memory_gb,
            "lowPriorityCapable": self.low_priority,
            "premiumIO": True,
            "supportedComputeTypes": ["AMLCompute", "ComputeInstance"],
        }


_ALL = [
    Size("Standard_DS2_v2", "standardDSv2Family", 2, 7.0),
    Size("Standard_DS3_v2", "standardDSv2Family", 4, 14.0),
    Size("Standard_DS4_v2", "standardDSv2Family", 8, 28.0),
    Size("Standard_D2s_v3", "standardDSv3Family", 2, 8.0),
    Size("Standard_D4s_v3", "standardDSv3Family", 4, 16.0),
    Size("Standard_D8s_v3", "standardDSv3Family", 8, 32.0),
    Size("Standard_D16s_v3", "standardDSv3Family", 16, 64.0),
    Size("Standard_E2s_v3", "standardESv3Family", 2, 16.0),
    Size("Standard_E4s_v3", "standardESv3Family", 4, 32.0),
    Size("Standard_E8s_v3", "standardESv3Family", 8, 64.0),
    Size("Standard_E16s_v3", "standardESv3Family", 16, 128.0),
    Size("Standard_F4s_v2", "standardFSv2Family", 4, 8.0),
    Size("Standard_F8s_v2", "standardFSv2Family", 8, 16.0),
    Size("Standard_NC4as_T4_v3", "Standard NCASv3_T4 Family", 4, 28.0, 1),
    Size("Standard_NC6s_v3", "standardNCSv3Family", 6, 112.0, 1),
    Size("Standard_NC24s_v3", "standardNCSv3Family", 24, 448.0, 4),
    Size("Standard_NC24ads_A100_v4", "StandardNCADSA100v4Family", 24, 220.0, 1),
    Size("Standard_NC48ads_A100_v4", "StandardNCADSA100v4Family", 48, 440.0, 2),
    Size("Standard_NC96ads_A100_v4", "StandardNCADSA100v4Family", 96, 880.0, 4),
    Size("Standard_NC40ads_H100_v5", "StandardNCadsH100v5Family", 40, 320.0, 1),
    Size("Standard_ND96asr_v4", "Standard NDASv4_A100 Family", 96, 900.0, 8),
]
SIZES = {size.name.upper(): size for size in _ALL}


def family_name(family: str) -> str:
    """How quota calls a family of sizes."""
    plain = re.sub(r"(?i)^standard\s*|\s*family$", "", family)
    return f"Standard {plain} Family Cluster Dedicated vCPUs"
