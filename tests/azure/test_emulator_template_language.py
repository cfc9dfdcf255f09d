"""The language of templates, without an emulator: what expressions give, what is refused, in which order all comes."""

from __future__ import annotations

from typing import Any

import pytest

from tests.azure.foundation_template import template
from tests.azure_emulator.expressions import TemplateError
from tests.azure_emulator.templates import Place, Template
from tests.azure_emulator.what_if import differences

_S = "/subscriptions/s"
_G = f"{_S}/resourceGroups/g"
_PLACE = Place({"id": _S, "tenantId": "t"}, {"id": _G, "location": "westeurope", "tags": {"a": "b"}}, "phiflow")
_VALUES = {
    "[parameters('Text')]": "it's",
    "[concat(parameters('text'), '-', 1)]": "it's-1",
    "[concat(createArray(1), createArray(2))]": [1, 2],
    "[[not an expression]": "[not an expression]",
    "[variables('deep').list[1].name]": "second",
    "[variables('deep')['list'][0].name]": "first",
    "[format('{0}/{1}', 'a', true())]": "a/true",
    "[toLower('ABC')]": "abc",
    "[if(equals(1, 2), variables('none'), 'lazy')]": "lazy",
    "[and(true(), not(false()))]": True,
    "[or(false(), contains(createArray('x'), 'x'))]": True,
    "[empty('')]": True,
    "[union(createObject('a', 1), createObject('b', 2))]": {"a": 1, "b": 2},
    "[resourceGroup().location]": "westeurope",
    "[resourceGroup().tags.A]": "b",
    "[subscription().tenantId]": "t",
    "[resourceId('A.B/c', 'd')]": f"{_G}/providers/A.B/c/d",
    "[resourceId('A.B/c/e', 'd', 'f')]": f"{_G}/providers/A.B/c/d/e/f",
    "[resourceId('other', 'A.B/c', 'd')]": f"{_S}/resourceGroups/other/providers/A.B/c/d",
    "[subscriptionResourceId('A.B/c', 'd')]": f"{_S}/providers/A.B/c/d",
    "[extensionResourceId(resourceId('A.B/c', 'd'), 'E.F/g', 'h')]": f"{_G}/providers/A.B/c/d/providers/E.F/g/h",
}
_REFUSED = {
    "[concat('a']": "expected '\\)'",
    "[concat('a') 'b']": "expected its end",
    "[nothing()]": "'nothing' is not valid",
    "[parameters('absent')]": "'absent' is not found",
    "[variables('absent')]": "'absent' is not found",
    "[variables('deep').absent]": "property 'absent' doesn't exist",
    "[resourceId('A.B/c')]": "has not as many names",
    "[toLower(1)]": "arguments of the template function 'tolower'",
    "[reference('x')]": "'reference' is not expected",
}


@pytest.mark.parametrize("text", _VALUES)
def test_an_expression_gives_what_it_says(text: str) -> None:
    """Each function, in the case that people write it, with what it gives."""
    assert _evaluated(text) == _VALUES[text]


@pytest.mark.parametrize("text", _REFUSED)
def test_an_expression_that_cannot_be_computed_is_refused(text: str) -> None:
    """With the reason, and never by a guess."""
    with pytest.raises(TemplateError, match=_REFUSED[text]):
        _evaluated(text)


def test_resources_come_behind_what_they_need_and_else_in_the_worst_order() -> None:
    """What a template does not say, it does not get: without a dependency the last resource is made first."""
    first, second, third = (_resource(name) for name in ("first", "second", "third"))
    third |= {"dependsOn": ["second", "[resourceId('A.B/c', 'first')]"], "properties": {}}
    order = Template(template(first, second, third), {}, _PLACE).order
    assert [one.name for one in order] == ["second", "first", "third"]


def test_what_is_referred_to_comes_first() -> None:
    """A reference is a dependency, with or without dependsOn."""
    first = {**_resource("first"), "properties": {"id": "[reference(resourceId('A.B/c', 'second'), '1').id]"}}
    order = Template(template(first, _resource("second")), {}, _PLACE).order
    assert [one.name for one in order] == ["second", "first"]


def test_a_condition_leaves_a_resource_out_and_what_waits_for_it_in() -> None:
    """As Resource Manager has it: a dependency that is not wanted is none."""
    first = {**_resource("first"), "condition": "[equals(1, 2)]"}
    second = {**_resource("second"), "dependsOn": ["first"]}
    assert [one.name for one in Template(template(first, second), {}, _PLACE).order] == ["second"]


def test_secrets_are_not_shown() -> None:
    """A deployment tells its parameters, without those that are secure."""
    declared = {"open": {"type": "string"}, "closed": {"type": "securestring"}}
    given = {"open": {"value": "a"}, "closed": {"value": "b"}}
    shown = Template(template(parameters=declared), given, _PLACE).shown_parameters
    assert shown == {"open": {"type": "String", "value": "a"}, "closed": {"type": "SecureString"}}


@pytest.mark.parametrize(
    ("before", "after", "paths"),
    [
        ({"a": 1, "b": 2}, {"a": 1}, []),
        ({"a": "X"}, {"a": "x"}, []),
        ({"location": "westeurope"}, {"location": "West Europe"}, []),
        ({"a": 1}, {"a": None, "b": {}}, []),
        ({"a": {"b": 1}}, {"a": {"b": 2, "c": 3}}, ["p.a.b", "p.a.c"]),
        ({"a": [1, 2]}, {"a": [1]}, ["p.a"]),
        ({"a": [{"b": 1, "c": 2}]}, {"a": [{"b": 1}]}, []),
    ],
)
def test_what_if_compares_what_is_wanted(before: Any, after: Any, paths: list[str]) -> None:
    """What the template does not name is no difference, nor is a case or a blank that providers do not keep."""
    assert [one["path"] for one in differences("p", before, after)] == paths


def _evaluated(text: str) -> Any:
    declared = {"text": {"type": "string", "defaultValue": "it's"}}
    variables = {"deep": {"list": [{"name": "first"}, {"name": "second"}]}}
    made = template(
        {**_resource("x"), "properties": {"value": text}}, parameters=declared, variables=variables, outputs={}
    )
    whole = Template(made, {}, _PLACE)

    def reference(*_: Any) -> Any:
        raise TemplateError("The template function 'reference' is not expected here.")

    return whole.body(whole.resources[0], reference)["properties"]["value"]


def _resource(name: str) -> dict[str, Any]:
    return {"type": "A.B/c", "apiVersion": "1", "name": name}
