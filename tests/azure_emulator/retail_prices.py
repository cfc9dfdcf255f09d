"""The public price list, as https://prices.azure.com/api/retail/prices answers: no token, pages, filters.

    PUT /_emulator/prices/Standard_NC24ads_A100_v4 {"retailPrice": 4.2}    of an hour on Linux, in every region
    PUT /_emulator/prices-page {"size": 2}

The prices are made up. Beside the plain one a size has those that nobody may take for it: Spot, Low Priority, Windows,
reservations. https://learn.microsoft.com/rest/api/cost-management/retail-prices/azure-retail-prices
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from tests.azure_emulator.regions import REGIONS, Region
from tests.azure_emulator.sizes import SIZES, Size
from tests.azure_emulator.web import Answer, Request, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

PATH = "/api/retail/prices"
_PAGE = 1000
_CORE_HOUR, _GPU_HOUR = 0.06, 2.4
_FIELDS = (
    *("armRegionName", "location", "meterId", "meterName", "productId", "productName", "skuId", "skuName"),
    *("serviceName", "serviceId", "serviceFamily", "armSkuName", "priceType", "type", "currencyCode"),
)
_TOKEN = re.compile(
    r"\s*(?:(?P<word>contains|and|or|eq)\b|(?P<mark>[(),])|(?P<field>\w+)|'(?P<text>(?:[^']|'')*)')", re.IGNORECASE
)
Item = dict[str, Any]
Test = Callable[[Item], bool]


def install(emulator: Emulator) -> None:
    """Register the route."""

    def answer(request: Request) -> Answer:
        told = request.query.get("$filter", "")
        test = _Filter(told).test() if told else lambda _: True
        found = [item for item in _items(emulator) if test(item)]
        start, size = int(request.query.get("$skip") or 0), int(emulator.settings.get("prices-page").get("size", _PAGE))
        page = found[start : start + size]
        following = None
        if start + size < len(found):
            kept = "&".join(f"{key}={quote(value)}" for key, value in request.query.items() if key != "$skip")
            following = f"{emulator.url}{PATH}?{kept}&$skip={start + size}"
        body = {
            "BillingCurrency": "USD",
            "CustomerEntityId": "Default",
            "CustomerEntityType": "Retail",
            "Items": page,
            "NextPageLink": following,
            "Count": len(page),
        }
        return Answer(200, body)

    emulator.register("GET", PATH, answer)


def _items(emulator: Emulator) -> Iterator[Item]:
    for size in SIZES.values():
        known = emulator.settings.get(f"prices/{size.name.lower()}")
        price = float(known.get("retailPrice", size.cores * _CORE_HOUR + size.gpus * _GPU_HOUR))
        for region in REGIONS.values():
            yield _item(size, region, "", price)
            yield _item(size, region, " Spot", price * 0.2)
            yield _item(size, region, " Low Priority", price * 0.2)
            yield _item(size, region, "", price * 1.5, windows=True)
            yield _item(size, region, "", price * 8760 * 0.6, term="1 Year")


def _item(size: Size, region: Region, kind: str, price: float, *, windows: bool = False, term: str = "") -> Item:
    short = size.name.removeprefix("Standard_").replace("_", " ")
    family = re.sub(r"(?i)^standard\s*|\s*family$", "", size.family)
    product = f"Virtual Machines {family} Series{' Windows' if windows else ''}"
    meter = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{size.name}{region.name}{kind}{windows}{term}"))
    rounded = round(price, 6)
    item: Item = {
        "currencyCode": "USD",
        "tierMinimumUnits": 0.0,
        "retailPrice": rounded,
        "unitPrice": rounded,
        "armRegionName": region.name,
        "location": region.billed_as,
        "effectiveStartDate": "2024-01-01T00:00:00Z",
        "meterId": meter,
        "meterName": f"{short}{kind}",
        "productId": f"DZH318{meter[:8].upper()}",
        "skuId": f"DZH318{meter[:8].upper()}/{meter[9:13].upper()}",
        "productName": product,
        "skuName": f"{short}{kind}",
        "serviceName": "Virtual Machines",
        "serviceId": "DZH313Z7MMC8",
        "serviceFamily": "Compute",
        "unitOfMeasure": "1 Hour",
        "type": "Reservation" if term else "Consumption",
        "isPrimaryMeterRegion": True,
        "armSkuName": size.name,
    }
    return item | ({"reservationTerm": term} if term else {})


class _Filter:
    """An OData filter of comparisons, contains, and, or, brackets; values are compared with regard to case."""

    def __init__(self, text: str) -> None:
        self._tokens = _tokens(text)

    def test(self) -> Test:
        """What an item must pass.

        Raises:
            ServiceError: 400, the filter is none.
        """
        test = self._either()
        if self._tokens:
            raise _invalid(self._tokens[0][1])
        return test

    def _either(self) -> Test:
        tests = [self._both()]
        while self._next("word", "or"):
            tests.append(self._both())
        return lambda item: any(test(item) for test in tests)

    def _both(self) -> Test:
        tests = [self._one()]
        while self._next("word", "and"):
            tests.append(self._one())
        return lambda item: all(test(item) for test in tests)

    def _one(self) -> Test:
        if self._next("mark", "("):
            test = self._either()
            self._required("mark", ")")
            return test
        if self._next("word", "contains"):
            self._required("mark", "(")
            field = self._field()
            self._required("mark", ",")
            part = self._required("text")
            self._required("mark", ")")
            return lambda item: part in str(item.get(field, ""))
        field = self._field()
        self._required("word", "eq")
        value = self._required("text")
        return lambda item: str(item.get(field, "")) == value

    def _field(self) -> str:
        given = self._required("field")
        known = {name.lower(): name for name in _FIELDS}
        if given.lower() not in known:
            raise _invalid(given)
        name = known[given.lower()]
        return "type" if name == "priceType" else name

    def _next(self, kind: str, value: str) -> bool:
        if self._tokens and self._tokens[0][0] == kind and self._tokens[0][1].lower() == value:
            self._tokens.pop(0)
            return True
        return False

    def _required(self, kind: str, value: str = "") -> str:
        if not self._tokens or self._tokens[0][0] != kind or (value and self._tokens[0][1].lower() != value):
            raise _invalid(self._tokens[0][1] if self._tokens else "the end")
        return self._tokens.pop(0)[1]


def _tokens(text: str) -> list[tuple[str, str]]:
    tokens, position, text = [], 0, text.strip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None or found.lastgroup is None:
            raise _invalid(text[position:])
        tokens.append((found.lastgroup, found[found.lastgroup].replace("''", "'")))
        position = found.end()
    return tokens


def _invalid(what: str) -> Exception:
    return arm_error(400, "BadRequest", f"Invalid OData parameters supplied: '{what}'.")
