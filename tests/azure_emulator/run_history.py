"""Run history: what the SDK streams a job's logs from, and where tags of a job are changed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.azure_emulator.job_records import JobRecords
from tests.azure_emulator.node_records import now

# Folders whose files a run shows as its logs.
_SHOWN = re.compile(r"(?:azureml-logs|logs|user_logs|system_logs)/.+")


class RunHistory:
    """The runs behind the jobs of one workspace.

    Args:
        read: gives a job's resource, or None.
        names: lists the artifacts of a job by relative path.
        sign: gives a URL with which an artifact of a job can be read.
    """

    def __init__(
        self,
        records: JobRecords,
        read: Callable[[str], Mapping[str, Any] | None],
        names: Callable[[str], list[str]],
        sign: Callable[[str, str], str],
    ) -> None:
        self._records = records
        self._read = read
        self._names = names
        self._sign = sign

    def details(self, name: str) -> dict[str, Any] | None:
        """The details of a run; None when there is no such job."""
        job = self._read(name)
        if job is None:
            return None
        record = self._records.status(name)
        properties = job["properties"]
        shown = [path for path in self._names(name) if _SHOWN.fullmatch(path)]
        return {
            "runId": name,
            "target": properties["computeId"].rsplit("/", 1)[-1],
            "status": record["status"],
            "startTimeUtc": record.get("started"),
            "endTimeUtc": record.get("ended"),
            "services": {},
            "error": _error(record),
            "warnings": None,
            "properties": properties["properties"],
            "inputDatasets": [],
            "outputDatasets": [],
            "runDefinition": None,
            "logFiles": {path: self._sign(name, path) for path in shown},
            "submittedBy": "Emulator",
        }

    def run(self, name: str) -> dict[str, Any] | None:
        """A run without its logs; None when there is no such job."""
        job = self._read(name)
        if job is None:
            return None
        record = self._records.status(name)
        properties = job["properties"]
        return {
            "runNumber": 1,
            "rootRunId": name,
            "createdUtc": job["systemData"]["createdAt"],
            "runId": name,
            "status": record["status"],
            "startTimeUtc": record.get("started"),
            "endTimeUtc": record.get("ended"),
            "displayName": properties["displayName"],
            "description": properties["description"],
            "dataContainerId": f"dcid.{name}",
            "runType": "azureml.scriptrun",
            "properties": properties["properties"],
            "tags": properties["tags"],
            "target": properties["computeId"].rsplit("/", 1)[-1],
            "error": _error(record),
        }


def _error(record: Mapping[str, Any]) -> dict[str, Any] | None:
    error = record.get("error")
    if not error:
        return None
    return {
        "error": {
            "code": error["code"],
            "severity": None,
            "message": error["message"],
            "messageFormat": None,
            "messageParameters": {},
            "referenceCode": None,
            "detailsUri": None,
            "target": None,
            "details": [],
            "innerError": None,
            "debugInfo": None,
            "additionalInfo": None,
        },
        "correlation": None,
        "environment": None,
        "location": None,
        "time": record.get("ended") or now(),
        "componentName": None,
    }


def discovery(url: str) -> dict[str, str]:
    """The services of the workspace's region; all of them are here."""
    keys = ("api", "catalog", "experimentation", "gallery", "history", "hyperdrive", "labeling", "modelmanagement")
    return {key: url for key in (*keys, "notebooks", "pipelines", "studio")}
