"""Strings, numbers and truth values held against a Swagger description."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from tests.azure_contract.reading import Reading, shown

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}
_DURATION = re.compile(r"^P(?=.)(\d+Y)?(\d+M)?(\d+D)?(T(?=.)(\d+H)?(\d+M)?(\d+(\.\d+)?S)?)?$")
# The service writes seven digits of a second's fraction, of which Python reads six.
_FRACTION = re.compile(r"(\.\d{6})\d+")


def has_type(value: Any, name: str) -> bool:
    """Whether a value is of a JSON type; true and false are no numbers."""
    kinds = _TYPES.get(name)
    return kinds is None or (isinstance(value, kinds) and (isinstance(value, bool) <= (name == "boolean")))


def read_scalar(node: Mapping[str, Any], value: Any, place: str, reading: Reading) -> None:
    """Note what a value that has the right type violates besides."""
    if (allowed := node.get("enum")) and value not in allowed:
        reading.note(place, "enum", f"{shown(value)} is none of {', '.join(map(str, allowed))}")
    if isinstance(value, str):
        if len(value) < node.get("minLength", 0):
            reading.note(place, "pattern", f"{shown(value)} is shorter than {node['minLength']}")
        if len(value) > node.get("maxLength", len(value)):
            reading.note(place, "pattern", f"{shown(value)} is longer than {node['maxLength']}")
        if (pattern := node.get("pattern")) and not _compiled(pattern).search(value):
            reading.note(place, "pattern", f"{shown(value)} does not match {pattern}")
    elif not node.get("minimum", value) <= value <= node.get("maximum", value):
        reading.note(place, "pattern", f"{shown(value)} is not in {node.get('minimum')}..{node.get('maximum')}")
    if not _formatted(node.get("format", ""), value):
        reading.note(place, "format", f"{shown(value)} is no {node['format']}")


def _formatted(name: str, value: Any) -> bool:
    try:
        match name:
            case "date-time":
                datetime.fromisoformat(_FRACTION.sub(r"\1", value))
            case "uuid":
                uuid.UUID(value)
            case "duration":
                return _DURATION.match(value) is not None
            case "int32":
                return -(2**31) <= value < 2**31
    except ValueError:
        return False
    return True


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern)
