"""ARM templates: their parameters checked, their expressions computed, their resources put in order.

Not all of the language: loops, nested templates and the functions that `template_functions.py` and `Template` lack are
refused, as Resource Manager refuses what it does not know.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.azure_emulator.expressions import Functions, TemplateError, compute, evaluate, parse_all
from tests.azure_emulator.resource_ids import resource_id
from tests.azure_emulator.template_functions import FUNCTIONS

Reference = Callable[[str, str, bool], Any]
_SECTIONS = frozenset({"$schema", "contentVersion", "apiProfile", "parameters", "variables", "resources", "outputs"})
_MEMBERS = frozenset(
    {
        *("type", "apiVersion", "name", "scope", "location", "tags", "kind", "sku", "identity", "properties"),
        *("dependsOn", "condition", "comments", "zones"),
    }
)
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "securestring": (str,),
    "int": (int,),
    "bool": (bool,),
    "object": (dict,),
    "secureobject": (dict,),
    "array": (list,),
}
_SHOWN = {"string": "String", "securestring": "SecureString", "int": "Int", "bool": "Bool", "object": "Object"}
_SHOWN |= {"secureobject": "SecureObject", "array": "Array"}


@dataclass
class TemplateResource:
    """A resource of a template.

    Attributes:
        raw: as it is in the template; what is in it is computed when it is deployed.
        depends_on: the ids of those that must be there before it.
        wanted: whether its condition holds.
    """

    id: str
    type: str
    name: str
    version: str
    raw: dict[str, Any]
    wanted: bool = True
    depends_on: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Place:
    """Where a template is deployed: what `subscription()`, `resourceGroup()` and `deployment()` give."""

    subscription: dict[str, Any]
    group: dict[str, Any]
    deployment: str


class Template:
    """A template with the values of its parameters.

    Raises:
        TemplateError: Resource Manager does not take it.
    """

    def __init__(self, template: dict[str, Any], given: dict[str, Any], place: Place) -> None:
        if not isinstance(template, dict) or not isinstance(template.get("resources"), list):
            raise TemplateError("The template has no list of resources.")
        for name in ("$schema", "contentVersion"):
            if not template.get(name):
                raise TemplateError(f"The template's '{name}' is missing.")
        if unknown := sorted(template.keys() - _SECTIONS - {"metadata"}):
            raise TemplateError(f"Could not find member '{unknown[0]}' on object of type 'Template'.")
        self._template, self._place = template, place
        self._functions = {**FUNCTIONS, **self._of_place(), "reference": _no_reference}
        self.parameters = self._parameters(given)
        self._functions["parameters"] = self._parameter
        self._functions["variables"] = self._variable
        self.resources = [self._resource(one) for one in template["resources"]]
        self._connect()
        self.order = _ordered(self.resources)

    @property
    def shown_parameters(self) -> dict[str, Any]:
        """The parameters as a deployment shows them: without secrets."""
        declared = self._template.get("parameters") or {}
        shown: dict[str, Any] = {}
        for name, value in self.parameters.items():
            kind = str(declared[name]["type"]).lower()
            shown[name] = {"type": _SHOWN[kind]} | ({} if kind.startswith("secure") else {"value": value})
        return shown

    @property
    def deployment(self) -> str:
        """The name of the deployment."""
        return self._place.deployment

    def location(self, resource: TemplateResource) -> str | None:
        """Where a resource is, unless that is known only later."""
        try:
            found = evaluate(resource.raw.get("location"), self._functions)
        except TemplateError:
            return None
        return None if found is None else str(found)

    def body(self, resource: TemplateResource, reference: Reference) -> dict[str, Any]:
        """What is sent to the resource's provider."""
        names = ("location", "tags", "kind", "sku", "identity", "properties", "zones")
        raw = {name: resource.raw[name] for name in names if name in resource.raw}
        result: dict[str, Any] = evaluate(raw, self._with(reference))
        return result

    def outputs(self, reference: Reference) -> dict[str, Any]:
        """The outputs as a deployment shows them."""
        found: dict[str, Any] = {}
        functions = self._with(reference)
        for name, declared in (self._template.get("outputs") or {}).items():
            if evaluate(declared.get("condition", True), functions):
                kind = str(declared.get("type", "")).lower()
                if kind not in _TYPES:
                    raise TemplateError(f"The type '{declared.get('type')}' of the output '{name}' is not valid.")
                found[name] = {"type": _SHOWN[kind], "value": evaluate(declared.get("value"), functions)}
        return found

    def _with(self, reference: Reference) -> Functions:
        def look_up(given: str, version: str = "", full: str = "") -> Any:
            return reference(self._reference_id(given), version, full.lower() == "full")

        return {**self._functions, "reference": look_up}

    def _parameters(self, given: dict[str, Any]) -> dict[str, Any]:
        declared = self._template.get("parameters") or {}
        supplied = {name.lower(): value for name, value in given.items()}
        if unknown := [name for name in given if name.lower() not in map(str.lower, declared)]:
            raise TemplateError(
                f"The template parameters '{', '.join(unknown)}' in the parameters file are not valid; they are not "
                "present in the original template and can therefore not be provided at deployment time. The only "
                f"supported parameters for this template are '{', '.join(declared)}'. Please see "
                "https://aka.ms/arm-pass-parameter-values for usage details."
            )
        values: dict[str, Any] = {}
        for name, about in declared.items():
            if name.lower() in supplied:
                holder = supplied[name.lower()]
                if not isinstance(holder, dict) or "value" not in holder:
                    raise TemplateError(f"The parameter '{name}' has no value: expected {{\"value\": ...}}.")
                values[name] = holder["value"]
            elif "defaultValue" in about:
                values[name] = evaluate(about["defaultValue"], {**self._functions, "parameters": values.__getitem__})
            else:
                raise TemplateError(
                    f"The value for the template parameter '{name}' at line '1' and column '1' is not provided. Please "
                    "see https://aka.ms/arm-create-parameter-file for usage details."
                )
            _require_value(name, values[name], about)
        return values

    def _parameter(self, name: str) -> Any:
        known = _spelled(name, self.parameters)
        if known is None:
            raise TemplateError(
                f"The template parameter '{name}' is not found. Please see "
                "https://aka.ms/arm-syntax-parameters for usage details."
            )
        return self.parameters[known]

    def _variable(self, name: str) -> Any:
        variables = self._template.get("variables") or {}
        known = _spelled(name, variables)
        if known is None:
            raise TemplateError(
                f"The template variable '{name}' is not found. Please see "
                "https://aka.ms/arm-syntax-variables for usage details."
            )
        return evaluate(variables[known], self._functions)

    def _of_place(self) -> Functions:
        subscription, group = self._place.subscription["id"], self._place.group["id"]

        def in_group(*parts: str) -> str:
            at = next(number for number, part in enumerate(parts) if "/" in part)
            scope = group
            if at == 1:
                scope = f"{subscription}/resourceGroups/{parts[0]}"
            elif at == 2:
                scope = f"/subscriptions/{parts[0]}/resourceGroups/{parts[1]}"
            return _joined(scope, parts[at], parts[at + 1 :])

        return {
            "resourceid": in_group,
            "subscriptionresourceid": lambda kind, *names: _joined(subscription, kind, names),
            "extensionresourceid": lambda scope, kind, *names: _joined(scope, kind, names),
            "resourcegroup": lambda: self._place.group,
            "subscription": lambda: self._place.subscription,
            "tenant": lambda: {"tenantId": self._place.subscription["tenantId"]},
            "deployment": lambda: {"name": self._place.deployment},
        }

    def _resource(self, raw: dict[str, Any]) -> TemplateResource:
        if unknown := sorted(raw.keys() - _MEMBERS):
            raise TemplateError(f"The member '{unknown[0]}' of a template resource is not valid here.")
        for name in ("type", "apiVersion", "name"):
            if not raw.get(name):
                raise TemplateError(f"The template resource '{raw.get('name', '')}' has no '{name}'.")
        name, kind = str(evaluate(raw["name"], self._functions)), str(raw["type"])
        if kind.count("/") != name.count("/") + 1:
            raise TemplateError(
                f"The template resource '{name}' for type '{kind}' at line '1' and column '1' has incorrect segment "
                "lengths. A nested resource type must have identical number of segments as its resource name. A root "
                "resource type must have segment length one greater than its resource name. Please see "
                "https://aka.ms/arm-syntax-resources for usage details."
            )
        wanted = evaluate(raw.get("condition", True), self._functions)
        if not isinstance(wanted, bool):
            raise TemplateError(f"The condition of the template resource '{name}' is not a boolean.")
        made = resource_id(self._scope(raw.get("scope")), kind, tuple(name.split("/")))
        return TemplateResource(made, kind, name, str(raw["apiVersion"]), raw, wanted)

    def _scope(self, raw: Any) -> str:
        """The scope of an extension; one without is made on the group."""
        group = str(self._place.group["id"])
        if raw is None:
            return group
        scope = str(evaluate(raw, self._functions))
        if scope.startswith("/"):
            return scope.rstrip("/")
        namespace, kind, *rest = scope.split("/")
        return f"{group}/providers/{namespace}/{kind}/{'/'.join(rest)}"

    def _connect(self) -> None:
        """Find what each resource depends on: named in dependsOn, or referred to."""
        by_id = {one.id.lower(): one for one in self.resources}
        if len(by_id) < len(self.resources):
            raise TemplateError("The template defines a resource more than once.")
        for one in self.resources:
            for raw in one.raw.get("dependsOn") or []:
                given = str(evaluate(raw, self._functions))
                found = self._named(given)
                if found is None:
                    raise TemplateError(
                        f"The resource '{given}' is not defined in the template. Please see "
                        "https://aka.ms/arm-syntax for usage details."
                    )
                one.depends_on.append(found.id)
            for call in (call for node in parse_all(one.raw.get("properties")) for call in node.calls("reference")):
                given = str(compute(call.parts[0], self._functions))
                if (found := self._named(given)) and found is not one and found.wanted:
                    one.depends_on.append(found.id)

    def _named(self, given: str) -> TemplateResource | None:
        """A resource of the template by its id or, when only one has it, by its name."""
        lower = given.lower()
        for one in self.resources:
            short = one.id.lower().partition("/providers/")[2]
            if lower in (one.id.lower(), short):
                return one
        same = [one for one in self.resources if one.name.lower() == lower]
        return same[0] if len(same) == 1 else None

    def _reference_id(self, given: str) -> str:
        if given.startswith("/"):
            return given
        found = self._named(given)
        if found is None:
            raise TemplateError(f"The resource '{given}' is not defined in the template.")
        return found.id


def _spelled(name: str, known: dict[str, Any]) -> str | None:
    """A name as it is declared; their case does not matter."""
    return next((one for one in known if one.lower() == name.lower()), None)


def _no_reference(*_: Any) -> Any:
    raise TemplateError("The template function 'reference' is not expected at this location.")


def _joined(scope: str, kind: str, names: tuple[str, ...]) -> str:
    if kind.count("/") != len(names):
        raise TemplateError(f"Unable to evaluate the function 'resourceId': '{kind}' has not as many names.")
    return resource_id(scope, kind, tuple(str(name) for name in names))


def _require_value(name: str, value: Any, about: dict[str, Any]) -> None:
    kind = str(about.get("type", "")).lower()
    if kind not in _TYPES:
        raise TemplateError(f"The type '{about.get('type')}' of the template parameter '{name}' is not valid.")
    wrong = not isinstance(value, _TYPES[kind]) or (kind == "int" and isinstance(value, bool))
    if wrong:
        raise TemplateError(
            f"Template parameter JToken type is not valid. Expected '{_SHOWN[kind]}'. Actual "
            f"'{type(value).__name__}'. Please see https://aka.ms/arm-create-parameter-file for usage details. "
            f"The parameter is '{name}'."
        )
    prefix = f"The provided value for the template parameter '{name}' is not valid."
    if "allowedValues" in about:
        given = value if kind == "array" else [value]
        if not all(one in about["allowedValues"] for one in given) and value not in about["allowedValues"]:
            allowed = ",".join(str(one) for one in about["allowedValues"])
            raise TemplateError(f"{prefix} The value '{value}' is not part of the allowed value(s): '{allowed}'.")
    size = value if kind == "int" else len(value) if kind in ("string", "securestring", "array") else None
    what, low, high = ("The value", "minValue", "maxValue") if kind == "int" else ("Length", "minLength", "maxLength")
    if size is not None and size < about.get(low, size):
        raise TemplateError(f"{prefix} {what} should be greater than or equal to '{about[low]}'.")
    if size is not None and size > about.get(high, size):
        raise TemplateError(f"{prefix} {what} should be less than or equal to '{about[high]}'.")


def _ordered(resources: list[TemplateResource]) -> list[TemplateResource]:
    """What is wanted, each behind what it depends on.

    Among those that could come next, the last of the template does: Resource Manager begins them all at once, so a
    template that needs another order must say so.
    """
    waiting, done, order = [one for one in resources if one.wanted], set[str](), []
    known = {one.id.lower() for one in waiting}
    while waiting:
        ready = [one for one in waiting if {it.lower() for it in one.depends_on} & known <= done]
        if not ready:
            raise TemplateError(
                f"Circular dependency detected on resource: '{waiting[0].id}'. Please see "
                "https://aka.ms/arm-syntax-resources for usage details."
            )
        order.append(ready[-1])
        waiting.remove(ready[-1])
        done.add(ready[-1].id.lower())
    return order
