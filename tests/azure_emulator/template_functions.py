"""The functions of the template language that depend on nothing but what they are given.

https://learn.microsoft.com/azure/azure-resource-manager/templates/template-functions
"""

from __future__ import annotations

import json
from typing import Any

from tests.azure_emulator.expressions import Functions


def _union(*given: Any) -> Any:
    if isinstance(given[0], dict):
        return {key: value for one in given for key, value in one.items()}
    items = [item for one in given for item in one]
    return [item for number, item in enumerate(items) if item not in items[:number]]


def _contains(container: Any, item: Any) -> bool:
    if isinstance(container, dict):
        return str(item).lower() in {key.lower() for key in container}
    return item in container


def _concat(*given: Any) -> Any:
    if given and isinstance(given[0], list):
        return [item for one in given for item in one]
    return "".join(_text(one) for one in given)


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _same(one: Any, other: Any) -> bool:
    return type(one) is type(other) and one == other


FUNCTIONS: Functions = {
    "if": lambda test, then, otherwise: then() if test() else otherwise(),
    "and": lambda *tests: all(test() for test in tests),
    "or": lambda *tests: any(test() for test in tests),
    "not": lambda value: not value,
    "equals": _same,
    "true": lambda: True,
    "false": lambda: False,
    "null": lambda: None,
    "empty": lambda value: value is None or len(value) == 0,
    "length": len,
    "contains": _contains,
    "coalesce": lambda *given: next((one for one in given if one is not None), None),
    "concat": _concat,
    "format": lambda text, *given: str(text).format(*(_text(one) for one in given)),
    "string": _text,
    "int": int,
    "bool": lambda value: str(value).lower() in ("true", "1"),
    "json": json.loads,
    "tolower": lambda text: text.lower(),
    "toupper": lambda text: text.upper(),
    "trim": lambda text: text.strip(),
    "replace": lambda text, old, new: text.replace(old, new),
    "split": lambda text, by: text.split(by),
    "join": lambda given, by: by.join(_text(one) for one in given),
    "substring": lambda text, start, length=None: text[start : None if length is None else start + length],
    "startswith": lambda text, start: text.lower().startswith(start.lower()),
    "endswith": lambda text, end: text.lower().endswith(end.lower()),
    "first": lambda given: given[0],
    "last": lambda given: given[-1],
    "createarray": lambda *given: list(given),
    "createobject": lambda *given: dict(zip(given[0::2], given[1::2], strict=True)),
    "union": _union,
}
