"""One deployment of a template: its resources made one by one, by the requests that a client would make."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import uuid
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.expressions import TemplateError
from tests.azure_emulator.resource_ids import parse_id
from tests.azure_emulator.resource_types import TYPES, resource_not_found
from tests.azure_emulator.templates import Template, TemplateResource
from tests.azure_emulator.web import ServiceError, arm_error, now

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_log = logging.getLogger(__name__)
_STEP_SECONDS = 0.02
_POLL_SECONDS = 0.02
_LONGEST_SECONDS = 120.0
_STATUS = {200: "OK", 201: "Created", 202: "Accepted", 400: "BadRequest", 403: "Forbidden", 404: "NotFound"}
_STATUS |= {405: "MethodNotAllowed", 409: "Conflict", 429: "TooManyRequests", 500: "InternalServerError"}
_ENDED = ("Succeeded", "Failed", "Canceled")


class _StoppedError(Exception):
    """The deployment was cancelled or forgotten, or the emulator ends."""


class TemplateRun:
    """Carries out one deployment, and writes into its record how it does.

    Args:
        record_id: where the record is in the store.
        closed: set when the emulator ends.
    """

    def __init__(self, emulator: Emulator, record_id: str, template: Template, closed: threading.Event) -> None:
        self._emulator = emulator
        self._store = emulator.store
        self._record_id = record_id
        self._template = template
        self._closed = closed

    def carry_out(self) -> None:
        """Make the resources that are not made yet; returns when the deployment has ended."""
        try:
            self._update({"state": "Running"})
            for resource in self._template.order:
                if not self._make(resource):
                    return
            outputs = self._template.outputs(self._reference)
            self._update_operation("", {"state": "Succeeded", "ended": now(), "status": "OK"})
            self._update({"state": "Succeeded", "ended": now(), "outputs": outputs or None})
        except _StoppedError:
            return
        except (TemplateError, ServiceError) as error:  # of the outputs
            self._fail({"code": "DeploymentOutputEvaluationFailed", "message": str(error)})

    def _make(self, resource: TemplateResource) -> bool:
        """Make one; False when that ended the deployment."""
        if self._operation(resource.id).get("state") == "Succeeded":
            return True
        self._update_operation(resource.id, {"state": "Running"})
        try:
            status = self._send(resource)
        except TemplateError as error:
            return self._refused(resource, 400, {"code": "InvalidTemplate", "message": str(error)})
        except ServiceError as error:
            body = error.answer(self._emulator.scope.location).body
            assert isinstance(body, dict)
            return self._refused(resource, error.status, body["error"])
        except (_StoppedError, AssertionError):
            raise
        except Exception as error:  # a thread has nobody to raise to, and whoever polls must learn of it
            _log.exception("A resource of a template was not made id=%s", resource.id)
            return self._refused(resource, 500, {"code": "InternalServerError", "message": f"{error}"})
        if failure := self._ended(resource):
            return self._refused(resource, 409, failure)
        done = {"state": "Succeeded", "ended": now(), "status": "OK" if status == 202 else _STATUS.get(status, "OK")}
        self._update_operation(resource.id, done)
        return True

    def _send(self, resource: TemplateResource) -> int:
        scenario = self._emulator.scenarios.take("template-resource", f"{resource.type}/{resource.name}") or {}
        match scenario.get("do"):
            case "stuck":
                self._wait(float("inf"))
            case "slow":
                self._wait(float(scenario.get("seconds", 1)))
            case "fail" if not scenario.get("made"):
                raise _scripted(scenario)
        self._wait(_STEP_SECONDS)
        body = self._template.body(resource, self._reference)
        self._emulator.providers.ensure_registered(resource.type.partition("/")[0])
        answer = self._emulator.call("PUT", resource.id, resource.version, body)
        if scenario.get("do") == "fail":
            raise _scripted(scenario)
        return answer.status

    def _ended(self, resource: TemplateResource) -> dict[str, Any] | None:
        """Wait until a resource is made; the error when that failed."""
        deadline = time.monotonic() + _LONGEST_SECONDS
        while time.monotonic() < deadline:
            found = self._emulator.call("GET", resource.id, resource.version).body
            properties = (found.get("properties") or {}) if isinstance(found, dict) else {}
            state = properties.get("provisioningState", "Succeeded")
            if state == "Succeeded":
                return None
            if state in _ENDED:
                errors = properties.get("provisioningErrors") or []
                details = [one.get("error", one) for one in errors]
                message = (
                    "The resource write operation failed to complete successfully, because it reached terminal "
                    f"provisioning state '{state}'."
                )
                failure = {"code": "ResourceDeploymentFailure", "target": resource.id, "message": message}
                return {**failure, "details": details} if details else failure
            self._wait(_POLL_SECONDS)
        return {"code": "ResourceDeploymentFailure", "target": resource.id, "message": "It took too long."}

    def _reference(self, resource_id: str, version: str, full: bool) -> Any:
        parsed = parse_id(resource_id)
        known = TYPES.get(parsed.type.lower()) if parsed else None
        if parsed is None or known is None:
            raise resource_not_found("", resource_id, "")
        try:
            found = self._emulator.call("GET", resource_id, version or known.versions[-1]).body
        except ServiceError as error:
            raise TemplateError(str(error)) from error
        assert isinstance(found, dict)
        return found if full else found.get("properties") or {}

    def _refused(self, resource: TemplateResource, status: int, error: dict[str, Any]) -> bool:
        code = _STATUS.get(status, str(status))
        self._update_operation(resource.id, {"state": "Failed", "ended": now(), "status": code, "error": error})
        self._fail({key: error[key] for key in ("code", "message", "target", "details") if error.get(key)})
        return False

    def _fail(self, detail: dict[str, Any]) -> None:
        record = self._record()
        error = {
            "code": "DeploymentFailed",
            "target": record["id"],
            "message": (
                "At least one resource deployment operation failed. Please list deployment operations for details. "
                "Please see https://aka.ms/arm-deployment-operations for usage details."
            ),
            "details": [detail],
        }
        self._update({"state": "Failed", "ended": now(), "error": error})

    def _wait(self, seconds: float) -> None:
        """Wait, unless the deployment ends meanwhile."""
        deadline = time.monotonic() + seconds
        while True:
            self._record()
            if self._closed.wait(min(_POLL_SECONDS, max(0.0, deadline - time.monotonic()))):
                raise _StoppedError
            if time.monotonic() >= deadline:
                return

    def _record(self) -> dict[str, Any]:
        """The record, while the deployment goes on."""
        record = self._store.get(self._record_id)
        if record is None or record["state"] not in ("Accepted", "Running"):
            raise _StoppedError
        return record

    def _update(self, changes: dict[str, Any]) -> None:
        with self._store.lock:
            self._store.put(self._record_id, {**self._record(), **changes})

    def _operation(self, target: str) -> dict[str, Any]:
        return next((one for one in self._record()["operations"] if one["target"] == target), {})

    def _update_operation(self, target: str, changes: dict[str, Any]) -> None:
        with self._store.lock:
            record = self._record()
            found = next((one for one in record["operations"] if one["target"] == target), None)
            if found is None:
                name = hashlib.sha256(f"{record['id']}{target}".encode()).hexdigest()[:16].upper()
                found = {
                    "id": name if target else record["tracking"],
                    "target": target,
                    "tracking": str(uuid.uuid4()),
                    "started": now(),
                    "ended": None,
                    "status": "Accepted",
                    "error": None,
                }
                record["operations"].append(found)
            found |= changes
            self._store.put(self._record_id, record)


def duration(started: str, ended: str) -> str:
    """How long something took, as in PT1M2.7S."""
    seconds = (_moment(ended) - _moment(started)).total_seconds()
    minutes, rest = divmod(max(seconds, 0.0), 60)
    return f"PT{int(minutes)}M{rest:.7f}S" if minutes else f"PT{rest:.7f}S"


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text[:26] + "+00:00")


def _scripted(scenario: dict[str, Any]) -> ServiceError:
    message = scenario.get("message", "Scripted: the provider refuses the resource.")
    return arm_error(int(scenario.get("status", 409)), scenario.get("code", "Conflict"), message)
