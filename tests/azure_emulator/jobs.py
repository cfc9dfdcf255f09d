"""The jobs of the workspace: submitted once by name, run by nodes, read, listed, cancelled."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from tests.azure_emulator.job_records import ENDED, JobRecords
from tests.azure_emulator.job_spec import IMMUTABLE, InvalidJobError, JobSpecs
from tests.azure_emulator.node_records import now

_CHANGEABLE = ("description", "displayName", "tags", "isArchived", "experimentName")
_EXISTS = (
    "A job with this name already exists. If you are trying to submit a new job, use a different name. If you are "
    "trying to update an existing job, the existing job's {field} cannot be changed. Only description, displayName, "
    "tags, and isArchived can be updated."
)


class Jobs:
    """The jobs of one workspace, as the service shows them.

    Args:
        workspace: its resource id.
        store: the emulator's resources.
        addresses: gives the emulator's URL.
        launch: completes what a node is given, and starts it.
    """

    def __init__(
        self,
        workspace: str,
        store: Any,
        specs: JobSpecs,
        records: JobRecords,
        url: str,
        launch: Callable[[str, Mapping[str, Any]], None],
    ) -> None:
        self._workspace = workspace
        self._store = store
        self._specs = specs
        self._records = records
        self._url = url
        self._launch = launch
        self._lock = threading.RLock()

    def put(self, name: str, body: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """Submit a job, or change what may change of one that is there.

        Raises:
            InvalidJobError: the service refuses it.
        """
        properties = body.get("properties") or {}
        with self._lock:
            before = self._store.get(self._id(name))
            if before is not None:
                return 200, self._change(before, properties)
            self._specs.require_valid(name, properties)
            resource = self._resource(name, properties)
            self._store.put(self._id(name), resource)
            self._launch(name, resource)
        return 201, self.shown(resource)

    def get(self, name: str) -> dict[str, Any] | None:
        """A job as it is now."""
        resource = self._store.get(self._id(name))
        return self.shown(resource) if resource else None

    def modify(self, name: str, changes: Mapping[str, Any]) -> dict[str, Any] | None:
        """Change descriptive fields; tags and properties are added to those that are there."""
        with self._lock:
            resource = self._store.get(self._id(name))
            if resource is None:
                return None
            for field in ("displayName", "description", "isArchived"):
                if changes.get(field) is not None:
                    resource["properties"][field] = changes[field]
            for field in ("tags", "properties"):
                if changes.get(field):
                    resource["properties"][field] = {**(resource["properties"].get(field) or {}), **changes[field]}
            self._store.put(self._id(name), resource)
            return self.shown(resource)

    def list(self, query: Mapping[str, str]) -> list[dict[str, Any]]:
        """All jobs, the newest first; without the archived ones unless they are asked for."""
        wanted = query.get("listViewType", "ActiveOnly").lower()
        key, equals, value = query.get("tag", "").partition("=")
        found = []
        for resource in self._store.list(f"{self._workspace}/jobs"):
            archived = bool(resource["properties"].get("isArchived"))
            if archived == (wanted == "activeonly") and wanted != "all":
                continue
            tags = resource["properties"].get("tags") or {}
            if key and (key not in tags or (equals and tags[key] != value)):
                continue
            if query.get("jobType") and resource["properties"]["jobType"] != query["jobType"]:
                continue
            found.append(self.shown(resource))
        return sorted(found, key=lambda job: job["systemData"]["createdAt"], reverse=True)

    def cancel(self, name: str) -> bool:
        """Ask for the end of a job; False when there is none."""
        if self._store.get(self._id(name)) is None:
            return False
        self._records.cancel(name)
        return True

    def delete(self, name: str) -> None:
        """Forget an ended job."""
        self._store.delete(self._id(name))
        self._records.remove(name)

    def is_ended(self, name: str) -> bool:
        """Whether the job has come to its end."""
        return self._records.status(name)["status"] in ENDED

    def shown(self, resource: Mapping[str, Any]) -> dict[str, Any]:
        """The stored resource with the state that the node tells."""
        status = self._records.status(resource["name"])["status"]
        return {**resource, "properties": {**resource["properties"], "status": status}}

    def _id(self, name: str) -> str:
        return f"{self._workspace}/jobs/{name}"

    def _change(self, before: dict[str, Any], properties: Mapping[str, Any]) -> dict[str, Any]:
        stored = before["properties"]
        for field in IMMUTABLE:
            if field in properties and not _same(field, properties[field], stored.get(field)):
                raise InvalidJobError(_EXISTS.format(field=field))
        before["properties"] = {**stored, **{key: properties[key] for key in _CHANGEABLE if key in properties}}
        self._store.put(before["id"], before)
        return self.shown(before)

    def _resource(self, name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        resources = properties.get("resources") or {}
        hidden = {"_azureml.ComputeTargetType": "amlctrain"}
        if properties.get("codeId"):
            hidden["ContentSnapshotId"] = properties["codeId"].split("/codes/")[-1].split("/")[0]
        parts = self._workspace.strip("/").split("/")
        short = f"/subscriptions/{parts[1]}/resourcegroups/{parts[3]}/workspaces/{parts[-1]}"
        host = self._url.removeprefix("https://").rstrip("/")
        return {
            "id": self._id(name),
            "name": name,
            "type": "Microsoft.MachineLearningServices/workspaces/jobs",
            "properties": {
                "description": properties.get("description"),
                "tags": dict(properties.get("tags") or {}),
                "properties": {**(properties.get("properties") or {}), **hidden},
                "displayName": properties.get("displayName") or name,
                "status": "Starting",
                "experimentName": properties.get("experimentName") or "Default",
                "services": {
                    "Tracking": _service("Tracking", f"azureml://{host}/mlflow/v1.0{self._workspace}?"),
                    "Studio": _service("Studio", f"https://ml.azure.com/runs/{name}?wsid={short}"),
                },
                "computeId": properties["computeId"],
                "isArchived": bool(properties.get("isArchived")),
                "identity": properties.get("identity"),
                "componentId": None,
                "jobType": "Command",
                "resources": {
                    "instanceCount": resources.get("instanceCount") or 1,
                    "instanceType": resources.get("instanceType"),
                    "properties": resources.get("properties"),
                    "shmSize": resources.get("shmSize") or "2g",
                    "dockerArgs": resources.get("dockerArgs"),
                },
                "codeId": properties.get("codeId"),
                "command": properties["command"],
                "environmentId": properties["environmentId"],
                "inputs": {key: _input(given) for key, given in (properties.get("inputs") or {}).items()},
                "outputs": self._specs.outputs(name, properties),
                "distribution": properties.get("distribution"),
                "limits": _limits(properties.get("limits")),
                "environmentVariables": dict(properties.get("environmentVariables") or {}),
                "parameters": {},
            },
            "systemData": {"createdAt": now(), "createdBy": "Emulator", "createdByType": "User"},
        }


def _service(kind: str, endpoint: str) -> dict[str, Any]:
    empty = {"port": None, "endpoint": endpoint, "status": None, "errorMessage": None, "properties": None}
    return {"jobServiceType": kind, **empty, "nodes": None}


def _input(given: Mapping[str, Any]) -> dict[str, Any]:
    if given["jobInputType"] == "literal":
        return {"description": given.get("description"), "value": given["value"], "jobInputType": "literal"}
    return {
        "description": given.get("description"),
        "uri": given["uri"],
        "mode": given.get("mode") or "ReadOnlyMount",
        "jobInputType": given["jobInputType"],
    }


def _limits(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return {"jobLimitsType": "Command", "timeout": given.get("timeout")} if given else None


def _same(field: str, wanted: Any, stored: Any) -> bool:
    """Whether a request repeats what is stored; what it leaves out, the service had completed."""
    if isinstance(wanted, Mapping):
        stored = stored or {}
        if field in ("inputs", "outputs", "environmentVariables") and set(wanted) - {"default"} != set(stored) - {
            "default"
        }:
            return False
        return all(_same("", value, stored.get(key)) for key, value in wanted.items() if value is not None)
    return wanted is None or wanted == stored or str(wanted).lower() == str(stored).lower()
