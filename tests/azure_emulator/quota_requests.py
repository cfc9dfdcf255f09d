"""Microsoft.Quota for Azure Machine Learning: limits and usages by family, and requests for more.

    PUT /_emulator/quota-requests {"result": "Failed", "code": "ContactSupport", "message": "...", "seconds": 0.3}

A request is granted after a moment (result `Succeeded`), refused (`Failed`), or for ever looked at (`InProgress`).
"""

from __future__ import annotations

import time
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.quota import FAMILIES, LOW_PRIORITY, has_no_gpus, state_of
from tests.azure_emulator.sizes import family_name
from tests.azure_emulator.skus import known_location
from tests.azure_emulator.web import Answer, Request, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

VERSIONS = ("2021-03-15-preview", "2023-02-01", "2023-06-01-preview", "2024-10-15-preview", "2025-03-01", "2025-09-01")
RESULTS = ("Succeeded", "Failed", "InProgress")
_SECONDS = 0.3
_SOON = {"Retry-After": "1", "retry-after-ms": "50"}
_SUPPORT = {"code": "ContactSupport", "message": "Request failed, please contact support."}
_TEXTS = {"InProgress": "Request processing", "Succeeded": "Request completed"}


def install(emulator: Emulator) -> None:
    """Register the routes."""
    requests = QuotaRequests(emulator)
    emulator.allow_versions(*VERSIONS)
    register, base = emulator.register, "L/providers/Microsoft.Quota"
    register("GET", f"{base}/quotas", requests.list_quotas)
    register("GET", f"{base}/quotas/{{name}}", requests.read_quota)
    register("PUT", f"{base}/quotas/{{name}}", requests.ask)
    register("PATCH", f"{base}/quotas/{{name}}", requests.ask)
    register("GET", f"{base}/usages", requests.list_usages)
    register("GET", f"{base}/usages/{{name}}", requests.read_usage)
    register("GET", f"{base}/quotaRequests", requests.list_requests)
    register("GET", f"{base}/quotaRequests/{{id}}", requests.read_request)
    register("GET", f"{base}/operationsStatus/{{id}}", requests.read_status)


class QuotaRequests:
    """Answers for one subscription."""

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator

    def list_quotas(self, request: Request) -> Answer:
        return self._emulator.page(request, [self._quota(request, family) for family in _all()])

    def read_quota(self, request: Request) -> Answer:
        return Answer(200, self._quota(request, _family(request)))

    def list_usages(self, request: Request) -> Answer:
        return self._emulator.page(request, [self._usage(request, family) for family in _all()])

    def read_usage(self, request: Request) -> Answer:
        return Answer(200, self._usage(request, _family(request)))

    def ask(self, request: Request) -> Answer:
        """Ask for another limit, which is looked at."""
        family, location = _family(request), known_location(request.parameters["location"])
        limit = ((request.json.get("properties") or {}).get("limit") or {}).get("value")
        if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
            raise arm_error(400, "InvalidResourceUsage", "The properties.limit.value of a request must be a number.")
        if limit < self._emulator.quota.limit(family, location):
            raise arm_error(400, "QuotaReductionNotSupported", "A quota cannot be reduced by a request.")
        if has_no_gpus(self._emulator):
            message = f"Quota is not available for resource '{request.parameters['name']}' in this subscription."
            raise arm_error(400, "QuotaNotAvailableForResource", message)
        wanted = self._emulator.settings.get("quota-requests")
        result = wanted.get("result") or "Succeeded"
        name, moment = str(uuid.uuid4()), datetime.now(UTC)
        asked = {
            **{"family": family, "location": location, "limit": limit, "result": result, "settled": False},
            "error": _SUPPORT | {key: wanted[key] for key in ("code", "message") if key in wanted},
            "submitted": moment.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "until": time.time() + float(wanted.get("seconds", _SECONDS)),
        }
        self._emulator.settings.put(f"quota-asked/{name}", asked)
        where = f"{self._emulator.url}{_base(request)}/operationsStatus/{name}?api-version={request.api_version}"
        return Answer(202, None, {"Location": where, **_SOON})

    def list_requests(self, request: Request) -> Answer:
        location = known_location(request.parameters["location"])
        found = self._emulator.settings.all("quota-asked").items()
        shown = [_shown(request, name, asked) for name, asked in found if asked["location"] == location]
        return self._emulator.page(request, shown)

    def read_request(self, request: Request) -> Answer:
        return Answer(200, _shown(request, *self._find(request)))

    def read_status(self, request: Request) -> Answer:
        name, asked = self._find(request)
        state = state_of(asked)
        body = {"id": request.path, "name": name, "status": state, "startTime": asked["submitted"]}
        if state == "Failed":
            body["error"] = asked["error"]
        return Answer(200, body, dict(_SOON) if state == "InProgress" else {})

    def _find(self, request: Request) -> tuple[str, dict[str, Any]]:
        name = request.parameters["id"]
        asked = self._emulator.settings.get(f"quota-asked/{name}")
        if not asked:
            raise arm_error(404, "NotFound", f"There is no quota request {name}.")
        return name, asked

    def _quota(self, request: Request, family: str) -> dict[str, Any]:
        location = known_location(request.parameters["location"])
        limit = {"limitObjectType": "LimitValue", "value": self._emulator.quota.limit(family, location)}
        return _resource(request, "quotas", family, {"limit": limit, "isQuotaApplicable": True})

    def _usage(self, request: Request, family: str) -> dict[str, Any]:
        location = known_location(request.parameters["location"])
        used = self._emulator.quota.used(location).get(family, 0)
        return _resource(request, "usages", family, {"usages": {"value": used}, "isQuotaApplicable": True})


def checked_requests(document: dict[str, Any]) -> dict[str, Any]:
    """The document of `PUT /_emulator/quota-requests`, when it makes sense.

    Raises:
        ServiceError: 400, with what is wrong.
    """
    if document.get("result", "Succeeded") not in RESULTS or document.keys() - {"result", "code", "message", "seconds"}:
        raise arm_error(
            400, "InvalidQuotaRequests", f"{document} is not {{result, code, message, seconds}}: {RESULTS}."
        )
    return document


def _all() -> list[str]:
    return [*FAMILIES, LOW_PRIORITY]


def _family(request: Request) -> str:
    """A family, or all of low priority; of the dedicated cores there is no sum to be asked for."""
    name = request.parameters["name"]
    known = {one.lower(): one for one in FAMILIES} | {"totallowprioritycores": LOW_PRIORITY}
    if name.lower() not in known:
        raise arm_error(400, "InvalidResourceName", f"The resource name '{name}' is not valid for this provider.")
    return known[name.lower()]


def _base(request: Request) -> str:
    head = request.path.lower().index("/providers/microsoft.quota/")
    return f"{request.path[:head]}/providers/Microsoft.Quota"


def _name_of(family: str) -> dict[str, str]:
    if family == LOW_PRIORITY:
        return {"value": "TotalLowPriorityCores", "localizedValue": "Total Regional Low-priority vCPUs"}
    return {"value": family, "localizedValue": family_name(family)}


def _resource(request: Request, kind: str, family: str, told: dict[str, Any]) -> dict[str, Any]:
    name = _name_of(family)
    resource_type = "lowPriority" if family == LOW_PRIORITY else "dedicated"
    return {
        "id": f"{_base(request)}/{kind}/{name['value']}",
        "type": f"Microsoft.Quota/{kind}",
        "name": name["value"],
        "properties": {**told, "unit": "Count", "name": name, "resourceType": resource_type},
    }


def _shown(request: Request, name: str, asked: dict[str, Any]) -> dict[str, Any]:
    state = state_of(asked)
    text = _TEXTS.get(state) or asked["error"]["message"]
    one = {
        "limit": {"limitObjectType": "LimitValue", "value": asked["limit"]},
        "subRequestId": str(uuid.uuid5(uuid.NAMESPACE_URL, name)),
        "name": _name_of(asked["family"]),
        "unit": "Count",
        "message": text,
        "provisioningState": state,
    }
    told = {"requestSubmitTime": asked["submitted"], "message": text, "provisioningState": state, "value": [one]}
    if state == "Failed":
        told["error"] = asked["error"]
    return {
        "id": f"{_base(request)}/quotaRequests/{name}",
        "type": "Microsoft.Quota/quotaRequests",
        "name": name,
        "properties": told,
    }
