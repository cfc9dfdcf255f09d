"""Deployments of templates to resource groups: begun, asked for, cancelled, validated, their changes told beforehand.

What Resource Manager refuses before it begins is in `template_checks.py`, the making of the resources in
`template_runs.py`, what-if in `what_if.py`.
"""

from __future__ import annotations

import hashlib
import json
import threading
import uuid
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.resource_ids import parse_id
from tests.azure_emulator.template_checks import place_of, prepared
from tests.azure_emulator.template_runs import TemplateRun, duration
from tests.azure_emulator.templates import Template
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error, now
from tests.azure_emulator.what_if import changes

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_FOLDER = "/_deployments"
ACTIVE = ("Accepted", "Running")
_SOON = {"retry-after-ms": "50"}
_LONGEST = timedelta(days=7)


def install(emulator: Emulator) -> None:
    """Register the routes."""
    it = emulator.template_deployments
    base = "S/resourcegroups/{group}/providers/Microsoft.Resources/deployments"
    one = f"{base}/{{name}}"
    for method, pattern, handler in (
        ("GET", base, it.list),
        ("PUT", one, it.put),
        ("GET", one, it.read),
        ("HEAD", one, it.check),
        ("DELETE", one, it.delete),
        ("POST", f"{one}/cancel", it.cancel),
        ("POST", f"{one}/validate", it.validate),
        ("POST", f"{one}/whatIf", it.what_if),
        ("GET", f"{one}/operationStatuses/{{id}}", it.status),
    ):
        emulator.register(method, pattern, handler)
    for operations in ("S/resourcegroups/{group}/deployments/{name}/operations", f"{one}/operations"):
        emulator.register("GET", operations, it.list_operations)
        emulator.register("GET", f"{operations}/{{id}}", it.read_operation)
    emulator.on_stop(it.closed.set)


class TemplateDeployments:
    """The deployments of all groups; each is one record, which its run writes to.

    Attributes:
        closed: set when the emulator ends; what runs goes on at the next start.
    """

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self._store = emulator.store
        self.closed = threading.Event()

    def put(self, request: Request) -> Answer:
        group, name = self._group(request), request.parameters["name"]
        record_id = self._record_id(group["id"], name)
        with self._store.lock:
            before = self._store.get(record_id)
            if before and before["state"] in ACTIVE:
                raise _active(before)
        template = prepared(self._emulator, request, group)
        record = self._record(request, group, template)
        with self._store.lock:
            before = self._store.get(record_id)
            if before and before["state"] in ACTIVE:
                raise _active(before)
            self._store.put(record_id, record)
        answer = _shown(record, template)
        self._begin(record_id, template)
        url = f"{self._emulator.url}{record['id']}/operationStatuses/{record['tracking']}"
        headers = {"Azure-AsyncOperation": f"{url}?api-version={request.api_version}", **_SOON}
        return Answer(200 if before else 201, answer, headers)

    def read(self, request: Request) -> Answer:
        record = self._find(request)
        return Answer(200, _shown(record, self._template(record)))

    def check(self, request: Request) -> Answer:
        record_id = self._record_id(self._group(request)["id"], request.parameters["name"])
        return Answer(204 if self._store.get(record_id) else 404)

    def list(self, request: Request) -> Answer:
        group = self._group(request)
        found = self._store.list(f"{_FOLDER}{group['id']}")
        return self._emulator.page(request, [_shown(one, self._template(one)) for one in found])

    def delete(self, request: Request) -> Answer:
        record_id = self._record_id(self._group(request)["id"], request.parameters["name"])
        record = self._store.get(record_id)
        if record is None:
            return Answer(204)
        if record["state"] in ACTIVE:
            raise _active(record)
        operations = self._emulator.operations
        operation = operations.start(request, lambda _: (self._store.delete(record_id), None)[1], family="arm")
        headers = {"Location": operations.result_url(operation, request.api_version), **_SOON}
        return Answer(202, None, headers)

    def cancel(self, request: Request) -> Answer:
        with self._store.lock:
            record = self._find(request)
            if record["state"] not in ACTIVE:
                message = f"The deployment '{record['name']}' cannot be cancelled: it is {record['state']}."
                raise arm_error(409, "DeploymentCannotBeCancelled", message)
            record |= {"state": "Canceled", "ended": now()}
            for operation in record["operations"]:
                if operation["state"] == "Running":
                    operation |= {"state": "Canceled", "ended": now()}
            self._store.put(self._record_id(record["group"], record["name"]), record)
        return Answer(204)

    def validate(self, request: Request) -> Answer:
        group = self._group(request)
        try:
            template = prepared(self._emulator, request, group)
        except ServiceError as error:
            return Answer(400, error.answer("").body)
        shown = _shown({**self._record(request, group, template), "state": "Succeeded"}, template)
        shown["properties"]["validatedResources"] = [{"id": one.id} for one in template.order]
        return Answer(200, {"properties": shown["properties"]})

    def what_if(self, request: Request) -> Answer:
        group = self._group(request)
        full = str((request.json["properties"].get("whatIfSettings") or {}).get("resultFormat", "")).lower()
        try:
            template = prepared(self._emulator, request, group)
            found = changes(self._emulator, template, group["id"], payloads=full != "resourceidonly")
            properties = {"correlationId": str(uuid.uuid4()), "changes": found}
            result: dict[str, Any] = {"status": "Succeeded", "properties": properties}
        except ServiceError as error:
            body = error.answer("").body
            result = {"status": "Failed", "error": body["error"] if isinstance(body, dict) else None}
        operations = self._emulator.operations
        operation = operations.start(request, family="arm")
        operations.finish(operation, result=result)
        headers = {"Location": operations.result_url(operation, request.api_version), **_SOON}
        return Answer(202, None, headers)

    def status(self, request: Request) -> Answer:
        record = self._find(request)
        if request.parameters["id"] != record["tracking"]:
            raise arm_error(404, "DeploymentOperationNotFound", f"There is no operation '{request.parameters['id']}'.")
        error = {"error": record["error"]} if record["error"] else {}
        return Answer(200, {"status": record["state"], **error}, dict(_SOON) if record["state"] in ACTIVE else {})

    def list_operations(self, request: Request) -> Answer:
        record = self._find(request)
        return self._emulator.page(request, [_shown_operation(record, one) for one in reversed(record["operations"])])

    def read_operation(self, request: Request) -> Answer:
        record = self._find(request)
        for one in record["operations"]:
            if one["id"] == request.parameters["id"]:
                return Answer(200, _shown_operation(record, one))
        raise arm_error(404, "DeploymentOperationNotFound", f"There is no operation '{request.parameters['id']}'.")

    def ids(self) -> list[str]:
        """The ids of all deployments."""
        return [str(one["id"]) for one in self._store.walk(_FOLDER)]

    def forget(self, group_id: str) -> None:
        """Forget the deployments of a group, which is deleted; those that run end."""
        self._store.delete_below(f"{_FOLDER}{group_id}")

    def resume(self) -> None:
        """Go on with what ran when the emulator ended."""
        for record in self._store.walk(_FOLDER):
            if record["state"] in ACTIVE:
                self._begin(self._record_id(record["group"], record["name"]), self._template(record))

    def _begin(self, record_id: str, template: Template) -> None:
        run = TemplateRun(self._emulator, record_id, template, self.closed)
        threading.Thread(target=run.carry_out, daemon=True, name=record_id).start()

    def _group(self, request: Request) -> dict[str, Any]:
        return self._emulator.groups.find(request.parameters["group"])

    def _record(self, request: Request, group: dict[str, Any], template: Template) -> dict[str, Any]:
        properties, name = request.json["properties"], request.parameters["name"]
        return {
            "id": f"{group['id']}/providers/Microsoft.Resources/deployments/{name}",
            "name": name,
            "group": group["id"],
            "template": properties["template"],
            "parameters": properties.get("parameters") or {},
            "state": "Accepted",
            "started": now(),
            "ended": None,
            "correlation": str(uuid.uuid4()),
            "tracking": f"0858{uuid.uuid4().int % 10**16:016}",
            "error": None,
            "outputs": None,
            "operations": [],
            "tags": request.json.get("tags"),
        }

    def _template(self, record: dict[str, Any]) -> Template:
        group = self._store.get(record["group"]) or {"id": record["group"]}
        return Template(record["template"], record["parameters"], place_of(self._emulator, group, record["name"]))

    def _record_id(self, group_id: str, name: str) -> str:
        return f"{_FOLDER}{group_id}/{name}"

    def _find(self, request: Request) -> dict[str, Any]:
        group, name = self._group(request), request.parameters["name"]
        record = self._store.get(self._record_id(group["id"], name))
        if record is None:
            raise arm_error(404, "DeploymentNotFound", f"Deployment '{name}' could not be found.")
        return record


def _active(record: dict[str, Any]) -> ServiceError:
    started = datetime.fromisoformat(record["started"][:19] + "+00:00")
    message = (
        f"Unable to edit or replace deployment '{record['name']}': previous deployment from '{_spoken(started)}' is "
        f"still active (expiration time is '{_spoken(started + _LONGEST)}'). Please see "
        "https://aka.ms/arm-deploy-resources for usage details."
    )
    return arm_error(409, "DeploymentActive", message)


def _spoken(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%m/%d/%Y %I:%M:%S %p").replace("/0", "/").lstrip("0")


def _shown(record: dict[str, Any], template: Template) -> dict[str, Any]:
    """A deployment as Resource Manager shows it."""
    text = json.dumps(record["template"], sort_keys=True)
    properties: dict[str, Any] = {
        "templateHash": str(int(hashlib.sha256(text.encode()).hexdigest()[:15], 16)),
        "parameters": template.shown_parameters,
        "mode": "Incremental",
        "provisioningState": record["state"],
        "timestamp": record["ended"] or record["started"],
        "duration": duration(record["started"], record["ended"] or now()),
        "correlationId": record["correlation"],
        "providers": _providers(record, template),
        "dependencies": [_dependency(template, one) for one in template.resources if one.depends_on],
    }
    if record["outputs"] is not None:
        properties["outputs"] = record["outputs"]
    if record["error"]:
        properties["error"] = record["error"]
    if record["state"] == "Succeeded" and record["operations"]:
        made = sorted((one["target"] for one in record["operations"] if one["target"]), key=str.lower)
        properties["outputResources"] = [{"id": one} for one in made]
    shown = {"id": record["id"], "name": record["name"], "type": "Microsoft.Resources/deployments"}
    return {**shown, **({"tags": record["tags"]} if record.get("tags") else {}), "properties": properties}


def _providers(record: dict[str, Any], template: Template) -> list[dict[str, Any]]:
    kinds: dict[str, dict[str, list[str | None]]] = {}
    for one in template.order:
        namespace, _, kind = one.type.partition("/")
        location = template.location(one)
        places = kinds.setdefault(namespace, {}).setdefault(kind, [])
        if location not in places:
            places.append(location)
    return [
        {
            "namespace": namespace,
            "resourceTypes": [{"resourceType": kind, "locations": places} for kind, places in found.items()],
        }
        for namespace, found in kinds.items()
    ]


def _dependency(template: Template, one: Any) -> dict[str, Any]:
    return {"dependsOn": [_target(given) for given in dict.fromkeys(one.depends_on)], **_target(one.id)}


def _target(resource_id: str) -> dict[str, str]:
    parsed = parse_id(resource_id)
    assert parsed is not None
    return {"id": resource_id, "resourceType": parsed.type, "resourceName": parsed.full_name}


def _shown_operation(record: dict[str, Any], one: dict[str, Any]) -> dict[str, Any]:
    properties: dict[str, Any] = {
        "provisioningOperation": "Create" if one["target"] else "EvaluateDeploymentOutput",
        "provisioningState": one["state"],
        "timestamp": one["ended"] or one["started"],
        "duration": duration(one["started"], one["ended"] or now()),
        "trackingId": one["tracking"],
        "statusCode": one["status"],
    }
    if one["error"]:
        properties["statusMessage"] = {"status": "Failed", "error": one["error"]}
    if one["target"]:
        properties["targetResource"] = _target(one["target"])
    return {"id": f"{record['id']}/operations/{one['id']}", "operationId": one["id"], "properties": properties}
