"""Bicep's types: resources and functions of versions that the Swagger lacks, with required and read-only flags."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tests.azure_contract.exchange import Exchange
from tests.azure_contract.reading import Reading, shown
from tests.azure_contract.scalars import has_type

_REQUIRED, _READ_ONLY, _WRITE_ONLY = 1, 2, 4
# The path says them in a request, and no body has the version.
_ENVELOPE = ("id", "name", "type", "apiVersion")
_SIMPLE = {"StringType": "string", "IntegerType": "integer", "BooleanType": "boolean"}
Node = dict[str, Any]


class BicepTypes:
    """The types of the versions below a folder that is laid out as bicep-types-az is."""

    def __init__(self, folder: Path) -> None:
        self._resources: dict[tuple[str, str], tuple[Path, Node]] = {}
        self._functions: dict[tuple[str, str, str], tuple[Path, Node]] = {}
        for file in sorted(folder.rglob("types.json")):
            for node in _types(file):
                if node["$type"] == "ResourceType":
                    name, version = node["name"].lower().split("@")
                    self._resources[name, version] = (file, node)
                elif node["$type"] == "ResourceFunctionType":
                    key = (node["resourceType"].lower(), node["name"].lower(), node["apiVersion"])
                    self._functions[key] = (file, node)

    def knows(self, exchange: Exchange) -> bool:
        """Whether bodies of this exchange are described."""
        return self._resource(exchange) is not None or self._function(exchange) is not None

    def read_body(self, resource_type: str, version: str, body: Any, reading: Reading) -> None:
        """Note what is wrong with a resource as a client sends it; KeyError when its type is not described."""
        file, node = self._resources[resource_type.lower(), version]
        read(file, node["body"], body, "body", reading, envelope=True)

    def read_request(self, exchange: Exchange, reading: Reading) -> None:
        """Note what is wrong with the body of a request."""
        if exchange.method == "POST" and (function := self._function(exchange)):
            file, node = function
            if "input" in node and exchange.request is not None:
                read(file, node["input"], exchange.request, "request", reading)
        elif exchange.method == "PUT" and (resource := self._resource(exchange)):
            if exchange.request is None:
                reading.note("request", "required", "has no body")
            else:
                read(resource[0], resource[1]["body"], exchange.request, "request", reading, envelope=True)

    def read_response(self, exchange: Exchange, reading: Reading) -> None:
        """Note what is wrong with the body of a successful response."""
        body = exchange.response
        if exchange.method == "POST" and (function := self._function(exchange)):
            if body is not None:
                read(function[0], function[1]["output"], body, "response", reading)
        elif exchange.method in ("GET", "PUT") and (resource := self._resource(exchange)):
            file, node = resource
            if len(exchange.segments) % 2 == 0:
                if body is None:
                    reading.note("response", "required", "has no body")
                else:
                    read(file, node["body"], body, "response", reading, envelope=True)
            elif not isinstance(body, dict) or not isinstance(body.get("value"), list):
                reading.note("response.value", "required", "is no list")
            else:
                for key in body.keys() - {"value", "nextLink"}:
                    reading.note(f"response.{key}", "unknown", f"{shown(body[key])} has no place in a list")
                for number, item in enumerate(body["value"]):
                    read(file, node["body"], item, f"response.value[{number}]", reading, envelope=True)

    def _resource(self, exchange: Exchange) -> tuple[Path, Node] | None:
        return self._resources.get((f"{exchange.namespace}/{exchange.resource}".lower(), exchange.version))

    def _function(self, exchange: Exchange) -> tuple[Path, Node] | None:
        if len(exchange.segments) % 2 == 0:
            return None
        holder = f"{exchange.namespace}/{'/'.join(exchange.segments[:-1][0::2])}".lower()
        return self._functions.get((holder, exchange.segments[-1].lower(), exchange.version))


def read(
    file: Path, reference: Node, value: Any, place: str, reading: Reading, *, envelope: bool = False, must: bool = False
) -> None:
    """Hold a value against a type, to its leaves."""
    node = _types(file)[int(reference["$ref"].removeprefix("#/"))]
    kind = node["$type"]
    if value is None:
        if must:
            reading.note(place, "null", "is null")
    elif kind == "UnionType":
        _read_union(file, node, value, place, reading)
    elif kind == "StringLiteralType":
        if value != node["value"]:
            reading.note(place, "enum", f"{shown(value)} is not {node['value']}")
    elif kind in _SIMPLE:
        if not has_type(value, _SIMPLE[kind]) and not (kind == "IntegerType" and isinstance(value, float)):
            reading.note(place, "type", f"{shown(value)} is no {_SIMPLE[kind]}")
        elif isinstance(value, str):
            _read_text(node, value, place, reading)
    elif kind == "ArrayType":
        if not isinstance(value, list):
            reading.note(place, "type", f"{shown(value)} is no array")
            return
        for number, item in enumerate(value):
            read(file, node["itemType"], item, f"{place}[{number}]", reading)
    elif kind in ("ObjectType", "DiscriminatedObjectType"):
        if not isinstance(value, dict):
            reading.note(place, "type", f"{shown(value)} is no object")
            return
        _read_object(file, node, value, place, reading, envelope)


def _read_object(file: Path, node: Node, value: dict[str, Any], place: str, reading: Reading, envelope: bool) -> None:
    properties: dict[str, Node] = node.get("properties") or node.get("baseProperties", {})
    if key := node.get("discriminator"):
        chosen = value.get(key)
        if key not in value:
            reading.note(f"{place}.{key}", "required", "is missing")
            return
        if not isinstance(chosen, str) or chosen not in node["elements"]:
            known = ", ".join(sorted(node["elements"]))
            reading.note(f"{place}.{key}", "discriminator", f"{shown(chosen)} is none of {known}")
            return
        variant = _types(file)[int(node["elements"][chosen]["$ref"].removeprefix("#/"))]
        properties = properties | variant["properties"]
        place = f"{place}({chosen})"
    reading.saw(place, value, properties or None)
    for name, told in properties.items():
        wanted = told["flags"] & _REQUIRED and name not in value and not (envelope and name in _ENVELOPE)
        hidden = reading.direction == "response" and told["flags"] & _WRITE_ONLY
        if wanted and not hidden and not (reading.direction == "request" and told["flags"] & _READ_ONLY):
            reading.note(f"{place}.{name}", "required", "is missing")
    more = node.get("additionalProperties")
    for name, item in value.items():
        where = f"{place}.{name}"
        if name in properties:
            told = properties[name]
            if reading.direction == "request" and told["flags"] & _READ_ONLY and not (envelope and name in _ENVELOPE):
                reading.note(where, "read-only", f"{shown(item)} was sent, which only the service may say")
            read(file, told["type"], item, where, reading, must=bool(told["flags"] & _REQUIRED))
        elif more:
            read(file, more, item, f"{place}.*", reading)
        elif properties:
            reading.note(where, "unknown", f"{shown(item)} has no place in the description")


def _read_union(file: Path, node: Node, value: Any, place: str, reading: Reading) -> None:
    """Literals are all that is allowed: the plain string beside them stands for what later versions may add."""
    members = [_types(file)[int(one["$ref"].removeprefix("#/"))] for one in node["elements"]]
    literals = [one["value"] for one in members if one["$type"] == "StringLiteralType"]
    if literals and value not in literals:
        reading.note(place, "enum", f"{shown(value)} is none of {', '.join(literals)}")


def _read_text(node: Node, value: str, place: str, reading: Reading) -> None:
    if not node.get("minLength", 0) <= len(value) <= node.get("maxLength", len(value)):
        reading.note(place, "pattern", f"{shown(value)} has a length that is not allowed")
    if (pattern := node.get("pattern")) and not re.search(pattern, value):
        reading.note(place, "pattern", f"{shown(value)} does not match {pattern}")


@cache
def _types(file: Path) -> list[Node]:
    return json.loads(file.read_text(encoding="utf-8"))
