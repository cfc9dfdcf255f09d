"""Routing as Resource Manager does it: by resource type, case ignored, an api-version required, a token required.

Patterns: `W` is the workspace's id, `G` its resource group's, `S` its subscription's, `L` the subscription's
Azure Machine Learning in a region (`{location}`); `{name}` is one segment and `{rest:path}` any number of them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error

Handler = Callable[[Request], Answer | tuple[Any, ...]]
_PROVIDER = "providers/Microsoft.MachineLearningServices"
_VERSION = re.compile(r"\d{4}-\d\d-\d\d(-preview|-privatepreview)?")
# Those of Microsoft.MachineLearningServices that clients of today name, and of the providers beside it.
_KNOWN_VERSIONS = frozenset(
    {
        *("2018-01-01", "2018-11-30", "2019-07-01", "2020-06-01", "2021-04-01", "2021-05-01"),
        *("2021-10-01", "2022-02-01-preview", "2022-04-01", "2022-05-01", "2022-09-01", "2022-10-01"),
        *("2022-10-01-preview", "2022-12-01", "2022-12-01-preview", "2023-01-31", "2023-02-01-preview", "2023-04-01"),
        *(
            "2023-04-01-preview",
            "2023-06-01-preview",
            "2023-08-01-preview",
            "2023-10-01",
            "2023-10-01",
            "2024-01-01-preview",
        ),
        *("2024-02-01", "2024-04-01", "2024-04-01-preview", "2024-07-01-preview", "2024-10-01", "2024-10-01-preview"),
        *("2025-01-01-preview", "2025-04-01", "2025-04-01-preview", "2025-06-01", "2025-07-01-preview", "2025-09-01"),
        *("2025-10-01-preview", "2025-12-01"),
    }
)


@dataclass(frozen=True)
class Scope:
    """The coordinates of the one workspace that the emulator has."""

    subscription: str
    group: str
    workspace: str
    location: str

    @property
    def subscription_id(self) -> str:
        return f"/subscriptions/{self.subscription}"

    @property
    def group_id(self) -> str:
        return f"{self.subscription_id}/resourceGroups/{self.group}"

    @property
    def workspace_id(self) -> str:
        return f"{self.group_id}/{_PROVIDER}/workspaces/{self.workspace}"

    def expand(self, pattern: str) -> str:
        """The pattern with its abbreviation written out."""
        head, slash, rest = pattern.partition("/")
        full = {
            "W": self.workspace_id,
            "G": self.group_id,
            "S": self.subscription_id,
            "L": f"{self.subscription_id}/{_PROVIDER}/locations/{{location}}",
        }
        return f"{full[head]}{slash}{rest}" if head in full else pattern


class Router:
    """Finds the handler of a request.

    Args:
        authorize: raises when an ARM request has no valid token.

    Attributes:
        guards: raise when a request with a token must not pass all the same.
        versions: the api-versions that are known.
    """

    def __init__(self, scope: Scope, authorize: Callable[[Request], None]) -> None:
        self._scope = scope
        self._authorize = authorize
        self.guards: list[Callable[[Request], None]] = []
        self.versions = set(_KNOWN_VERSIONS)
        self._routes: list[tuple[str, re.Pattern[str], str, Handler]] = []

    def register(self, method: str, pattern: str, handler: Handler) -> None:
        """Have requests answered by a handler, which returns an Answer or (status, body[, headers])."""
        self._routes.append((method, _compiled(self._scope.expand(pattern)), pattern, handler))

    def match(self, request: Request) -> Handler:
        """The handler of a request, which is told its route and parameters.

        Raises:
            ServiceError: nothing answers there.
        """
        methods = []
        for method, compiled, pattern, handler in self._routes:
            if found := compiled.fullmatch(request.path):
                if method in (request.method, "*"):
                    request.parameters, request.route = dict(found.groupdict()), pattern
                    return handler
                methods.append(method)
        if methods:
            message = f"The http method '{request.method}' is not supported for a resource type."
            raise ServiceError(
                405, "HttpMethodNotSupported", message, headers={"Allow": ", ".join(methods)}, plain=True
            )
        raise self._nothing_there(request.path)

    def check(self, request: Request) -> None:
        """Refuse an ARM request without a token or a version that is known.

        Raises:
            ServiceError: 401 or 400.
        """
        if not request.path.lower().startswith("/subscriptions"):
            return
        self._require_subscription(request.path)  # nobody needs a token to be told that there is none
        self._authorize(request)
        version = request.api_version
        if not version:
            message = "The api-version query parameter (?api-version=) is required for all requests."
            raise arm_error(400, "MissingApiVersionParameter", message)
        if not _VERSION.fullmatch(version):
            message = (
                f"The api-version '{version}' is invalid. The format should be 'yyyy-MM-dd' with an optional suffix."
            )
            raise arm_error(400, "InvalidApiVersionParameter", message)
        if version not in self.versions:
            known = ", ".join(sorted(self.versions))
            message = f"No registered resource provider found for API version '{version}'. The supported are '{known}'."
            raise arm_error(400, "NoRegisteredProviderFound", message)
        for guard in self.guards:
            guard(request)

    def _require_subscription(self, path: str) -> None:
        given = path.split("/")[2:3]
        if given and given[0].lower() != self._scope.subscription.lower():
            raise arm_error(404, "SubscriptionNotFound", f"The subscription '{given[0]}' could not be found.")

    def _nothing_there(self, path: str) -> ServiceError:
        parts = [part for part in path.split("/") if part]
        lower = [part.lower() for part in parts]
        scope = self._scope
        if lower[:1] != ["subscriptions"]:
            return arm_error(404, "NotFound", f"There is nothing at {path}.")
        if lower[2:3] == ["resourcegroups"] and lower[3:4] and lower[3] != scope.group.lower():
            return arm_error(404, "ResourceGroupNotFound", f"Resource group '{parts[3]}' could not be found.")
        if lower[6:7] == ["workspaces"] and lower[7:8] and lower[7] != scope.workspace.lower():
            message = (
                f"The Resource 'Microsoft.MachineLearningServices/workspaces/{parts[7]}' under resource group "
                f"'{scope.group}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix"
            )
            return arm_error(404, "ResourceNotFound", message)
        return arm_error(404, "InvalidResourceType", f"The resource type could not be found: {path}.")


def answered(result: Answer | tuple[Any, ...]) -> Answer:
    """What a handler returned, as an Answer."""
    return result if isinstance(result, Answer) else Answer(*result)


def _compiled(pattern: str) -> re.Pattern[str]:
    """Literal text matches in any case, as Resource Manager has it."""
    out = ""
    for part in re.split(r"(\{\w+(?::path)?\})", pattern):
        if placeholder := re.fullmatch(r"\{(\w+)(:path)?\}", part):
            out += f"(?P<{placeholder[1]}>{'.*' if placeholder[2] else '[^/]+'})"
        else:
            out += re.escape(part)
    return re.compile(out, re.IGNORECASE)
