"""Template expressions: `[concat(parameters('a'), '/', variables('b').c[0])]` read, and their value found.

The language: https://learn.microsoft.com/azure/azure-resource-manager/templates/template-expressions
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

_TOKEN = re.compile(r"\s*(?:('(?:[^']|'')*')|(-?\d+)|([A-Za-z_]\w*)|([()\[\].,]))")


class TemplateError(Exception):
    """A template that Resource Manager does not take, with the reason."""


@dataclass(frozen=True)
class Node:
    """A part of an expression.

    Attributes:
        kind: `value`, `call` or `member` (whose first part is what it is a member of).
        value: the literal, or the function's name in lower case.
        parts: a call's arguments, or a member's owner and its name or number.
    """

    kind: str
    value: Any = None
    parts: tuple[Node, ...] = ()

    def calls(self, name: str) -> Iterator[Node]:
        """The calls of a function in this part."""
        if self.kind == "call" and self.value == name:
            yield self
        for part in self.parts:
            yield from part.calls(name)


Functions = dict[str, Callable[..., Any]]
# Those whose arguments are not all wanted.
LAZY = ("if", "and", "or")


def is_expression(value: Any) -> bool:
    """Whether a value of a template is to be computed."""
    return isinstance(value, str) and value.startswith("[") and value.endswith("]") and not value.startswith("[[")


def parse(text: str) -> Node:
    """Read an expression with its brackets.

    Raises:
        TemplateError: it is none.
    """
    tokens, place, inner = [], 0, text[1:-1].rstrip()
    while place < len(inner):
        match = _TOKEN.match(inner, place)
        if match is None:
            raise TemplateError(f"Unable to parse language expression '{text[1:-1]}': unexpected '{inner[place]}'.")
        tokens.append(match)
        place = match.end()
    node, rest = _read(tokens, text)
    if rest:
        raise TemplateError(f"Unable to parse language expression '{text[1:-1]}': expected its end.")
    return node


def parse_all(value: Any) -> Iterator[Node]:
    """All expressions in a value of a template."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from parse_all(key)
            yield from parse_all(item)
    elif isinstance(value, list):
        for item in value:
            yield from parse_all(item)
    elif is_expression(value):
        yield parse(value)


def evaluate(value: Any, functions: Functions) -> Any:
    """A value of a template with its expressions computed.

    Raises:
        TemplateError: one cannot be.
    """
    if isinstance(value, dict):
        return {str(evaluate(key, functions)): evaluate(item, functions) for key, item in value.items()}
    if isinstance(value, list):
        return [evaluate(item, functions) for item in value]
    if is_expression(value):
        return compute(parse(value), functions)
    return value[1:] if isinstance(value, str) and value.startswith("[[") else value


def compute(node: Node, functions: Functions) -> Any:
    """The value of an expression.

    Raises:
        TemplateError: it has none.
    """
    if node.kind == "value":
        return node.value
    if node.kind == "member":
        return _member(compute(node.parts[0], functions), compute(node.parts[1], functions))
    function = functions.get(node.value)
    if function is None:
        raise TemplateError(f"The template function '{node.value}' is not valid.")
    if node.value in LAZY:
        return function(*(lambda part=part: compute(part, functions) for part in node.parts))
    arguments = [compute(part, functions) for part in node.parts]
    try:
        return function(*arguments)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise TemplateError(f"The arguments of the template function '{node.value}' are not valid: {error}.") from error


def _member(owner: Any, name: Any) -> Any:
    if isinstance(owner, dict):
        for key, value in owner.items():
            if key.lower() == str(name).lower():
                return value
        raise TemplateError(
            f"The language expression property '{name}' doesn't exist, available properties are '{', '.join(owner)}'."
        )
    if isinstance(owner, list) and isinstance(name, int) and 0 <= name < len(owner):
        return owner[name]
    raise TemplateError(f"The language expression property '{name}' can't be evaluated: its owner has no such thing.")


def _read(tokens: list[re.Match[str]], text: str) -> tuple[Node, list[re.Match[str]]]:
    """One part from the front of the tokens, and what is left of them."""
    if not tokens:
        raise TemplateError(f"Unable to parse language expression '{text[1:-1]}': it ends too early.")
    first, rest = tokens[0], tokens[1:]
    if first[1] is not None:
        node = Node("value", first[1][1:-1].replace("''", "'"))
    elif first[2] is not None:
        node = Node("value", int(first[2]))
    elif first[3] is not None and rest and rest[0][4] == "(":
        arguments, rest = _arguments(rest[1:], text)
        node = Node("call", first[3].lower(), tuple(arguments))
    else:
        raise TemplateError(f"Unable to parse language expression '{text[1:-1]}': unexpected '{first[0].strip()}'.")
    while rest and rest[0][4] in (".", "["):
        if rest[0][4] == "." and len(rest) > 1 and rest[1][3] is not None:
            node, rest = Node("member", parts=(node, Node("value", rest[1][3]))), rest[2:]
        else:
            index, rest = _read(rest[1:], text)
            if not rest or rest[0][4] != "]":
                raise TemplateError(f"Unable to parse language expression '{text[1:-1]}': expected ']'.")
            node, rest = Node("member", parts=(node, index)), rest[1:]
    return node, rest


def _arguments(tokens: list[re.Match[str]], text: str) -> tuple[list[Node], list[re.Match[str]]]:
    found: list[Node] = []
    while tokens and tokens[0][4] != ")":
        node, tokens = _read(tokens, text)
        found.append(node)
        if tokens and tokens[0][4] == ",":
            tokens = tokens[1:]
        elif tokens and tokens[0][4] != ")":
            break
    if not tokens or tokens[0][4] != ")":
        raise TemplateError(f"Unable to parse language expression '{text[1:-1]}': expected ')'.")
    return found, tokens[1:]
