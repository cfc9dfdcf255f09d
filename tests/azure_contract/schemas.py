"""JSON values held against definitions of Swagger documents: references, inheritance, discriminators, unknown keys."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tests.azure_contract.reading import Reading, shown
from tests.azure_contract.scalars import has_type, read_scalar

Node = Mapping[str, Any]


@dataclass(frozen=True)
class Schema:
    """A description and the document that its references start from."""

    document: Path
    node: Node


@dataclass(frozen=True)
class _Object:
    """A definition with all that it inherits."""

    properties: dict[str, Schema]
    required: frozenset[str]
    discriminator: str


@cache
def document(file: Path) -> dict[str, Any]:
    """A parsed Swagger document."""
    return json.loads(file.read_text(encoding="utf-8"))


def resolved(schema: Schema) -> Schema:
    """What a chain of references ends at."""
    while reference := schema.node.get("$ref"):
        address, _, pointer = reference.partition("#/")
        file = (schema.document.parent / address).resolve() if address else schema.document
        node = document(file)
        for part in pointer.split("/"):
            node = node[part]
        schema = Schema(file, node)
    return schema


def read(schema: Schema, value: Any, place: str, reading: Reading, *, required: bool = False) -> None:
    """Hold a value against a description, to its leaves."""
    target = resolved(schema)
    node = target.node
    if value is None:
        nullable = schema.node.get("x-nullable") or node.get("x-nullable")
        # The service writes null for whatever has no value, declared or not; a client does so only by mistake.
        if not nullable and (required or reading.direction == "request"):
            reading.note(place, "null", "is null")
        return
    kind = node.get("type") or ("object" if "properties" in node or "allOf" in node else "")
    if not has_type(value, kind):
        reading.note(place, "type", f"{shown(value)} is no {kind}")
    elif isinstance(value, dict):
        _read_object(target, value, place, reading)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            read(Schema(target.document, node.get("items", {})), item, f"{place}[{number}]", reading)
    else:
        read_scalar(node, value, place, reading)


def _read_object(schema: Schema, value: dict[str, Any], place: str, reading: Reading) -> None:
    described, known = _flat(schema), True
    if key := described.discriminator:
        chosen = value.get(key)
        variants = _variants(schema)
        if isinstance(chosen, str) and chosen in variants:
            described = _flat(variants[chosen])
            place = f"{place}({chosen})"
        elif variants and key in value:
            reading.note(f"{place}.{key}", "discriminator", f"{shown(chosen)} is none of {', '.join(sorted(variants))}")
            return
        else:
            known = False
    more = schema.node.get("additionalProperties")
    is_map = not described.properties
    reading.saw(place, value, None if is_map else described.properties)
    for name in sorted(described.required - value.keys()):
        if not (reading.direction == "request" and _fixed(described.properties.get(name))):
            reading.note(f"{place}.{name}", "required", "is missing")
    for name, item in value.items():
        where = f"{place}.{'*' if is_map else name}"
        if (property_ := described.properties.get(name)) is not None:
            if reading.direction == "request" and _fixed(property_):
                reading.note(where, "read-only", f"{shown(item)} was sent, which only the service may say")
            read(property_, item, where, reading, required=name in described.required)
        elif isinstance(more, dict):
            read(Schema(schema.document, more), item, where, reading)
        elif not is_map and known and more is not True:
            reading.note(where, "unknown", f"{shown(item)} has no place in the description")


def _fixed(schema: Schema | None) -> bool:
    """Whether only the service may set it."""
    if schema is None:
        return False
    nodes = (schema.node, resolved(schema).node)
    return any(node.get("readOnly") or node.get("x-ms-mutability") == ["read"] for node in nodes)


_flattened: dict[tuple[Path, int], _Object] = {}


def _flat(schema: Schema) -> _Object:
    key = (schema.document, id(schema.node))
    if key not in _flattened:
        properties: dict[str, Schema] = {}
        required: set[str] = set()
        discriminator = schema.node.get("discriminator", "")
        for parent in schema.node.get("allOf", []):
            inherited = _flat(resolved(Schema(schema.document, parent)))
            properties |= inherited.properties
            required |= inherited.required
            discriminator = discriminator or inherited.discriminator
        properties |= {name: Schema(schema.document, node) for name, node in schema.node.get("properties", {}).items()}
        required |= set(schema.node.get("required", []))
        _flattened[key] = _Object(properties, frozenset(required), discriminator)
    return _flattened[key]


def _variants(base: Schema) -> dict[str, Schema]:
    """What the values of a definition's discriminator stand for; the definition itself where it is one of them."""
    for name, node in document(base.document).get("definitions", {}).items():
        if node is base.node:
            return _descendants(base.document)[name]
    return {}


@cache
def _descendants(file: Path) -> dict[str, dict[str, Schema]]:
    definitions: dict[str, Node] = document(file).get("definitions", {})
    found: dict[str, dict[str, Schema]] = {name: {} for name in definitions}
    for name, node in definitions.items():
        value = node.get("x-ms-discriminator-value", name)
        for ancestor in {name, *_ancestors(definitions, name)}:
            if ancestor != name or "x-ms-discriminator-value" in node:
                found[ancestor][value] = Schema(file, node)
    return found


def _ancestors(definitions: Mapping[str, Node], name: str) -> set[str]:
    parents = {
        reference.removeprefix("#/definitions/")
        for parent in definitions[name].get("allOf", [])
        if (reference := parent.get("$ref", "")).startswith("#/definitions/")
    }
    return parents.union(*(_ancestors(definitions, parent) for parent in parents))
