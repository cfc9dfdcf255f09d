"""Microsoft's Swagger: which operations there are in a version, and what their parameters and bodies must be like."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path

from tests.azure_contract.exchange import Exchange
from tests.azure_contract.reading import Reading
from tests.azure_contract.scalars import read_scalar
from tests.azure_contract.schemas import Node, Schema, document, read, resolved

_PLACEHOLDER = re.compile(r"\{(\w+)\}")


@dataclass(frozen=True)
class Operation:
    """An operation of one version.

    Attributes:
        parameters: resolved, by (where, name).
        path: finds the parameters in a path.
    """

    version: str
    document: Path
    node: Node
    parameters: dict[tuple[str, str], Node]
    path: re.Pattern[str]

    @property
    def body(self) -> Schema | None:
        """What the request must carry; None when nothing."""
        found = [node for (where, _), node in self.parameters.items() if where == "body"]
        return Schema(self.document, found[0]["schema"]) if found else None

    @property
    def body_required(self) -> bool:
        """Whether a request without a body is none."""
        return any(where == "body" and node.get("required") for (where, _), node in self.parameters.items())

    def answer(self, status: int) -> Schema | None:
        """What the response carries; None when nothing is said of it."""
        responses = self.node["responses"]
        chosen = responses.get(str(status), responses.get("default", {}) if status >= 400 else {})
        return Schema(self.document, chosen["schema"]) if "schema" in chosen else None


class Swagger:
    """All documents below a folder that is laid out as azure-rest-api-specs is."""

    def __init__(self, folder: Path) -> None:
        self._files: dict[str, dict[str, list[Path]]] = {}
        for file in sorted(folder.glob("*/resource-manager/*/*/*/*.json")):
            namespace, version = file.parts[-4].lower(), file.parts[-2]
            self._files.setdefault(namespace, {}).setdefault(version, []).append(file)
        self.operation_status = Schema(
            folder / "common-types" / "resource-management" / "v3" / "types.json",
            {"$ref": "#/definitions/OperationStatusResult"},
        )

    def exact(self, exchange: Exchange) -> Operation | None:
        """The operation in the very version that was asked for."""
        return self._find(exchange, exchange.version)

    def nearest(self, exchange: Exchange) -> Operation | None:
        """The operation in the next later version that has it, or else in the last earlier one."""
        return next(
            (found for version in self._by_distance(exchange) if (found := self._find(exchange, version))), None
        )

    def _by_distance(self, exchange: Exchange) -> list[str]:
        asked, versions = exchange.version, self._files.get(exchange.namespace, {})
        if not re.match(r"\d{4}-\d{2}-\d{2}", asked):
            return sorted(versions, reverse=True)

        def distance(version: str) -> tuple[bool, int, bool]:
            days = (date.fromisoformat(version[:10]) - date.fromisoformat(asked[:10])).days
            return days < 0, abs(days), version.endswith("preview") != asked.endswith("preview")

        return sorted(versions, key=distance)

    def _find(self, exchange: Exchange, version: str) -> Operation | None:
        for file in self._files.get(exchange.namespace, {}).get(version, []):
            for pattern, path in _paths(file):
                if pattern.fullmatch(exchange.path) and exchange.method.lower() in path:
                    node = path[exchange.method.lower()]
                    return Operation(version, file, node, _parameters(file, path, node), pattern)
        return None


def read_request(operation: Operation, exchange: Exchange, reading: Reading) -> None:
    """Note what is wrong with names, query and body of a request."""
    _read_names(operation, exchange, reading)
    _read_query(operation, exchange, reading)
    if (body := operation.body) is not None:
        if exchange.request is not None:
            read(body, exchange.request, "request", reading, required=True)
        elif operation.body_required:
            reading.note("request", "required", "has no body")
    elif exchange.request:
        reading.note("request", "unknown", "has a body, which this operation does not take")


def read_response(operation: Operation, exchange: Exchange, reading: Reading) -> None:
    """Note what is wrong with status and body of a response."""
    responses = operation.node["responses"]
    if exchange.status < 400 and str(exchange.status) not in responses:
        told = ", ".join(sorted(responses))
        reading.note("status", "status", f"{exchange.status} is none of {told}")
    schema = operation.answer(exchange.status)
    if schema is not None:
        if exchange.response is None and exchange.method != "HEAD":
            reading.note("response", "required", "has no body")
        else:
            read(schema, exchange.response, "response", reading, required=True)
            listed = exchange.status == 200 and "x-ms-pageable" in operation.node
            if listed and isinstance(exchange.response, dict) and "value" not in exchange.response:
                reading.note("response.value", "required", "is missing, which every list has")
    elif exchange.response and exchange.status < 400 and str(exchange.status) in responses:
        reading.note("response", "unknown", "has a body, which this operation does not answer with")


def _read_names(operation: Operation, exchange: Exchange, reading: Reading) -> None:
    match = operation.path.fullmatch(exchange.path)
    assert match
    for (where, name), node in operation.parameters.items():
        if where == "path" and (value := match.groupdict().get(name)) is not None:
            before = len(reading.problems)
            read_scalar(node, value, f"path.{name}", reading)
            reading.problems[before:] = [
                type(problem)(problem.place, "name", problem.what) for problem in reading.problems[before:]
            ]


def _read_query(operation: Operation, exchange: Exchange, reading: Reading) -> None:
    known = {name: node for (where, name), node in operation.parameters.items() if where == "query"}
    for name in exchange.query.keys() - known.keys():
        reading.note(f"query.{name}", "query", "is no parameter of this operation")
    for name, node in known.items():
        if name in exchange.query:
            if node["type"] == "string" and name != "api-version":
                read_scalar(node, exchange.query[name], f"query.{name}", reading)
        elif node.get("required"):
            reading.note(f"query.{name}", "query", "is missing")


@cache
def _paths(file: Path) -> list[tuple[re.Pattern[str], Node]]:
    # A path that is nothing but a placeholder stands for every resource there is, and says nothing of any.
    return [(_pattern(path), node) for path, node in _declared(file) if path != "/{resourceId}"]


def _declared(file: Path) -> Iterator[tuple[str, Node]]:
    whole = document(file)
    yield from (whole.get("paths") or {}).items()
    yield from (whole.get("x-ms-paths") or {}).items()


def _pattern(path: str) -> re.Pattern[str]:
    # Empty for a resource that belongs to no other.
    path = path.replace("{parentResourcePath}/", "{parentResourcePath}")
    parts = _PLACEHOLDER.split(path)
    kinds = {"scope": ".+", "resourceId": ".+", "parentResourcePath": "(?:[^/]+/)*"}
    names = [f"(?P<{part}>{kinds.get(part, '[^/]+')})" for part in parts[1::2]]
    fixed = [re.escape(part) for part in parts[0::2]]
    return re.compile("".join(x for pair in zip(fixed, [*names, ""], strict=True) for x in pair), re.IGNORECASE)


def _parameters(file: Path, path: Node, node: Node) -> dict[tuple[str, str], Node]:
    found: dict[tuple[str, str], Node] = {}
    for parameter in [*path.get("parameters", []), *node.get("parameters", [])]:
        target = resolved(Schema(file, parameter))
        found[target.node["in"], target.node["name"]] = _rooted(target)
    return found


def _rooted(target: Schema) -> Node:
    # A body's schema may refer to its own document, which then is another one than the operation's.
    reference = target.node.get("schema", {}).get("$ref", "")
    if reference.startswith("#"):
        return {**target.node, "schema": {"$ref": f"{target.document}{reference}"}}
    return target.node
