"""One request with its response, read from the emulator's log or from the SDK's recordings of the live service."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

_PROVIDER = re.compile(r"/providers/", re.IGNORECASE)
# The provider itself, which Resource Manager tells and registers, and none of the provider's own resources.
_REGISTRATION = re.compile(r"(?i)^/subscriptions/[^/]+/providers/[^/]+(/(un)?register)?$")
_HOLDER = re.compile(r"(?i)^/subscriptions/[^/]+(/resourceGroups/[^/]+)?$")
_NAMED = re.compile(r"^/subscriptions/[^/]+(?:/resourceGroups/[^/]+)?", re.IGNORECASE)


@dataclass(frozen=True)
class Exchange:
    """What was asked and what was answered.

    Attributes:
        host: empty in the emulator's log, where every service has the same one.
        request: the JSON body, or None when there was none or it was no JSON.
        headers: of the response, their names in lower case.
        scenario: what the emulator was told to do instead of what the service does; empty when nothing.
    """

    method: str
    path: str
    query: dict[str, str]
    request: Any
    status: int
    response: Any
    host: str = ""
    headers: frozenset[str] = frozenset()
    scenario: str = ""

    @property
    def version(self) -> str:
        """The api-version that was asked for; empty when there was none."""
        return self.query.get("api-version", "")

    @property
    def managed(self) -> bool:
        """Whether this was a call of Azure Resource Manager, and not of storage, sign-in or a workspace's services."""
        return self.path.lower().startswith("/subscriptions/") and self.host in ("", "management.azure.com")

    @cached_property
    def namespace(self) -> str:
        """The resource provider in lower case, such as microsoft.machinelearningservices."""
        parts = _PROVIDER.split(self.path)
        own = len(parts) == 1 or _REGISTRATION.match(self.path)
        return "microsoft.resources" if own else parts[-1].split("/")[0].lower()

    @cached_property
    def segments(self) -> tuple[str, ...]:
        """The path behind the resource provider: types and names by turns."""
        parts = _PROVIDER.split(self.path)
        if holder := _HOLDER.match(self.path):
            rest = ["resourceGroups" if holder[1] else "subscriptions", self.path.split("/")[-1]]
        elif len(parts) == 1 or _REGISTRATION.match(self.path):
            rest = _NAMED.sub("", self.path).split("/")
        else:
            rest = parts[-1].split("/")[1:]
        return tuple(part for part in rest if part)

    @property
    def resource(self) -> str:
        """The type of what the path names, as in workspaces/jobs; of a collection, the type of its members."""
        return "/".join(self.segments[0::2])

    @property
    def operation(self) -> str:
        """Method and path without names, such as PUT workspaces/*/jobs/*."""
        shown = [part if number % 2 == 0 else "*" for number, part in enumerate(self.segments)]
        place = "/".join(shown) or self.path
        known = self.namespace in ("microsoft.machinelearningservices", "microsoft.resources")
        return f"{self.method} {place if known else f'{self.namespace}/{place}'}"


def recorded(folder: Path) -> Iterator[Exchange]:
    """The exchanges of the SDK's recordings, file by file."""
    for file in sorted(folder.rglob("*.json")):
        for entry in json.loads(file.read_text(encoding="utf-8"))["Entries"]:
            address = urlsplit(entry["RequestUri"])
            yield Exchange(
                method=entry["RequestMethod"],
                path=address.path,
                query=dict(parse_qsl(address.query)),
                request=entry["RequestBody"],
                status=entry["StatusCode"],
                # Written as text where the service answered with JSON's null.
                response=None if entry["ResponseBody"] in ("", "null") else entry["ResponseBody"],
                host=address.netloc,
                headers=frozenset(map(str.lower, entry["ResponseHeaders"])),
            )


def logged(file: Path) -> Iterator[Exchange]:
    """The exchanges of the emulator's log; a last line that is being written is left out."""
    for line in file.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.endswith("\n"):
            entry = json.loads(line)
            yield Exchange(
                method=entry["method"],
                path=entry["path"],
                query=entry["query"],
                request=_json(entry["request"]["body"]),
                status=entry["status"],
                response=_json(entry["response"]["body"]),
                headers=frozenset(map(str.lower, entry["response"]["headers"])),
                scenario=entry.get("scenario", ""),
            )


def _json(body: Any) -> Any:
    shortened = isinstance(body, dict) and body.keys() in ({"bytes"}, {"stream"})
    return None if shortened else body
