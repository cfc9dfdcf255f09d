"""Prices from the emulated price list, whose items are as many and as mixed as Azure's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.config_files import build_config
from tasks.estimate.prices import hourly_cost, load_prices
from tasks.estimate.retail_prices import refresh_prices
from tests.azure_emulator.process import EmulatorProcess

A100, E4 = "Standard_NC24ads_A100_v4", "Standard_E4s_v3"


@pytest.mark.parametrize("page", [{"size": 2}, {"size": 100}], ids=["small pages", "large pages"])
def test_prices_of_every_size_are_refreshed(
    in_azure: EmulatorProcess, phiflow_home: Path, page: dict[str, int]
) -> None:
    """Of Windows, Spot, reservations and several pages, the plain Linux price of each size in the region is kept."""
    in_azure.configure("prices-page", page)
    in_azure.configure(f"prices/{A100}", {"retailPrice": 4.2})
    place = {"kind": "azure", "subscription_id": "s", "resource_group": "g", "workspace": "w"}
    values = {"name": "support", "data": {"source": "d.jsonl"}, "platform": place, "compute": {"size": A100}}
    config = build_config(values, "test")
    assert refresh_prices(config, "westeurope") == phiflow_home / "prices.json"
    prices = load_prices(config)
    assert hourly_cost(A100, prices=prices) == 4.2
    dedicated, low = (hourly_cost(E4, tier=tier, prices=prices) for tier in ("dedicated", "low_priority"))
    assert dedicated is not None and low is not None
    assert 0 < low < dedicated
    assert prices.machine(E4).priced_by == prices.tables[0][0]
    assert prices.warnings("westeurope", (A100, E4)) == ()
