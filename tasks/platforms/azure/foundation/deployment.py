"""Deploys the template under a fixed name, adopts a deployment that runs already, follows it by resource."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.foundation.names import last_name
from tasks.platforms.azure.foundation.template import load_template
from tasks.platforms.azure.foundation.what_if import kind_of
from tasks.platforms.azure.secrets import clean
from tasks.platforms.azure.translate import error_of_answer, translated
from tasks.platforms.errors import ConflictError, NotFoundError, PhiflowError

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

_log = logging.getLogger(__name__)
_ENDED = ("Succeeded", "Failed", "Canceled")
_FIRST_PAUSE_SECONDS = 0.5
# What to do about a resource that was refused, by the service's code or words; the first that fits.
_FIXES = (
    (
        r"MissingSubscriptionRegistration|SubscriptionNotRegistered",
        "Register the provider that it names: az provider register --wait --namespace NAME",
    ),
    (
        r"deleted state|soft.?delete|VaultAlreadyExists",
        "Purge the deleted vault: az keyvault purge --name {name}",
    ),
    (
        r"PrincipalNotFound",
        "Check platform.resources.engineer: az ad signed-in-user show --query id. Of an identity just made, try again.",
    ),
    (
        r"RoleAssignmentExists",
        "Somebody gave this role at the same moment; run the same command again.",
    ),
    (
        r"AuthorizationFailed|LinkedAuthorizationFailed",
        "Let somebody run this part who may: phiflow up --help says which rights it needs.",
    ),
    (
        r"RequestDisallowedByPolicy",
        "A policy of the subscription forbids it: name an existing one in platform.resources, or ask its owner.",
    ),
)
_AGAIN = "Mend it and run the same command again; what was made stays and is used."


class TemplateDeployments:
    """Deployments in one resource group."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._group = workspace.config.resource_group
        self._client = _open(workspace)

    def what_if(self, name: str, parameters: dict[str, Any]) -> Any:
        """What deploying would change, as the SDK's WhatIfOperationResult; changes nothing."""
        settings = {"whatIfSettings": {"resultFormat": "FullResourcePayloads"}}
        what = f"The change set of resource group {self._group}"
        with translated(what):
            poller = self._client.deployments.begin_what_if(
                self._group, name, {"properties": {**_properties(parameters), **settings}}
            )
            result = poller.result()
        if result.error is not None:
            raise _refused(what, 400, result.error, "")
        return result

    def is_active(self, name: str) -> bool:
        """Whether a deployment of this name runs, begun by an earlier command or by somebody else."""
        state = self._state(name)
        return bool(state) and state not in _ENDED

    def begin(self, name: str, parameters: dict[str, Any]) -> None:
        """Begin the deployment, unless one of this name runs."""
        try:
            with translated(f"Deployment {name}"):
                self._client.deployments.begin_create_or_update(
                    self._group, name, {"properties": _properties(parameters)}, polling=False
                )
        except ConflictError as error:
            if "DeploymentActive" not in str(error):
                raise
        _log.info("Began deployment name=%s group=%s", name, self._group)

    def follow(self, name: str, called: Mapping[str, str] | None = None) -> Iterator[str]:
        """Wait for the deployment to end; yields the id of each resource when it is done.

        Args:
            called: what people call the resources, by their ids in lower case.
        Raises:
            PhiflowError: a resource was refused or failed; names it, with the service's inner reason.
        """
        done: set[str] = set()
        for pause in self._pauses():
            state = self._state(name)  # before the operations, so that none of them is missed at the end
            operations = self._operations(name)
            for operation in operations:
                resource_id = str(operation.target_resource.id)
                if operation.provisioning_state == "Succeeded" and resource_id not in done:
                    done.add(resource_id)
                    _log.info("Deployed kind=%s name=%s", kind_of(resource_id), last_name(resource_id))
                    yield resource_id
            if state in _ENDED:
                break
            time.sleep(pause)
        if state != "Succeeded":
            raise self._failure(name, state, operations, called or {})

    def _state(self, name: str) -> str:
        """Its provisioning state; empty: there is none."""
        try:
            with translated(f"Deployment {name}"):
                state = self._client.deployments.get(self._group, name).properties.provisioning_state
        except NotFoundError:
            return ""
        return str(getattr(state, "value", state))

    def _operations(self, name: str) -> list[Any]:
        with translated(f"Deployment {name}"):
            listed = [one.properties for one in self._client.deployment_operations.list(self._group, name)]
        made = [one for one in listed if one.target_resource is not None and one.provisioning_operation == "Create"]
        return sorted(made, key=lambda one: str(one.timestamp))

    def _failure(self, name: str, state: str, operations: list[Any], called: Mapping[str, str]) -> PhiflowError:
        for operation in operations:
            if operation.provisioning_state == "Failed" and operation.status_message is not None:
                resource_id = str(operation.target_resource.id)
                what = called.get(resource_id.lower()) or f"{kind_of(resource_id)} {last_name(resource_id)}"
                error = operation.status_message.error
                if error is not None:
                    return _refused(
                        what[0].upper() + what[1:], _status(operation.status_code), error, last_name(resource_id)
                    )
        if state == "Canceled":
            return PhiflowError(f"Deployment {name} was cancelled.", fix=_AGAIN)
        with translated(f"Deployment {name}"):
            error = self._client.deployments.get(self._group, name).properties.error
        if error is not None:
            return _refused(f"Deployment {name}", 400, error, "")
        return PhiflowError(f"Deployment {name} ended as {state or 'nothing: it was deleted'}.", fix=_AGAIN)

    def _pauses(self) -> Iterator[float]:
        pause, longest = _FIRST_PAUSE_SECONDS, self._workspace.config.poll_seconds
        while True:
            yield min(pause, longest)
            pause *= 1.5


def _open(workspace: Workspace) -> Any:
    from azure.mgmt.resource.deployments import DeploymentsMgmtClient

    manager = workspace.resource_manager
    return DeploymentsMgmtClient(
        workspace.credential,
        workspace.config.subscription_id,
        base_url=manager,
        credential_scopes=[f"{manager}/.default"],
        polling_interval=min(workspace.config.poll_seconds, 5),
    )


def _properties(parameters: dict[str, Any]) -> dict[str, Any]:
    return {"mode": "Incremental", "template": load_template(), "parameters": parameters}


def _refused(what: str, status: int, error: Any, name: str) -> PhiflowError:
    """Our error for what the service said of a resource: the innermost reason, since the outer ones are the same."""
    while error.details:
        error = error.details[0]
    code, message = str(error.code or ""), clean(str(error.message or ""))
    raised = error_of_answer(status, code, " ".join(message.split()), what)
    fix = next((fix for pattern, fix in _FIXES if re.search(pattern, f"{code} {message}", re.IGNORECASE)), "")
    raised.fix = fix.format(name=name) if fix else f"{raised.fix} {_AGAIN}".strip()
    return raised


def _status(told: str | None) -> int:
    """The HTTP status that an operation tells by its name, as in BadRequest."""
    text = str(told or "")
    if text.isdigit():
        return int(text)
    names = {status.name.replace("_", "").lower(): status.value for status in HTTPStatus}
    return names.get(text.lower(), 400)
