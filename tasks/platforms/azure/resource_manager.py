"""Resources of Azure Resource Manager by their ids, whatever their type: read, listed, deleted and awaited.

`resources` is for those of the workspace, which the SDK begins to make and to delete.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal

from tasks.platforms.errors import NotFoundError, PhiflowError, TransientPlatformError

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

_GONE_SECONDS = 1800.0


def read_resource(workspace: Workspace, location: str, version: str, what: str) -> dict[str, Any] | None:
    """A resource as it is now; None when there is none."""
    try:
        response = workspace.send("GET", location, params={"api-version": version}, what=what)
    except NotFoundError:
        return None
    found: dict[str, Any] = response.json()
    return found


def list_resources(workspace: Workspace, location: str, version: str, what: str) -> Iterator[dict[str, Any]]:
    """Every entry of a list, page by page; none of a place that is not there."""
    url, query = location, {"api-version": version}
    while url:
        try:
            page = workspace.send("GET", url, params=query, what=what).json()
        except NotFoundError:
            return
        yield from page.get("value") or ()
        url, query = str(page.get("nextLink") or ""), {}


def delete_resource(
    workspace: Workspace, location: str, version: str, what: str, parameters: dict[str, str] | None = None
) -> None:
    """Ask for the deletion, and wait until there is nothing at its address.

    Raises:
        PhiflowError: the service could not delete it; the reason is its own.
    """
    _remove(workspace, "DELETE", location, {"api-version": version, **(parameters or {})}, what)


def purge_resource(workspace: Workspace, location: str, version: str, what: str) -> None:
    """Purge what is deleted but kept, and wait until it is gone for good."""
    _remove(workspace, "POST", location, {"api-version": version}, what)


def _remove(
    workspace: Workspace, method: Literal["DELETE", "POST"], location: str, query: dict[str, str], what: str
) -> None:
    url = location if method == "DELETE" else f"{location}/purge"
    try:
        answer = workspace.send(method, url, params=query, what=what, idempotent=True)
    except NotFoundError:
        return
    operation = answer.headers.get("Azure-AsyncOperation") or answer.headers.get("Location") or ""
    deadline, pause = time.monotonic() + _GONE_SECONDS, 1.0
    while read_resource(workspace, location, query["api-version"], what) is not None:
        _require_no_failure(workspace, operation, what)
        if time.monotonic() > deadline:
            raise TransientPlatformError(
                f"{what} is still there {_GONE_SECONDS:.0f} s after its deletion began.",
                fix="It may bill until it is gone; run the same command again.",
            )
        time.sleep(min(pause, workspace.config.poll_seconds))
        pause *= 1.5


def _require_no_failure(workspace: Workspace, operation: str, what: str) -> None:
    """What ended an operation badly is its own status, or the error that its address answers with."""
    if not operation.startswith(f"{workspace.resource_manager}/"):  # a token goes along
        return
    try:
        told = workspace.send("GET", operation, what=what).json()
    except (NotFoundError, ValueError):
        return
    if isinstance(told, dict) and str(told.get("status")) in ("Failed", "Canceled"):
        reason = (told.get("error") or {}).get("message") or "the service gives no reason"
        raise PhiflowError(f"{what} was not deleted: {reason}", fix="Mend that, and run the same command again.")
