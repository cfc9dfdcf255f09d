"""How often each management operation was called, with polling apart from the rest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from tests.azure_contract.exchange import Exchange

_ENDED = frozenset({"Succeeded", "Failed", "Canceled", "Completed", "NotResponding", "Paused"})


@dataclass(frozen=True)
class Calls:
    """Calls of Azure Resource Manager by operation.

    Attributes:
        asked: those that say or ask something.
        polling: reads of something of which the last answer said that it was under way.
    """

    asked: Counter[str]
    polling: Counter[str]

    def table(self) -> str:
        """The operations as the rows of a Markdown table, the most frequent first."""
        rows = [f"| {operation} | {self.asked[operation]} | {self.polling[operation]} |" for operation in self._names()]
        total = f"| all | {self.asked.total()} | {self.polling.total()} |"
        return "\n".join(["| operation | calls | polls |", "|---|---:|---:|", *rows, total])

    def _names(self) -> list[str]:
        return [name for name, _ in (self.asked + self.polling).most_common()]


def count_calls(exchanges: Iterable[Exchange]) -> Calls:
    """Count the management calls among exchanges, in the order in which they were made."""
    asked: Counter[str] = Counter()
    polling: Counter[str] = Counter()
    under_way: set[str] = set()
    for exchange in exchanges:
        if not exchange.managed:
            continue
        path = exchange.path.lower()
        kind = exchange.segments[-2].lower() if len(exchange.segments) > 1 else ""
        of_operation = "operation" in kind and exchange.method == "GET"
        polled = of_operation or (exchange.method == "GET" and path in under_way)
        (polling if polled else asked)[exchange.operation] += 1
        if _is_under_way(exchange.response):
            under_way.add(path)
        elif exchange.status < 400:
            under_way.discard(path)
    return Calls(asked, polling)


def _is_under_way(body: Any) -> bool:
    properties = body.get("properties") if isinstance(body, dict) else None
    if not isinstance(properties, dict):
        return False
    state = properties.get("provisioningState") or properties.get("status")
    return isinstance(state, str) and state not in _ENDED
