"""Run history of the workspace: a job's state, its error and its logs, read as often as we like.

Logs are read through URLs that are signed. These stay in this module: in no value, no message, no log.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import requests

from tasks.platforms.azure.secrets import clean_lines
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import PhiflowError

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

_TAIL_BYTES = 16_384
_TAIL_LINES = 15
_RANGE_NOT_SATISFIABLE = 416
_TIMEOUT_SECONDS = (5, 60)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDetails:
    """A run as the service tells it.

    Attributes:
        logs: what is there to read, by path as in `user_logs/std_log.txt`.
    """

    status: str
    code: str
    message: str
    warnings: tuple[str, ...]
    compute: str
    has_ended: bool
    logs: Mapping[str, str] = field(repr=False)


class RunHistory:
    """The runs of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._followed: dict[tuple[str, str], _Followed] = {}

    def details(self, name: str) -> RunDetails:
        """How the run is now; NotFoundError when there is none."""
        told = self._send("GET", f"runs/{name}/details", name).json()
        code, message = _error(told.get("error") or {})
        return RunDetails(
            status=str(told.get("status") or ""),
            code=code,
            message=message,
            warnings=tuple(str(warning.get("message") or "") for warning in told.get("warnings") or ()),
            compute=str(told.get("target") or ""),
            has_ended=bool(told.get("endTimeUtc")),
            logs=dict(told.get("logFiles") or {}),
        )

    def add_tags(self, name: str, tags: Mapping[str, str]) -> None:
        """Add tags to those that the run has."""
        self._send("PATCH", f"runs/{name}", name, json={"tags": dict(tags)})

    def follow(self, name: str, details: RunDetails, path: str) -> tuple[str, ...]:
        """All whole lines of a log so far; each call fetches only what is new."""
        followed = self._followed.setdefault((name, path), _Followed())
        if url := details.logs.get(path):
            with translated(f"Log {path} of job {name}"):
                followed.extend(self._get(url, "GET", {"Range": f"bytes={followed.size}-"}))
        return tuple(followed.lines)

    def tail(self, name: str, details: RunDetails, path: str) -> tuple[str, ...]:
        """The last lines of a log, however large it is; none when it cannot be read."""
        url = details.logs.get(path)
        if not url:
            return ()
        what = f"Log {path} of job {name}"
        try:
            with translated(what):
                size = int(self._get(url, "HEAD", {}).headers.get("Content-Length", 0))
                content = self._get(url, "GET", {"Range": f"bytes={max(0, size - _TAIL_BYTES)}-"}).content
        except PhiflowError:  # a log explains a failure, and must not replace it
            return ()
        lines = [line for line in clean_lines(content.decode("utf-8", "replace")) if line]
        return tuple(lines[-_TAIL_LINES:])

    def _send(self, method: str, path: str, name: str, json: Any = None) -> requests.Response:
        url = f"{self._url}/history/v1.0{self._workspace.resource_id}/{path}"
        # The same tags once more change nothing, so a request whose answer was lost is sent again.
        return self._workspace.send(method, url, json=json, scope="ml", what=f"Job {name}", idempotent=True)

    @functools.cached_property
    def _url(self) -> str:
        """The services of the workspace's region, without a slash at the end."""
        workspace = self._workspace
        discovery = str(workspace.properties["properties"]["discoveryUrl"])
        found = workspace.send("GET", discovery, scope="none", what=f"Workspace {workspace.name}").json()
        return str(found.get("history") or found["api"]).rstrip("/")

    @staticmethod
    def _get(url: str, method: str, headers: dict[str, str]) -> requests.Response:
        response = requests.request(method, url, headers=headers, timeout=_TIMEOUT_SECONDS)
        if response.status_code != _RANGE_NOT_SATISFIABLE:
            response.raise_for_status()
        return response


class _Followed:
    """What was read of a log that grows."""

    def __init__(self) -> None:
        self.size = 0
        self.lines: list[str] = []
        self._rest = b""

    def extend(self, response: requests.Response) -> None:
        """Take what came after what is known, if anything did; a shorter log is another, of a job begun anew."""
        if response.status_code == _RANGE_NOT_SATISFIABLE:
            total = response.headers.get("Content-Range", "").rpartition("/")[2]
            if total.isdigit() and int(total) < self.size:
                self.size, self.lines, self._rest = 0, [], b""
            return
        self.size += len(response.content)
        *lines, self._rest = (self._rest + response.content).split(b"\n")
        self.lines += [line.decode("utf-8", "replace") for line in lines]


def _error(told: Mapping[str, Any]) -> tuple[str, str]:
    """Code and message; the innermost code, because the outer one says only whose fault it is."""
    error = told.get("error") or told
    message = str(error.get("message") or "")
    code, inner = str(error.get("code") or ""), error.get("innerError") or error.get("innererror")
    while isinstance(inner, Mapping) and inner:
        code = f"{code}.{inner['code']}" if inner.get("code") else code
        inner = inner.get("innerError") or inner.get("innererror")
    return code, message
