"""Resources that the service makes and changes in operations: read, awaited by our own polling, persisted with.

We poll the resource's state and not the operation, so that a run adopts what another began.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.secrets import clean
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import ConflictError, NotFoundError, PhiflowError, TransientPlatformError

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

_log = logging.getLogger(__name__)
API = "2024-04-01"
# A tag: on a job whose model a sweep has deleted, so that no run adopts it; on a cluster whose nodes a sweep let go.
SWEPT = "phiflow.swept"
_IN_TRANSITION = ("Creating", "Updating", "Scaling", "Deleting")
_FIRST_PAUSE_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Resource:
    """One resource of the workspace by its path below it, with its name for errors, as in "Endpoint support"."""

    workspace: Workspace
    path: str
    what: str

    def read(self) -> dict[str, Any] | None:
        """The resource as it is now; None when there is none."""
        url = f"{self.workspace.resource_id}/{self.path}"
        try:
            response = self.workspace.send("GET", url, params={"api-version": API}, what=self.what)
        except NotFoundError:
            return None
        found: dict[str, Any] = response.json()
        return found

    def list_below(self, below: str) -> Iterator[dict[str, Any]]:
        """The resources of a kind below it; NotFoundError when it is not there itself."""
        return list_all(self.workspace, f"{self.path}/{below}", self.what)

    def await_settled(self, seconds: float) -> dict[str, Any] | None:
        """Wait until nothing changes the resource any more; None when it is gone then.

        Raises:
            TransientPlatformError: it was still changing after that long.
        """
        deadline = time.monotonic() + seconds
        for pause in self._pauses():
            try:
                resource = self.read()
                if resource is None or state_of(resource) not in _IN_TRANSITION:
                    return resource
                seen = state_of(resource).lower()
            except TransientPlatformError as error:
                seen = f"not to be read ({error.message})"
            if time.monotonic() > deadline:
                break
            time.sleep(pause)
        raise TransientPlatformError(
            f"{self.what} was still {seen} after {seconds:.0f} s.",
            fix=f"Look at {self.workspace.studio_url('endpoints')}, then run the same command again.",
        )

    def begin(self, call: Callable[[], Any], is_done: Callable[[], bool], seconds: float) -> None:
        """Begin a change; again and again while another change, or a fault of the service, is in the way.

        Args:
            call: returns the SDK's poller.
            is_done: whether it has begun, or come about, all the same: an answer may be lost.
        """
        deadline = time.monotonic() + seconds
        for pause in self._pauses():
            try:
                with translated(self.what):
                    stop_polling(call())
                return
            except (ConflictError, TransientPlatformError) as error:
                if time.monotonic() + pause > deadline:
                    raise
                _log.info("Waits to try again: %s", error.message)
            time.sleep(pause)
            if is_done():
                return

    def why_failed(self, resource: dict[str, Any]) -> tuple[str, str]:
        """The service's code and message for a resource that failed; empty when it keeps none any more."""
        kept = resource["properties"].get("properties") or {}
        operation = str(kept.get("AzureAsyncOperationUri") or "")
        if not operation.startswith(f"{self.workspace.resource_manager}/"):  # a token goes along
            return "", ""
        try:
            error = self.workspace.send("GET", operation, what=self.what).json().get("error") or {}
        except (PhiflowError, ValueError):
            return "", ""
        inner: dict[str, Any] = next((detail for detail in error.get("details") or () if detail.get("message")), {})
        return str(error.get("code") or ""), clean(str(error.get("message") or inner.get("message") or ""))

    def _pauses(self) -> Iterator[float]:
        """Seconds between looks: short at first, since much is done at once, then as configured."""
        pause, longest = _FIRST_PAUSE_SECONDS, self.workspace.config.poll_seconds
        while True:
            yield min(pause, longest)
            pause *= 1.5


def list_all(workspace: Workspace, path: str, what: str, api: str = API, **params: str) -> Iterator[dict[str, Any]]:
    """Every resource of a kind, by its path below the workspace, page by page."""
    url, query = f"{workspace.resource_id}/{path}", {"api-version": api, **params}
    while url:
        page = workspace.send("GET", url, params=query, what=what).json()
        yield from page.get("value") or ()
        url, query = str(page.get("nextLink") or ""), {}


def stop_polling(poller: Any) -> None:
    """End the SDK's own polling, which asks every few seconds in a thread, beside ours and for nobody."""
    poller.polling_method().finished = lambda: True


def state_of(resource: dict[str, Any]) -> str:
    """The provisioning state: Creating, Updating, Succeeded, Failed, Deleting, ..."""
    return str(resource["properties"].get("provisioningState") or "")
