"""The regions that the emulated subscription sees."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Region:
    """One region; `billed_as` is what the public price list calls it."""

    name: str
    display_name: str
    billed_as: str
    group: str
    latitude: str
    longitude: str
    city: str
    pair: str

    def to_json(self, base: str) -> dict[str, Any]:
        """The entry in the list of a subscription's locations."""
        return {
            "id": f"{base}/locations/{self.name}",
            "name": self.name,
            "type": "Region",
            "displayName": self.display_name,
            "regionalDisplayName": f"({self.group}) {self.display_name}",
            "metadata": {
                "regionType": "Physical",
                "regionCategory": "Recommended",
                "geographyGroup": self.group,
                "longitude": self.longitude,
                "latitude": self.latitude,
                "physicalLocation": self.city,
                "pairedRegion": [{"name": self.pair, "id": f"{base}/locations/{self.pair}"}],
            },
        }


_ALL = (
    Region("westeurope", "West Europe", "EU West", "Europe", "52.3667", "4.9", "Netherlands", "northeurope"),
    Region("northeurope", "North Europe", "EU North", "Europe", "53.3478", "-6.2597", "Ireland", "westeurope"),
    Region("swedencentral", "Sweden Central", "SE Central", "Europe", "60.67488", "17.14127", "Gävle", "swedensouth"),
    Region("francecentral", "France Central", "FR Central", "Europe", "46.3772", "2.373", "Paris", "francesouth"),
    Region("eastus", "East US", "US East", "US", "37.3719", "-79.8164", "Virginia", "westus"),
    Region("eastus2", "East US 2", "US East 2", "US", "36.6681", "-78.3889", "Virginia", "centralus"),
    Region("westus3", "West US 3", "US West 3", "US", "33.448376", "-112.074036", "Phoenix", "eastus"),
)
REGIONS = {region.name: region for region in _ALL}
