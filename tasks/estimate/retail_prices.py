"""Today's prices from Azure's public price list, which asks for no sign-in.

Source: https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.estimate.prices import PriceTable, SizeEntry, load_prices, refreshed_file
from tasks.platforms.errors import NotFoundError, TransientPlatformError
from trainer.files import write_atomic

if TYPE_CHECKING:
    from pathlib import Path

    from tasks.config import PipelineConfig

ADDRESS = "https://prices.azure.com/api/retail/prices"
_API = "2023-01-01-preview"
_TIMEOUT_SECONDS = 30
_SIZES_AT_ONCE = 15  # of one request, whose filter is part of its address


def refresh_prices(config: PipelineConfig, region: str) -> Path:
    """Ask for the price of every size that is known or configured, and keep the answer; returns its file.

    Raises:
        TransientPlatformError: the price list did not answer.
        NotFoundError: it knows none of the sizes in that region.
    """
    known = [name for _, table in load_prices(config).tables for name in table.sizes]
    wanted = {name.lower(): name for name in (config.compute.size, config.serving.instance_type, *known) if name}
    sizes = read_prices(list(dict.fromkeys(wanted.values())), region)
    if not sizes:
        raise NotFoundError(
            f"Azure's price list has none of {len(wanted)} sizes in region '{region}'.", fix="Check platform.location."
        )
    today = datetime.now(UTC).date()
    table = PriceTable(date=today, region=region, source=_address(), sizes=sizes)
    path = refreshed_file(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, table.model_dump_json(indent=2, exclude_none=True) + "\n")
    return path


def read_prices(sizes: list[str], region: str) -> dict[str, SizeEntry]:
    """The hourly Linux prices of sizes in a region; a size that the list does not have is left out."""
    found: dict[str, dict[str, float]] = {}
    for start in range(0, len(sizes), _SIZES_AT_ONCE):
        for item in _items(sizes[start : start + _SIZES_AT_ONCE], region):
            if tier := _tier(item):
                found.setdefault(str(item["armSkuName"]), {})[tier] = float(item["retailPrice"])
    return {size: SizeEntry(**prices) for size, prices in sorted(found.items())}


def _items(sizes: list[str], region: str) -> Iterator[dict[str, Any]]:
    import requests

    any_size = " or ".join(f"armSkuName eq '{size}'" for size in sizes)
    wanted = (
        f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq '{region}' "
        f"and ({any_size})"
    )
    url = _address()
    params: dict[str, str] | None = {"api-version": _API, "currencyCode": "'USD'", "$filter": wanted}
    while url:
        try:
            response = requests.get(url, params=params, timeout=_TIMEOUT_SECONDS)
            response.raise_for_status()
            page = response.json()
            yield from page["Items"]
        except (requests.RequestException, ValueError, KeyError) as error:
            raise TransientPlatformError(
                f"Azure's price list did not answer as it should ({type(error).__name__}).",
                fix="Plan without --refresh-prices, or name a table of your own in cost.prices.",
            ) from error
        url, params = str(page.get("NextPageLink") or ""), None


def _address() -> str:
    return os.environ.get("PHIFLOW_PRICES_URL", ADDRESS)


def _tier(item: dict[str, Any]) -> str:
    """Which of our prices an item is; empty for Windows, Spot, reservations and what is not paid by the hour."""
    if item.get("type") != "Consumption" or item.get("unitOfMeasure") != "1 Hour" or item.get("tierMinimumUnits"):
        return ""
    if "windows" in str(item.get("productName", "")).lower():
        return ""
    sku = str(item.get("skuName", ""))
    if sku.endswith(" Spot"):
        return ""
    return "low_priority" if sku.endswith(" Low Priority") else "dedicated"
