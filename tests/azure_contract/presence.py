"""Which keys the live service sent, by its recordings, always and ever: what another answer has too few or too many."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.azure_contract.exchange import Exchange
from tests.azure_contract.reading import Problem, Shape

# Those that the SDK goes by; the others are of the transport.
_HEADERS = frozenset({"azure-asyncoperation", "location"})
_NUMBER = re.compile(r"\[\d+\]")
_TAG = re.compile(r"\(\w+\)")

# By resource type, and by the path of one resource: where what clients put would be in the response.
Asked = dict[str, set[str]]


@dataclass
class _Seen:
    """What one place of one answer had, over all recordings of it."""

    samples: int = 0
    valued: dict[str, int] = field(default_factory=dict)


class Presence:
    """Learns from exchanges with the live service, then judges others."""

    def __init__(self) -> None:
        self._answers: dict[tuple[str, int, str], _Seen] = {}
        # By resource type: a GET and a PUT, and a list's item, show the same resource.
        self._ever: dict[tuple[str, str], set[str]] = {}
        self._declared: dict[tuple[str, str], set[str]] = {}
        self._asked: Asked = {}
        # Of what clients set, what the service also says when a client did not.
        self._filled: Asked = {}
        self._headers: dict[tuple[str, int], frozenset[str]] = {}

    def learn(self, exchange: Exchange, shapes: Iterable[Shape]) -> None:
        """Take in what the live service answered."""
        note_asked(exchange, self._asked)
        kind = exchange.operation, exchange.status
        self._headers[kind] = self._headers.get(kind, _HEADERS) & exchange.headers
        sent = set(_leaves(exchange.request, "response"))
        for shape in shapes:
            if shape.declared is None:
                continue
            if exchange.method == "PUT":
                paths = {_path(shape.place, key) for key in shape.keys - shape.nulls}
                self._filled.setdefault(exchange.resource, set()).update(paths - sent)
            seen = self._answers.setdefault((exchange.operation, exchange.status, _plain(shape.place)), _Seen())
            seen.samples += 1
            for key in shape.keys - shape.nulls:
                seen.valued[key] = seen.valued.get(key, 0) + 1
            place = self._place(exchange, shape)
            self._ever.setdefault(place, set()).update(shape.keys)
            self._declared.setdefault(place, set()).update(shape.declared)

    def always(self, operation: str, status: int, place: str) -> set[str]:
        """The keys that had a value in every recording of an answer; empty where there is none."""
        seen = self._answers.get((operation, status, place))
        if seen is None and operation.startswith("PUT ") and status == 200:
            # What was changed is shown as what was made.
            seen = self._answers.get((operation, 201, place))
        return {key for key, count in seen.valued.items() if count == seen.samples} if seen else set()

    def judge(self, exchange: Exchange, shapes: Iterable[Shape], set_by_clients: Asked) -> list[Problem]:
        """Note keys that the service always sends and this answer lacks, and those that it never sent.

        A key without a value may be null or absent. A key that the recorded clients set is expected where this one set
        it, now or before. A key that the recorded versions did not know may be there; one that the version at hand
        does not know is not missed.

        Args:
            set_by_clients: what the clients of this session set, which the service then may answer with.
        """
        sent = set(_leaves(exchange.request, "response")) | set_by_clients.get(exchange.path.lower(), set())
        ours = set_by_clients.get(exchange.resource, set())
        asked = self._asked.get(exchange.resource, set()) - self._filled.get(exchange.resource, set())
        asked -= {"response.properties"}
        missed = self._headers.get((exchange.operation, exchange.status), frozenset()) - exchange.headers
        found = [Problem(f"header.{name}", "missing", "is missing, which the service always sends") for name in missed]
        for shape in shapes:
            if shape.declared is None:
                continue
            place = _plain(shape.place)
            for key in sorted((self.always(exchange.operation, exchange.status, place) & shape.declared) - shape.keys):
                path = _path(place, key)
                if path not in asked or path in sent:
                    found.append(Problem(f"{place}.{key}", "missing", "is missing, which the service always sends"))
            where = self._place(exchange, shape)
            if where in self._ever:
                known_then = self._declared[where] - self._ever[where]
                for key in sorted((shape.keys - shape.nulls) & known_then):
                    if _path(where[1], key) in ours:
                        continue
                    found.append(Problem(f"{place}.{key}", "extra", "is there, which the service never sent"))
        return found

    def _place(self, exchange: Exchange, shape: Shape) -> tuple[str, str]:
        return exchange.resource, _plain(shape.place).replace("response.value[]", "response", 1)


def note_asked(exchange: Exchange, asked: Asked) -> None:
    """Add what an exchange's client wanted the resource to have."""
    if exchange.method in ("PUT", "PATCH"):
        for key in (exchange.resource, exchange.path.lower()):
            asked.setdefault(key, set()).update(_leaves(exchange.request, "response"))
        for resource in _template_resources(exchange):
            kind = str(resource.get("type", "")).partition("/")[2]
            asked.setdefault(kind, set()).update(_leaves(resource, "response"))


def _template_resources(exchange: Exchange) -> list[dict[str, Any]]:
    """What a template asks for, as a client would by a request for each."""
    if exchange.resource != "deployments" or not isinstance(exchange.request, dict):
        return []
    resources = exchange.request.get("properties", {}).get("template", {}).get("resources") or []
    return list(resources.values() if isinstance(resources, dict) else resources)


def _plain(place: str) -> str:
    return _NUMBER.sub("[]", place)


def _path(place: str, key: str) -> str:
    return f"{_TAG.sub('', _plain(place))}.{key}"


def _leaves(value: Any, place: str) -> Iterable[str]:
    """The paths of everything in a value."""
    if isinstance(value, dict):
        for key, item in value.items():
            if item is not None:
                yield f"{place}.{key}"
                yield from _leaves(item, f"{place}.{key}")
