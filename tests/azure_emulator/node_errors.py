"""How the service words a job's failure, as far as that is known from public reports of it."""

from __future__ import annotations

import json
from typing import Any


class JobError(Exception):
    """A job that fails, with the error its run is given."""

    def __init__(self, body: dict[str, Any]) -> None:
        super().__init__(body["message"])
        self.body = body


def user_process(command: str, returncode: int, log: str, tail: str) -> dict[str, Any]:
    """The command ended with another status than 0."""
    program = command.split()[0] if command.split() else "bash"
    return {
        "code": "UserError",
        "message": (
            f"Execution failed. User process '{program}' exited with status code {returncode}. "
            f"Please check log file '{log}' for error details. Error: {tail}"
        ),
    }


def image_build(log: str) -> dict[str, Any]:
    """The environment's image could not be built."""
    return {
        "code": "UserError",
        "message": f"Image build failed. For more details, check log file {log}.",
    }


def preempted() -> dict[str, Any]:
    """A low-priority node was taken away, and the service did not start the job again."""
    return {
        "code": "UserError",
        "message": (
            "AzureMLCompute job failed.\nPreemptionError: Nodes of this job got pre-empted. "
            "Check if the run has failed or restarted.\n\tReason: Received pre-emption warning signal"
        ),
    }


def no_data(name: str, uri: str) -> dict[str, Any]:
    """An input is not where its URI says."""
    details = {
        "code": "data-capability.UriMountSession.PyFuseError",
        "target": "",
        "category": "UserError",
        "error_details": [
            {
                "key": "NonCompliantReason",
                "value": f"DataAccessError(NotFound): input {name} has nothing at {uri}",
            }
        ],
    }
    return {"code": "UserError", "message": json.dumps(details)}


def service_error(message: str) -> dict[str, Any]:
    """Something broke that the user has no part in."""
    return {"code": "ServiceError", "message": f"InternalServerError: {message}"}
