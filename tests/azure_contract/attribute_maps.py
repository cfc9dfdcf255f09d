"""JSON held against the models that Microsoft generates for its SDKs, by their attribute maps: nothing unknown passes.

The models themselves take anything and drop what they do not know; their maps say what a service takes.
"""

from __future__ import annotations

import re
from functools import cache
from types import ModuleType
from typing import Any

from tests.azure_contract.reading import Reading, shown

_SIMPLE = {"str": str, "bool": bool, "object": object, "iso-8601": str, "duration": str, "date": str}
# The path says them in a request, and a template above what becomes its body.
_ENVELOPE = ("id", "name", "type", "systemData")


def read_model(models: ModuleType, name: str, value: Any, place: str, reading: Reading) -> None:
    """Hold a value against a model of a module such as azure.mgmt.storage.models, to its leaves."""
    if not isinstance(value, dict):
        reading.note(place, "type", f"{shown(value)} is no object")
        return
    model = getattr(models, name)
    told: dict[str, dict[str, str]] = model._attribute_map
    rules: dict[str, dict[str, Any]] = getattr(model, "_validation", {})
    keys = {_path(one["key"]): (attribute, one["type"]) for attribute, one in told.items()}
    for path, (attribute, _) in keys.items():
        rule = rules.get(attribute, {})
        if rule.get("required") and not rule.get("readonly") and _at(value, path) is None and path[-1] not in _ENVELOPE:
            reading.note(".".join((place, *path)), "required", "is missing")
    for path, item in _leaves(value, {known[:depth] for known in keys for depth in range(1, len(known))}):
        where = ".".join((place, *path))
        if path not in keys:
            reading.note(where, "unknown", f"{shown(item)} has no place in {name}")
            continue
        attribute, kind = keys[path]
        rule = rules.get(attribute, {})
        if rule.get("readonly"):
            reading.note(where, "read-only", f"{shown(item)} was sent, which only the service may say")
        _read_rules(rule, item, where, reading)
        _read(models, kind, item, where, reading)
        if choices := _choices(models, model, attribute):
            for one in item if isinstance(item, list) else [item]:
                if one not in choices:
                    reading.note(where, "enum", f"{shown(one)} is none of {', '.join(sorted(choices))}")


def _read(models: ModuleType, kind: str, value: Any, place: str, reading: Reading) -> None:
    if kind.startswith("["):
        if not isinstance(value, list):
            reading.note(place, "type", f"{shown(value)} is no array")
            return
        for number, item in enumerate(value):
            _read(models, kind[1:-1], item, f"{place}[{number}]", reading)
    elif kind.startswith("{"):
        if not isinstance(value, dict):
            reading.note(place, "type", f"{shown(value)} is no object")
            return
        for key, item in value.items():
            _read(models, kind[1:-1], item, f"{place}.{key}", reading)
    elif kind in ("int", "long", "float"):
        numbers = (int, float) if kind == "float" else int
        if isinstance(value, bool) or not isinstance(value, numbers):
            reading.note(place, "type", f"{shown(value)} is no {kind}")
    elif kind in _SIMPLE:
        if not isinstance(value, _SIMPLE[kind]):
            reading.note(place, "type", f"{shown(value)} is no {kind}")
    else:
        read_model(models, kind, value, place, reading)


def _read_rules(rule: dict[str, Any], value: Any, place: str, reading: Reading) -> None:
    if isinstance(value, str):
        if not rule.get("min_length", 0) <= len(value) <= rule.get("max_length", len(value)):
            reading.note(place, "pattern", f"{shown(value)} has a length that is not allowed")
        if (pattern := rule.get("pattern")) and not re.search(pattern, value):
            reading.note(place, "pattern", f"{shown(value)} does not match {pattern}")
    elif isinstance(value, int | float) and not rule.get("minimum_ei", rule.get("minimum", value)) <= value <= rule.get(
        "maximum", value
    ):
        reading.note(place, "pattern", f"{shown(value)} is out of range")


def _leaves(value: dict[str, Any], sections: set[tuple[str, ...]], above: tuple[str, ...] = ()) -> Any:
    """The keys of an object with their values, and below those that only hold others, as `properties` does."""
    for key, item in value.items():
        path = (*above, key)
        if path in sections and isinstance(item, dict):
            yield from _leaves(item, sections, path)
        else:
            yield path, item


def _path(key: str) -> tuple[str, ...]:
    """An attribute's place: dots part keys, a dot of a key itself is escaped."""
    return tuple(part.replace("\\.", ".") for part in re.split(r"(?<!\\)\.", key))


def _at(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


@cache
def _choices(models: ModuleType, model: type, attribute: str) -> frozenset[str]:
    """The texts that an attribute may have, which the maps leave out and the docstrings name."""
    told = re.search(rf":vartype {attribute}: ((?:.|\n(?!\s*:))*)", model.__doc__ or "")
    named = re.search(r"~[\w.\s]*?\.models\.\s*(\w+)", told[1]) if told else None
    enum = getattr(models, named[1], None) if named else None
    if enum is None or not hasattr(enum, "__members__"):
        return frozenset()
    return frozenset(str(member.value) for member in enum)
