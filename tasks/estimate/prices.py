"""What things cost by the hour and the month: a dated table that ships, the user's own, or a refreshed one.

A table laid over another need not have everything: what it leaves out is looked up in the one below, by field.
The shipped numbers are assumptions with a date, not quotes; `phiflow plan --refresh-prices` asks Azure.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from tasks.config import Section
from tasks.platforms.connect import home_folder
from tasks.platforms.errors import ConfigError

if TYPE_CHECKING:
    from tasks.config import PipelineConfig

Tier = Literal["dedicated", "low_priority"]
HOURS_A_MONTH = 730  # as Azure's own calculator counts
STALE_DAYS = 90
_SHIPPED = Path(__file__).with_name("prices.json")
_Dollars = Annotated[float, Field(ge=0)]
_DAYS_A_MONTH = HOURS_A_MONTH / 24


class SizeEntry(Section):
    """One size of virtual machine; dollars are by the hour, and memory is that of one GPU."""

    dedicated: _Dollars | None = None
    low_priority: _Dollars | None = None
    vcpus: int | None = Field(None, ge=1)
    memory_gib: float | None = Field(None, gt=0)
    gpus: int | None = Field(None, ge=0)
    gpu: str | None = None
    gpu_memory_gib: float | None = Field(None, gt=0)


class StandingPrices(Section):
    """What a workspace's resources cost; each name ends in its unit."""

    container_registry_basic_day: _Dollars | None = None
    container_registry_standard_day: _Dollars | None = None
    container_registry_task_vcpu_second: _Dollars | None = None
    storage_gb_month: _Dollars | None = None
    log_analytics_gb: _Dollars | None = None
    cosmos_million_request_units: _Dollars | None = None
    cosmos_gb_month: _Dollars | None = None
    public_ip_hour: _Dollars | None = None
    load_balancer_hour: _Dollars | None = None


class PriceTable(Section):
    """Prices as one place gave them on one day, in dollars of the United States without tax or discount."""

    date: date
    region: str = Field(min_length=1)
    currency: Literal["USD"] = "USD"
    source: str = Field(min_length=1)
    standing: StandingPrices = StandingPrices()
    sizes: dict[str, SizeEntry] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """One size with everything that is known of it; unknown numbers are None.

    Args:
        gpu_memory_gib: of one GPU.
        priced_by: the table that the prices are from, for people.
    """

    size: str
    dedicated: float | None
    low_priority: float | None
    vcpus: int | None
    memory_gib: float | None
    gpus: int
    gpu: str
    gpu_memory_gib: float | None
    priced_by: str

    def hourly(self, tier: Tier) -> float | None:
        """Dollars an hour, or None where nobody said."""
        return self.dedicated if tier == "dedicated" else self.low_priority


@dataclass(frozen=True, slots=True, kw_only=True)
class MonthlyCost:
    """What one resource costs a month while it is there, from idle to well used."""

    name: str
    low: float
    high: float
    why: str


@dataclass(frozen=True, slots=True)
class Prices:
    """Tables over one another, the first wins; each with the name people know it by."""

    tables: tuple[tuple[str, PriceTable], ...]

    def machine(self, size: str) -> Machine:
        """What is known of a size; of an unknown one, nothing but its name."""
        entries = [(name, _entry(table, size)) for name, table in self.tables]

        def first(field: str) -> Any:
            return next((value for _, entry in entries if (value := getattr(entry, field, None)) is not None), None)

        by = next((name for name, entry in entries if entry and entry.dedicated is not None), "")
        return Machine(
            size=size,
            dedicated=first("dedicated"),
            low_priority=first("low_priority"),
            vcpus=first("vcpus"),
            memory_gib=first("memory_gib"),
            gpus=first("gpus") or 0,
            gpu=first("gpu") or "",
            gpu_memory_gib=first("gpu_memory_gib"),
            priced_by=by,
        )

    def standing(self, field: str) -> float:
        """One of the standing prices; the shipped table has them all."""
        values = (getattr(table.standing, field) for _, table in self.tables)
        return float(next(value for value in values if value is not None))

    @property
    def newest(self) -> PriceTable:
        """The table that is looked at first."""
        return self.tables[0][1]

    def about(self) -> str:
        """Which table, of when, of where, from whom; one sentence."""
        name, table = self.tables[0]
        return f"{name} of {table.date}, {table.region}, {table.currency}, without tax ({table.source})"

    def warnings(self, region: str, sizes: tuple[str, ...] = ()) -> tuple[str, ...]:
        """Why these prices may be others than the run will pay.

        Args:
            sizes: those that the run pays for.
        """
        told, table = [], self.newest
        for by in {machine.priced_by for machine in map(self.machine, sizes)} - {"", self.tables[0][0]}:
            told.append(f"Some prices are not in {self.tables[0][0]}, and were taken from {by}.")
        age = (datetime.now(UTC).date() - table.date).days
        if age > STALE_DAYS:
            told.append(f"The prices are {age} days old; get today's with: phiflow plan --refresh-prices")
        if region and region != table.region:
            told.append(f"The prices are of {table.region}, the run is in {region}: phiflow plan --refresh-prices")
        return tuple(told)


def load_prices(config: PipelineConfig | None = None) -> Prices:
    """The configuration's own table, else the one refreshed last, laid over the one that ships.

    Raises:
        ConfigError: `cost.prices` cannot be read or is no price table.
    """
    shipped = ("the shipped price table", _shipped())
    if config is None:
        return Prices((shipped,))
    if config.cost.prices:
        return Prices(((config.cost.prices, read_table(Path(config.cost.prices), "cost.prices")), shipped))
    refreshed = refreshed_file(config)
    if refreshed.exists():
        return Prices((("the price list", read_table(refreshed, "the refreshed prices")), shipped))
    return Prices((shipped,))


def refreshed_file(config: PipelineConfig) -> Path:
    """Where `phiflow plan --refresh-prices` keeps what Azure said."""
    return home_folder(config.platform.home) / "prices.json"


def read_table(path: Path, what: str) -> PriceTable:
    """Read one price table; ConfigError is one line about the first mistake."""
    try:
        return PriceTable.model_validate(json.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise ConfigError(f"Price table {path} cannot be read: {error.strerror}.", fix=f"Check {what}.") from error
    except ValidationError as error:
        mistake = error.errors()[0]
        key = ".".join(str(part) for part in mistake["loc"]) or "the file"
        raise ConfigError(
            f"Price table {path}: {key}: {mistake['msg']}.", fix=f"The format is that of {_SHIPPED.name}, which ships."
        ) from error
    except ValueError as error:
        raise ConfigError(f"Price table {path} is not JSON: {error}.", fix=f"Mend it, or empty {what}.") from error


def hourly_cost(size: str, count: int = 1, tier: Tier = "dedicated", prices: Prices | None = None) -> float | None:
    """Dollars an hour of `count` machines of a size; None where no price is known.

    Args:
        prices: `load_prices(config)`; without it the table that ships.
    """
    price = (prices or load_prices()).machine(size).hourly(tier)
    return None if price is None else price * count


def monthly_cost(dollars_an_hour: float) -> float:
    """What something that is never off costs a month of 730 hours."""
    return dollars_an_hour * HOURS_A_MONTH


def standing_costs(config: PipelineConfig, prices: Prices | None = None) -> tuple[MonthlyCost, ...]:
    """What `phiflow up` makes for a configuration and bills without any run; existing resources are not counted."""
    if config.platform.kind == "local":
        return ()
    prices, made = prices or load_prices(config), config.platform.resources
    told = []
    if not made.container_registry:
        day = prices.standing("container_registry_basic_day")
        registry = day * _DAYS_A_MONTH
        told.append(_monthly("container registry", registry, registry, f"Basic, {day:g} a day"))
    if not made.storage_account:
        gb = prices.standing("storage_gb_month")
        told.append(_monthly("storage account", 0, 20 * gb, f"0 to 20 GB of data, code and logs at {gb:g} a GB"))
    if not made.log_analytics:
        gb = prices.standing("log_analytics_gb")
        told.append(_monthly("log analytics", 0, 5 * gb, f"0 to 5 GB of logs a month at {gb:g} a GB"))
    if config.compute.public_ip:
        hour = prices.standing("load_balancer_hour") + prices.standing("public_ip_hour")
        why = f"a load balancer and an address at {hour:g} an hour while the cluster has nodes"
        told.append(_monthly("cluster's network", 0, monthly_cost(hour), why))
    if made.chat_history:
        units, gb = prices.standing("cosmos_million_request_units"), prices.standing("cosmos_gb_month")
        why = f"serverless, 0 to 10 million requests a month at {units:g} a million, and {gb:g} a GB"
        told.append(_monthly("Cosmos DB", 0, 10 * units + gb, why))
    return tuple(told)


def _monthly(name: str, low: float, high: float, why: str) -> MonthlyCost:
    return MonthlyCost(name=name, low=low, high=high, why=why)


def _entry(table: PriceTable, size: str) -> SizeEntry | None:
    return next((entry for name, entry in table.sizes.items() if name.lower() == size.lower()), None)


@functools.cache
def _shipped() -> PriceTable:
    return read_table(_SHIPPED, "the installation of phiflow")
