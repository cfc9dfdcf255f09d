"""Price tables: the shipped one, one of the user's own, one from Azure's price list, and what is told of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tasks.config import PipelineConfig
from tasks.config_files import build_config, load_config
from tasks.estimate.prices import PriceTable, hourly_cost, load_prices, monthly_cost, standing_costs
from tasks.estimate.retail_prices import read_prices, refresh_prices
from tasks.platforms.errors import ConfigError, NotFoundError, TransientPlatformError
from tests.azure_emulator.sizes import SIZES

ROOT = Path(__file__).resolve().parents[2]
PLACE = {"kind": "azure", "subscription_id": "s", "resource_group": "g", "workspace": "w"}
A100 = "Standard_NC24ads_A100_v4"


def configuration(**sections: Any) -> PipelineConfig:
    """A run on Azure."""
    values = {"name": "support", "data": {"source": "d.jsonl"}, "platform": PLACE, "compute": {"size": A100}}
    return build_config(values | sections, "test")


def table(folder: Path, **changes: Any) -> str:
    """A price table of the user's own; returns its path."""
    values = {"date": "2026-01-02", "region": "westeurope", "source": "our contract", "sizes": {}} | changes
    path = folder / "prices.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return str(path)


def test_shipped_table_says_that_it_is_assumed() -> None:
    """The table that ships has a date, a region and a page to compare it with, and says that nobody looked it up."""
    about = load_prices().about()
    assert "2026-11-21, eastus, USD" in about
    assert "assumed, not looked up" in about
    assert "https://" in about


def test_shipped_table_knows_the_machines_it_prices() -> None:
    """Cores, memory and GPUs of every size agree with what the region lists, and low priority is never dearer."""
    (_, shipped), *_ = load_prices().tables
    for name, entry in shipped.sizes.items():
        assert entry.dedicated is not None and entry.low_priority is not None, name
        assert 0 < entry.low_priority < entry.dedicated, name
        assert bool(entry.gpus) == bool(entry.gpu) == bool(entry.gpu_memory_gib), name
        if listed := SIZES.get(name.upper()):
            assert (entry.vcpus, entry.gpus or 0) == (listed.cores, listed.gpus), name
            assert entry.memory_gib == pytest.approx(listed.memory_gb), name


@pytest.mark.parametrize("path", sorted((ROOT / "deployments").glob("azure-*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_have_prices(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No configuration that ships needs a machine without a price."""
    for name in ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE"):
        monkeypatch.setenv(name, "x")
    config = load_config(path)
    assert hourly_cost(config.compute.size, tier=config.compute.tier)
    assert hourly_cost(config.serving.instance_type)


def test_size_is_found_in_any_case_and_counted() -> None:
    """Sizes are found as Azure finds them, and two cost twice as much; an unknown one has no price."""
    assert hourly_cost("STANDARD_e4S_V3", 2) == pytest.approx(2 * (hourly_cost("Standard_E4s_v3") or 0))
    assert hourly_cost("Standard_Nothing") is None
    assert monthly_cost(1.0) == 730


def test_own_table_is_laid_over_the_shipped_one(tmp_path: Path) -> None:
    """The user's price wins; what the table leaves out, such as the GPUs, is the shipped one's."""
    own = table(tmp_path, sizes={A100: {"dedicated": 1.5}})
    prices = load_prices(configuration(cost={"prices": own}))
    machine = prices.machine(A100)
    assert (machine.dedicated, machine.gpu, machine.gpus) == (1.5, "A100", 1)
    assert machine.low_priority == hourly_cost(A100, tier="low_priority")
    assert "our contract" in prices.about()
    assert any("taken from the shipped price table" in line for line in prices.warnings("", ("Standard_E4s_v3",)))
    assert not any("taken from" in line for line in prices.warnings("", (A100,)))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("{", "is not JSON"),
        ("[]", "valid dictionary"),
        ('{"region": "x", "source": "y"}', "date: Field required"),
        ('{"date": "soon", "region": "x", "source": "y"}', "date: "),
        ('{"date": "2026-01-02", "region": "x", "source": "y", "currency": "EUR"}', "currency: "),
        ('{"date": "2026-01-02", "region": "x", "source": "y", "prices": {}}', "prices: Extra inputs"),
        ('{"date": "2026-01-02", "region": "x", "source": "y", "sizes": {"S": {"dedicated": -1}}}', "dedicated"),
        ('{"date": "2026-01-02", "region": "x", "source": "y", "sizes": {"S": {"hourly": 1}}}', "sizes.S.hourly"),
    ],
)
def test_broken_table_is_told_in_one_line(tmp_path: Path, content: str, wanted: str) -> None:
    """A table of the wrong form is named with its first mistake."""
    path = tmp_path / "broken.json"
    path.write_text(content)
    with pytest.raises(ConfigError) as told:
        load_prices(configuration(cost={"prices": str(path)}))
    assert wanted in told.value.message
    assert str(path) in told.value.message
    assert "\n" not in str(told.value)


def test_missing_table_is_told() -> None:
    """A table that is not there is a mistake of the configuration."""
    with pytest.raises(ConfigError, match=r"/nowhere\.json cannot be read"):
        load_prices(configuration(cost={"prices": "/nowhere.json"}))


def test_old_table_and_other_region_are_mentioned(tmp_path: Path) -> None:
    """A table older than 90 days, or of another region, says so with the command that mends it."""
    today = datetime.now(UTC).date()

    def warnings(days: int, region: str) -> str:
        own = table(tmp_path, date=str(today - timedelta(days=days)))
        return " ".join(load_prices(configuration(cost={"prices": own})).warnings(region))

    assert warnings(90, "westeurope") == ""
    assert "91 days old" in warnings(91, "westeurope")
    assert "the run is in eastus: phiflow plan --refresh-prices" in warnings(0, "eastus")


def test_standing_costs_are_of_what_up_makes() -> None:
    """What `phiflow up` makes is counted; a resource that is named instead of made is not, and nothing is here."""
    names = {cost.name for cost in standing_costs(configuration())}
    assert names == {"container registry", "storage account", "log analytics", "cluster's network"}
    resources = {"container_registry": "/r", "storage_account": "/s", "log_analytics": "/l", "chat_history": True}
    own = configuration(platform=PLACE | {"resources": resources}, compute={"size": A100, "public_ip": False})
    (cosmos,) = standing_costs(own)
    assert (cosmos.name, cosmos.low) == ("Cosmos DB", 0)
    assert cosmos.high > 0
    assert standing_costs(build_config({"name": "here", "data": {"source": "d.jsonl"}}, "test")) == ()


# Azure's price list


def item(size: str, price: float, **changes: Any) -> dict[str, Any]:
    """One item of the price list, a plain Linux machine unless told otherwise."""
    plain = {
        "armSkuName": size,
        "retailPrice": price,
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "skuName": size.removeprefix("Standard_").replace("_", " "),
        "productName": "Virtual Machines Series",
        "tierMinimumUnits": 0.0,
    }
    return plain | changes


@contextmanager
def price_list(pages: list[dict[str, Any]], status: int = 200) -> Iterator[tuple[str, list[dict[str, list[str]]]]]:
    """A price list over real HTTP; gives its address and what it was asked."""
    asked: list[dict[str, list[str]]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            asked.append(query)
            number = int(query.get("page", ["0"])[0])
            page = dict(pages[number])
            host = self.headers["Host"]
            page["NextPageLink"] = f"http://{host}/?page={number + 1}" if number + 1 < len(pages) else None
            body = json.dumps(page).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/api", asked
    finally:
        server.shutdown()
        server.server_close()


def test_linux_prices_are_chosen_from_all_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows, Spot, reservations and tiers are left out; every page is read; the filter names region and size."""
    plain = A100.removeprefix("Standard_").replace("_", " ")
    first = [
        item(A100, 9.0, productName="Virtual Machines Series Windows"),
        item(A100, 8.0, skuName=f"{plain} Spot"),
        item(A100, 7000.0, type="Reservation"),
        item(A100, 4.5),
    ]
    second = [item(A100, 0.9, skuName=f"{plain} Low Priority"), item("Standard_E4s_v3", 0.3)]
    with price_list([{"Items": first}, {"Items": second}]) as (url, asked):
        monkeypatch.setenv("PHIFLOW_PRICES_URL", url)
        found = read_prices([A100, "Standard_E4s_v3"], "westeurope")
    assert (found[A100].dedicated, found[A100].low_priority) == (4.5, 0.9)
    assert (found["Standard_E4s_v3"].dedicated, found["Standard_E4s_v3"].low_priority) == (0.3, None)
    wanted = asked[0]["$filter"][0]
    assert "armRegionName eq 'westeurope'" in wanted
    assert f"armSkuName eq '{A100}'" in wanted
    assert len(asked) == 2


def test_refreshed_prices_are_used_afterwards(monkeypatch: pytest.MonkeyPatch, phiflow_home: Path) -> None:
    """What the price list said is kept in the state folder with its date and region, and wins from then on."""
    config = configuration()
    with price_list([{"Items": [item(A100, 4.5)]}]) as (url, _):
        monkeypatch.setenv("PHIFLOW_PRICES_URL", url)
        path = refresh_prices(config, "westeurope")
    assert path == phiflow_home / "prices.json"
    kept = PriceTable.model_validate_json(path.read_text())
    assert (kept.region, kept.date, kept.source) == ("westeurope", datetime.now(UTC).date(), url)
    prices = load_prices(config)
    assert prices.machine(A100).dedicated == 4.5
    assert prices.machine("Standard_E4s_v3").dedicated == hourly_cost("Standard_E4s_v3")


def test_price_list_that_fails_keeps_what_was_there(monkeypatch: pytest.MonkeyPatch, phiflow_home: Path) -> None:
    """An error, no network and a region without these sizes each end in one line, and no file."""
    with price_list([{"Items": []}], status=500) as (url, _):
        monkeypatch.setenv("PHIFLOW_PRICES_URL", url)
        with pytest.raises(TransientPlatformError, match="did not answer as it should"):
            refresh_prices(configuration(), "westeurope")
    with pytest.raises(TransientPlatformError, match="ConnectionError"):
        refresh_prices(configuration(), "westeurope")
    with price_list([{"Items": []}] * 9) as (url, _):
        monkeypatch.setenv("PHIFLOW_PRICES_URL", url)
        with pytest.raises(NotFoundError, match="in region 'atlantis'"):
            refresh_prices(configuration(), "atlantis")
    assert not (phiflow_home / "prices.json").exists()
