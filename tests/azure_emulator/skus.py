"""Which sizes of machines there are in a region, as Azure Machine Learning and as Microsoft.Compute tell it.

PUT /_emulator/sizes/Standard_NC24ads_A100_v4 {"available": false, "locations": ["westeurope"]}
PUT /_emulator/compute-quota/standardDSv2Family {"limit": 0}    Microsoft.Compute's own limits, in every region
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.regions import REGIONS
from tests.azure_emulator.sizes import SIZES, Size, family_name
from tests.azure_emulator.web import Answer, Request, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

VERSIONS = ("2019-04-01", "2021-07-01", "2022-03-01", "2023-07-01", "2024-07-01", "2024-11-01", "2025-04-01")
_LOCATION = re.compile(r"location\s+eq\s+'([^']+)'", re.IGNORECASE)
_COMPUTE_LIMIT = 100


def install(emulator: Emulator) -> None:
    """Register the routes."""
    skus = Skus(emulator)
    emulator.allow_versions(*VERSIONS)
    emulator.register("GET", "L/vmSizes", skus.list_sizes)
    emulator.register("GET", "S/providers/Microsoft.Compute/skus", skus.list_skus)
    emulator.register("GET", "S/providers/Microsoft.Compute/locations/{location}/usages", skus.list_usages)


class Skus:
    """Answers for sizes."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def list_sizes(self, request: Request) -> Answer:
        location = known_location(request.parameters["location"])
        found = [size for size in SIZES.values() if is_available(self._emulator, size.name, location)]
        return Answer(200, {"value": [size.to_json() for size in found]})

    def list_skus(self, request: Request) -> Answer:
        """All sizes; what the subscription does not get in a region is restricted there."""
        told = _LOCATION.search(request.query.get("$filter", ""))
        if request.query.get("$filter") and not told:
            raise arm_error(400, "BadRequest", "Only the filter location eq '...' is supported.")
        places = [known_location(told[1])] if told else list(REGIONS)
        found = [self._sku(size, place) for place in places for size in SIZES.values()]
        return Answer(200, {"value": found})

    def list_usages(self, request: Request) -> Answer:
        known_location(request.parameters["location"])
        families = sorted({size.family for size in SIZES.values()})
        names = {"cores": "Total Regional vCPUs"} | {
            family: family_name(family).replace(" Cluster Dedicated", "") for family in families
        }
        return Answer(200, {"value": [self._usage(*name) for name in names.items()]})

    def _usage(self, name: str, text: str) -> dict[str, Any]:
        limit = self._emulator.settings.get(f"compute-quota/{name.lower()}").get("limit", _COMPUTE_LIMIT)
        told = {"value": name, "localizedValue": text}
        return {"unit": "Count", "currentValue": 0, "limit": limit, "name": told}

    def _sku(self, size: Size, location: str) -> dict[str, Any]:
        refused = {
            "type": "Location",
            "values": [location],
            "restrictionInfo": {"locations": [location]},
            "reasonCode": "NotAvailableForSubscription",
        }
        capabilities = {
            "MaxResourceVolumeMB": size.disk_mb,
            "vCPUs": size.cores,
            "MemoryGB": f"{size.memory_gb:g}",
            "GPUs": size.gpus,
            "LowPriorityCapable": size.low_priority,
            "PremiumIO": True,
        }
        return {
            "resourceType": "virtualMachines",
            "name": size.name,
            "tier": "Standard",
            "size": size.name.removeprefix("Standard_"),
            "family": size.family,
            "locations": [location],
            "locationInfo": [{"location": location, "zones": []}],
            "capabilities": [{"name": key, "value": str(value)} for key, value in capabilities.items()],
            "restrictions": [] if is_available(self._emulator, size.name, location) else [refused],
        }


def is_available(emulator: Emulator, size: str, location: str) -> bool:
    """Whether the subscription gets machines of a size in a region."""
    known = emulator.settings.get(f"sizes/{size.lower()}")
    places = [place.lower() for place in known.get("locations") or [location]]
    return bool(known.get("available", True)) or location.lower() not in places


def known_location(name: str) -> str:
    """A region's name, in the spelling of all.

    Raises:
        ServiceError: 400.
    """
    plain = name.replace(" ", "").lower()
    if plain not in REGIONS:
        known = ",".join(REGIONS)
        message = f"The provided location '{name}' is not available. The available locations are '{known}'."
        raise arm_error(400, "LocationNotAvailableForResourceType", message)
    return plain


def checked_size(name: str, document: dict[str, Any]) -> dict[str, Any]:
    """The document of `PUT /_emulator/sizes/{size}`, when it makes sense.

    Raises:
        ServiceError: 400, with what is wrong.
    """
    if name.upper() not in SIZES or not isinstance(document.get("available"), bool):
        raise arm_error(400, "InvalidSize", f"'{name}' is no size of sizes.py, or {document} has no 'available'.")
    return document
