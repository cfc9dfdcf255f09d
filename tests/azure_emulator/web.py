"""What passes between the HTTPS server and the handlers: requests, answers, and errors in the service's shape."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import Any

Body = dict[str, Any] | list[Any] | bytes | Iterator[bytes] | None


@dataclass
class Request:
    """One request; header names are in lower case.

    Attributes:
        parameters: what the route's placeholders stand for, as the client wrote it.
        route: the route's pattern, such as `W/jobs/{name}`.
        claims: what the token says of who asks; empty on routes that need none.
        stuck: a scenario wants that an operation begun by this request never ends.
        fault: the error that a scenario wants such an operation to end with.
    """

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    parameters: dict[str, str] = field(default_factory=dict)
    route: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    stuck: bool = False
    fault: dict[str, Any] | None = None

    @property
    def api_version(self) -> str:
        """The version that the client asked for; empty on routes that have none."""
        return self.query.get("api-version", "")

    @cached_property
    def json(self) -> dict[str, Any]:
        """The body, which must be a JSON object.

        Raises:
            ServiceError: 400.
        """
        try:
            value = json.loads(self.body or b"{}")
        except ValueError as error:
            raise ServiceError(400, "InvalidRequestContent", f"The request content was invalid: {error}.") from error
        if not isinstance(value, dict):
            raise ServiceError(400, "InvalidRequestContent", "The request content was not a JSON object.")
        return value


@dataclass
class Answer:
    """A response: JSON, bytes, or pieces as they come."""

    status: int = 200
    body: Body = None
    headers: dict[str, str] = field(default_factory=dict)
    lost: bool = False


class ServiceError(Exception):
    """A refusal in the service's own shape."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        inner: str = "",
        headers: Mapping[str, str] | None = None,
        details: list[dict[str, Any]] | None = None,
        plain: bool = False,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = dict(headers or {})
        self._inner = inner
        self._details = details or []
        self._plain = plain

    def answer(self, location: str) -> Answer:
        """The error as the service words it; Resource Manager's own errors are shorter."""
        error: dict[str, Any] = {"code": self.code, "message": str(self)}
        if not self._plain:
            error |= {"details": self._details, "additionalInfo": _additional(location, self._inner)}
        elif self._details:
            error["details"] = self._details
        return Answer(self.status, {"error": error}, self.headers)


def arm_error(status: int, code: str, message: str, details: list[dict[str, Any]] | None = None) -> ServiceError:
    """An error of Resource Manager, which the service itself never saw."""
    return ServiceError(status, code, message, plain=True, details=details)


def user_error(message: str, status: int = 400) -> ServiceError:
    """What the service says to most mistakes."""
    inner = {404: "NotFoundError", 409: "Conflict"}.get(status, "BadArgument")
    return ServiceError(status, "UserError", message, inner=inner)


def validation_error(message: str) -> ServiceError:
    """A field of the request is missing or has a value that it cannot have."""
    return ServiceError(400, "ValidationError", message, inner="BadArgument")


def not_found(message: str) -> ServiceError:
    """The service has no such thing."""
    return user_error(message, 404)


def now() -> str:
    """This moment as the service writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f0+00:00")


def _additional(location: str, inner: str) -> list[dict[str, Any]]:
    correlation = {"operation": uuid.uuid4().hex, "request": uuid.uuid4().hex[:16]}
    facts: dict[str, Any] = {
        "ComponentName": "managementfrontend",
        "Correlation": correlation,
        "Environment": location,
        "Location": location,
        "Time": now(),
    }
    if inner:
        facts["InnerError"] = {"code": inner, "innerError": None}
    return [{"type": kind, "info": {"value": value}} for kind, value in facts.items()]
