"""Long-running operations: begun by a request, asked for by its status URL until they have ended, kept on the disk."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.web import Answer, Request, not_found, now

if TYPE_CHECKING:
    from tests.azure_emulator.arm import Scope
    from tests.azure_emulator.store import Store

_SHORTEST_POLL = {"retry-after-ms": "50"}
_FOLDER = "/_operations"


class Operations:
    """The operations of one workspace.

    Families as in the service: `compute` and `workspace` (InProgress, Succeeded) for clusters and workspaces, `mfe`
    (with id, name, times) for endpoints and deployments, and `arm` (a result, no status) for what Resource Manager
    itself does.
    """

    def __init__(self, store: Store, scope: Scope, url: str) -> None:
        self._store = store
        self._scope = scope
        self._url = url

    def start(
        self,
        request: Request,
        work: Callable[[dict[str, Any] | None], None] | None = None,
        *,
        family: str = "compute",
        seconds: float = 0.0,
        resource: str = "",
        kind: str = "oe",
    ) -> str:
        """Begin an operation and return its id.

        Args:
            work: done in a thread after `seconds`, and given the error that a scenario wants; what it raises ends
                the operation as failed. None: the operation ends when `finish` is called.
            resource: the id of what it makes.
            kind: `oe` or `od`, which the service puts before the ids of endpoints and deployments.
        """
        name = str(uuid.uuid4())
        if family == "mfe":
            name = f"{kind}:{uuid.uuid5(uuid.NAMESPACE_URL, self._scope.workspace_id)}:{name}"
        record = {
            "name": name,
            "family": family,
            "status": "InProgress",
            "startTime": now(),
            "resource": resource,
            "stuck": request.stuck,
            "fault": request.fault,
        }
        self._store.put(f"{_FOLDER}/{name}", record)
        if work is not None:
            threading.Thread(target=self._run, args=(name, work, seconds), daemon=True).start()
        return name

    def finish(self, name: str, error: dict[str, Any] | None = None, result: dict[str, Any] | None = None) -> None:
        """End an operation, as failed when there is an error (`code` and `message`)."""
        with self._store.lock:
            record = self._store.get(f"{_FOLDER}/{name}")
            if record is None or record["stuck"]:
                return
            error = error or record["fault"]
            if record["status"] != "InProgress":
                return
            record |= {"status": "Failed" if error else "Succeeded", "endTime": now(), "error": error, "result": result}
            self._store.put(f"{_FOLDER}/{name}", record)

    def is_stuck(self, name: str) -> bool:
        """Whether a scenario wants it never to end."""
        record = self._store.get(f"{_FOLDER}/{name}")
        return bool(record and record["stuck"])

    def fault(self, name: str) -> dict[str, Any] | None:
        """The error that a scenario wants it to end with."""
        record = self._store.get(f"{_FOLDER}/{name}")
        return record and record["fault"]

    def unfinished(self) -> list[dict[str, Any]]:
        """The records of those that had not ended when the emulator did."""
        return [record for record in self._store.list(_FOLDER) if record["status"] == "InProgress"]

    def status_url(self, name: str, api_version: str) -> str:
        """Where the status is asked for, as in the header Azure-AsyncOperation."""
        family = self._family(name)
        tail = {"compute": "&service=new", "workspace": "&type=async"}.get(family, "")
        return f"{self._url}{self._base}/{family}OperationsStatus/{name}?api-version={api_version}{tail}"

    def result_url(self, name: str, api_version: str) -> str:
        """Where the result is asked for, as in the header Location of a deletion."""
        if (family := self._family(name)) == "arm":
            return f"{self._url}{self._scope.subscription_id}/operationresults/{name}?api-version={api_version}"
        if family == "workspace":
            return self.status_url(name, api_version).replace("type=async", "type=location")
        return f"{self._url}{self._base}/{family}OperationResults/{name}?api-version={api_version}"

    def headers(self, name: str, request: Request, *, location: str = "") -> dict[str, str]:
        """The headers of a response that began an operation."""
        told = {"Azure-AsyncOperation": self.status_url(name, request.api_version), **_SHORTEST_POLL}
        if location:
            told["Location"] = location
        if ":" in name:
            told["x-ms-async-operation-timeout"] = "PT1H"
        return told

    def read_status(self, request: Request) -> Answer:
        """Answer `.../mfeOperationsStatus/{id}` and `.../computeOperationsStatus/{id}`."""
        record = self._find(request)
        ended = record["status"] != "InProgress"
        if request.query.get("type") == "location":
            return self.read_result(request)
        if record["family"] != "mfe":
            body: dict[str, Any] = {"status": record["status"]}
            if record["status"] == "Succeeded":
                body["percentComplete"] = 100.0
        else:
            body = {
                "id": request.path,
                "name": record["name"],
                "startTime": record["startTime"],
                **({"endTime": record["endTime"]} if ended else {}),
                "percentComplete": 100.0 if ended else 0.0,
                "status": record["status"] if ended else "Updating",
            }
        if record.get("error"):
            body["error"] = {"details": [], "additionalInfo": [], **record["error"]}
        return Answer(200, body, {} if ended else dict(_SHORTEST_POLL))

    def read_result(self, request: Request) -> Answer:
        """Answer `.../mfeOperationResults/{id}`: 202 until the operation has ended, then what it made, or nothing."""
        record = self._find(request)
        if record["status"] == "InProgress":
            url = self.result_url(record["name"], request.api_version)
            return Answer(202, None, {"Location": url, **_SHORTEST_POLL})
        if record["family"] == "arm":
            return self._arm_result(record)
        made = self._store.get(record["resource"]) if record["resource"] else None
        return Answer(200, made) if made else Answer(204)

    @staticmethod
    def _arm_result(record: dict[str, Any]) -> Answer:
        if record["error"]:
            return Answer(int(record["error"].get("status", 409)), {"error": _without_status(record["error"])})
        return Answer(200, record["result"])

    def _family(self, name: str) -> str:
        record = self._store.get(f"{_FOLDER}/{name}")
        return str(record["family"]) if record else "compute"

    @property
    def _base(self) -> str:
        scope = self._scope
        return f"{scope.subscription_id}/providers/Microsoft.MachineLearningServices/locations/{scope.location}"

    def _find(self, request: Request) -> dict[str, Any]:
        record = self._store.get(f"{_FOLDER}/{request.parameters['id']}")
        if record is None:
            raise not_found(f"Could not find operation {request.parameters['id']}.")
        return record

    def _run(self, name: str, work: Callable[[dict[str, Any] | None], None], seconds: float) -> None:
        time.sleep(seconds)
        if self.is_stuck(name):
            return
        try:
            work(self.fault(name))
        except Exception as error:  # whatever it is, whoever waits must learn of it
            self.finish(name, {"code": "InternalServerError", "message": f"{type(error).__name__}: {error}"})
            raise
        self.finish(name)


def _without_status(error: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in error.items() if key != "status"}
