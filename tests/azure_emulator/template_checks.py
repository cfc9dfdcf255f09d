"""What Resource Manager and the providers refuse of a template before anything is made."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.expressions import TemplateError
from tests.azure_emulator.names import TENANT
from tests.azure_emulator.resource_ids import ResourceId, parse_id
from tests.azure_emulator.resource_types import STORAGE, ResourceType, find_type, name_taken
from tests.azure_emulator.templates import Place, Template, TemplateResource
from tests.azure_emulator.web import Request, ServiceError, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

# Resource Manager's own findings are told as they are; those of providers are wrapped.
_OWN = ("LocationRequired", "LocationNotAvailableForResourceType", "InvalidResourceLocation", "InvalidRequestContent")


class _UnknownYetError(TemplateError):
    """A value that `reference` gives only while the template is deployed."""


def place_of(emulator: Emulator, group: dict[str, Any], deployment: str) -> Place:
    """What a template knows of where it is deployed."""
    base = emulator.scope.subscription_id
    subscription = {
        "id": base,
        "subscriptionId": emulator.scope.subscription,
        "tenantId": TENANT,
        "displayName": "Emulated",
    }
    return Place(subscription, group, deployment)


def prepared(emulator: Emulator, request: Request, group: dict[str, Any]) -> Template:
    """The template of a request, checked.

    Raises:
        ServiceError: what Resource Manager answers.
    """
    properties = request.json.get("properties") or {}
    if str(properties.get("mode", "")).lower() != "incremental":
        message = f"The deployment's mode is '{properties.get('mode')}': the emulator deploys incrementally only."
        raise arm_error(400, "InvalidDeploymentMode", message)
    if not isinstance(properties.get("template"), dict):
        raise arm_error(400, "InvalidRequestContent", "The deployment has no template in its properties.")
    try:
        parameters = properties.get("parameters") or {}
        template = Template(
            properties["template"], parameters, place_of(emulator, group, request.parameters.get("name", ""))
        )
    except TemplateError as error:
        raise arm_error(400, "InvalidTemplate", f"Deployment template validation failed: '{error}'.") from error
    kinds = [(one, find_type(one.type, one.version)) for one in template.order]
    _require_rights(emulator, request, template)
    _require_providers(emulator, template, kinds)
    return template


def _require_rights(emulator: Emulator, request: Request, template: Template) -> None:
    """Whatever guards say of the resources."""
    refused = []
    for one in template.order:
        body = json.dumps(_known_body(template, one) or {}).encode()
        asked = Request("PUT", one.id, {"api-version": one.version}, request.headers, body, route="template")
        try:
            emulator.judge(asked)
        except ServiceError as error:
            if error.code != "AuthorizationFailed":
                raise
            refused.append(f"Authorization failed for template resource '{one.name}' of type '{one.type}'. {error}")
    if refused:
        how = (
            "The template deployment failed with error"
            if len(refused) == 1
            else "Deployment failed with multiple errors"
        )
        raise arm_error(400, "InvalidTemplateDeployment", f"{how}: '{':'.join(refused)}'.")


def _require_providers(
    emulator: Emulator, template: Template, kinds: list[tuple[TemplateResource, ResourceType]]
) -> None:
    found: list[dict[str, Any]] = []
    for one, kind in kinds:
        body = _known_body(template, one)
        target = parse_id(one.id)
        if body is None or target is None:
            continue
        try:
            _require_provider(emulator, target, kind, body)
        except ServiceError as error:
            if error.code in _OWN:
                raise
            found.append({"code": error.code, "target": one.name, "message": str(error)})
    if found:
        message = "Preflight validation failed. Please refer to the details for the specific errors."
        inner = {"code": "PreflightValidationCheckFailed", "message": message, "details": found}
        raise arm_error(
            400,
            "InvalidTemplateDeployment",
            f"The template deployment '{template.deployment}' is not valid according to the validation procedure. The "
            f"tracking id is '{uuid.uuid4()}'. See inner errors for details.",
            [inner],
        )


def _require_provider(emulator: Emulator, target: ResourceId, kind: ResourceType, body: dict[str, Any]) -> None:
    emulator.foundation.require_shape(target, kind, body)
    known = emulator.foundation.exists(str(target))
    if kind.name == STORAGE and not known and emulator.foundation.is_taken(kind, target.name):
        raise name_taken(kind, target.name)


def _known_body(template: Template, one: TemplateResource) -> dict[str, Any] | None:
    """What would be sent, unless that is known only later."""

    def unknown(*_: Any) -> Any:
        raise _UnknownYetError

    try:
        return template.body(one, unknown)
    except _UnknownYetError:
        return None
    except TemplateError as error:
        message = (
            f"Unable to process template language expressions for resource '{one.id}' at line '1' and column '1'. "
            f"'{error}'"
        )
        raise arm_error(400, "InvalidTemplate", message) from error
