"""Scripted faults: what the emulator does instead of its usual, set by tests and by people who rehearse.

    POST   /_emulator/scenarios  {"match": {"method": "PUT", "path": "/jobs/", "nth": 1}, "do": "status", ...}
    GET    /_emulator/scenarios  those that have not come to their end
    DELETE /_emulator/scenarios  none of them

`match` finds requests: `method`, `path` (a regular expression, searched in the path), `nth` (the first that counts,
from 1) and `times` (how many it is done to; 0 is all). The header `x-emulator-scenario` with such an object does it
to one request. `do` is one of:

    status   answer without doing anything: `status` (409, 429, 500, ...), `code`, `message`, `headers`, `body`
    lost     do what was asked, and close the connection without an answer
    drop     close the connection, and do nothing
    slow     wait `seconds` first
    stuck    the operation that the request begins never ends
    fault    the operation that the request begins ends as failed, with `code` and `message`

With `kind` in `match` it is for what jobs, deployments and resources of templates do, and `name` is a regular
expression for theirs; who runs them takes it when one is submitted and knows what `do` means: see `KINDS`.
"""

from __future__ import annotations

import json
import os
import re
import threading
import uuid
from pathlib import Path
from typing import Any

from tests.azure_emulator.web import Answer, Request, arm_error

HEADER = "x-emulator-scenario"
ACTIONS = ("status", "lost", "drop", "slow", "stuck", "fault")
# What jobs.py, endpoints.py and template_runs.py know to do: the one list of them.
KINDS: dict[str, dict[str, str]] = {"job": {}, "deployment": {}, "template-resource": {}}
_CODES = {
    400: ("UserError", "The request is invalid."),
    403: ("AuthorizationFailed", "The client does not have authorization to perform the action."),
    404: ("NotFound", "The resource was not found."),
    408: ("RequestTimeout", "The request timed out."),
    409: ("Conflict", "There is a conflicting operation in progress."),
    429: ("TooManyRequests", "Number of requests exceeded the limit. Please retry later."),
    500: ("InternalServerError", "Received internal error."),
    503: ("ServiceUnavailable", "The service is unavailable. Please retry later."),
}


class Scenarios:
    """The scenarios that have not come to their end, kept on the disk."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._lock = threading.Lock()
        self._waiting: list[dict[str, Any]] = json.loads(file.read_text()) if file.exists() else []

    def add(self, scenario: dict[str, Any]) -> str:
        """Set a scenario, and return its id.

        Raises:
            ServiceError: 400, it is not one.
        """
        match = scenario.get("match") or {}
        known = KINDS.get(match.get("kind", ""), ACTIONS)
        if scenario.get("do") not in known:
            raise arm_error(400, "BadScenario", f"'do' is {scenario.get('do')!r}, not one of {', '.join(known)}.")
        kept = {**scenario, "id": uuid.uuid4().hex[:8], "seen": 0, "done": 0}
        with self._lock:
            self._waiting.append(kept)
            self._save()
        return str(kept["id"])

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._waiting.clear()
            self._save()

    def list(self) -> list[dict[str, Any]]:
        """Those that have not come to their end."""
        with self._lock:
            return [dict(scenario) for scenario in self._waiting]

    def for_request(self, request: Request) -> dict[str, Any] | None:
        """What to do to a request, if anything."""
        if HEADER in request.headers:
            return dict(json.loads(request.headers[HEADER]))
        return self._take(lambda match: "kind" not in match and _fits(match, request))

    def take(self, kind: str, name: str) -> dict[str, Any] | None:
        """What a job or a deployment of this name is to do, if anything."""
        return self._take(lambda match: match.get("kind") == kind and bool(re.search(match.get("name", ""), name)))

    def _take(self, fits: Any) -> dict[str, Any] | None:
        with self._lock:
            for scenario in self._waiting:
                match = scenario.get("match") or {}
                if not fits(match):
                    continue
                scenario["seen"] += 1
                if scenario["seen"] < int(match.get("nth", 1)):
                    self._save()
                    continue
                scenario["done"] += 1
                if scenario["done"] == int(match.get("times", 1)):
                    self._waiting.remove(scenario)
                self._save()
                return dict(scenario)
        return None

    def _save(self) -> None:
        temporary = self._file.with_suffix(".new")
        temporary.write_text(json.dumps(self._waiting), encoding="utf-8")
        os.replace(temporary, self._file)  # whole or not at all, whenever the emulator is killed


def refusal(scenario: dict[str, Any]) -> Answer:
    """The answer of a scenario that says `status`."""
    status = int(scenario["status"])
    code, message = _CODES.get(status, ("InternalServerError", "Scripted."))
    error = {"code": scenario.get("code", code), "message": scenario.get("message", message)}
    return Answer(status, scenario.get("body", {"error": error}), dict(scenario.get("headers") or {}))


def _fits(match: dict[str, Any], request: Request) -> bool:
    if match.get("method", request.method).upper() != request.method:
        return False
    return bool(re.search(match.get("path", ""), request.path, re.IGNORECASE))
