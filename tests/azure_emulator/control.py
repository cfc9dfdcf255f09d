"""How tests talk to the emulator itself: scenarios, counts of exchanges."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.azure_emulator.web import Answer, Request

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator


def install(emulator: Emulator) -> None:
    """Register the routes below /_emulator, which are not logged and need no token."""

    def add_scenario(request: Request) -> Answer:
        return Answer(201, {"id": emulator.scenarios.add(request.json)})

    def clear_scenarios(request: Request) -> Answer:
        emulator.scenarios.clear()
        return Answer(204)

    def count_exchanges(request: Request) -> Answer:
        return Answer(200, emulator.exchanges.counts(request.query.get("path", ""), request.query.get("method", "")))

    def clear_exchanges(request: Request) -> Answer:
        emulator.exchanges.clear()
        return Answer(204)

    emulator.register("POST", "/_emulator/scenarios", add_scenario)
    emulator.register("GET", "/_emulator/scenarios", lambda _: Answer(200, {"value": emulator.scenarios.list()}))
    emulator.register("DELETE", "/_emulator/scenarios", clear_scenarios)
    emulator.register("GET", "/_emulator/exchanges", count_exchanges)
    emulator.register("DELETE", "/_emulator/exchanges", clear_exchanges)
