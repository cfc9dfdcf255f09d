"""What the emulator's tests of jobs and endpoints need in the workspace: code, data, models, and a way to wait."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from azure.storage.blob import BlobServiceClient

from tests.azure_emulator.azurite import open_client
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE

W = SCOPE.workspace_id
ASSETS = "?api-version=2023-04-01-preview"
JOBS = "?api-version=2025-01-01-preview"
ENDPOINTS = "?api-version=2022-02-01-preview"
DATASTORE = "azureml://datastores/workspaceblobstore/paths"
ENDED = ("Completed", "Failed", "Canceled")


class Workbench:
    """One emulator with an environment without packages, `plain`, and clusters as they are needed."""

    def __init__(self, emulator: EmulatorProcess) -> None:
        self.emulator = emulator
        connection = json.loads((emulator.state / "emulator" / "secrets" / "storage.json").read_text())
        self.blobs: BlobServiceClient = open_client(connection)
        store = self.read(f"{W}/datastores/workspaceblobstore{ASSETS}")
        self._container: str = store["properties"]["containerName"]
        route = {"path": "/", "port": 5001}
        routes = {"livenessRoute": route, "readinessRoute": route, "scoringRoute": route}
        content = {"properties": {"image": "mcr.microsoft.com/x", "inferenceConfig": routes}}
        emulator.send("PUT", f"{W}/environments/plain/versions/1{ASSETS}", content)

    def cluster(self, name: str, nodes: int) -> str:
        """Have a cluster, and return its id."""
        inner = {"vmSize": "Standard_DS3_v2", "scaleSettings": {"minNodeCount": 0, "maxNodeCount": nodes}}
        body = {"location": SCOPE.location, "properties": {"computeType": "AmlCompute", "properties": inner}}
        answer = self.emulator.send("PUT", f"{W}/computes/{name}?api-version=2023-08-01-preview", body)
        assert answer.ok, answer.text
        return f"{W}/computes/{name}"

    def put(self, path: str, body: dict[str, Any]) -> None:
        """PUT a resource of the workspace, by its path with its api-version."""
        answer = self.emulator.send("PUT", f"{W}/{path}", body)
        assert answer.ok, answer.text

    def age(self, resource_id: str, hours: float) -> None:
        """Make a resource older."""
        answer = self.emulator.send("PUT", "/_emulator/age", {"id": resource_id, "hours": hours})
        assert answer.status_code == 204, answer.text

    def write(self, path: str, content: str) -> str:
        """Write a blob of the default datastore, and return its URI."""
        self.blobs.get_blob_client(self._container, path).upload_blob(content.encode(), overwrite=True)
        return f"{DATASTORE}/{path}"

    def files(self, prefix: str) -> dict[str, str]:
        """The blobs of the default datastore below a prefix: relative path and text."""
        container = self.blobs.get_container_client(self._container)
        names = list(container.list_blob_names(name_starts_with=f"{prefix}/"))
        return {name[len(prefix) + 1 :]: container.download_blob(name).readall().decode() for name in names}

    def code(self, name: str, **files: str) -> str:
        """Register a code snapshot of Python files, and return its id."""
        for module, text in files.items():
            self.write(f"code/{name}/{module}.py", text)
        body = {"properties": {"codeUri": f"{DATASTORE}/code/{name}"}}
        answer = self.emulator.send("PUT", f"{W}/codes/{name}/versions/1{ASSETS}", body)
        assert answer.ok, answer.text
        return f"{W}/codes/{name}/versions/1"

    def model(self, name: str, version: str, /, **files: str) -> str:
        """Register a model of text files, and return its id."""
        for file, text in files.items():
            self.write(f"models/{name}/{version}/{file}.txt", text)
        body = {"properties": {"modelUri": f"{DATASTORE}/models/{name}/{version}", "modelType": "custom_model"}}
        answer = self.emulator.send("PUT", f"{W}/models/{name}/versions/{version}{ASSETS}", body)
        assert answer.ok, answer.text
        return f"{W}/models/{name}/versions/{version}"

    def job(self, command: str, cluster: str, **more: Any) -> dict[str, Any]:
        """The body that submits a job."""
        properties = {
            "jobType": "Command",
            "command": command,
            "environmentId": f"{W}/environments/plain/versions/1",
            "computeId": cluster,
            "experimentName": "tests",
        }
        return {"properties": {**properties, **more}}

    def submit(self, name: str, body: dict[str, Any]) -> None:
        """Submit a job."""
        answer = self.emulator.send("PUT", f"{W}/jobs/{name}{JOBS}", body)
        assert answer.status_code == 201, answer.text

    def status(self, name: str) -> str:
        """A job's state."""
        return str(self.read(f"{W}/jobs/{name}{JOBS}")["properties"]["status"])

    def ended(self, name: str, seconds: float = 60) -> str:
        """The state that a job ends in."""
        return str(until(lambda: (state := self.status(name)) in ENDED and state, seconds))

    def details(self, name: str) -> dict[str, Any]:
        """What run history says of a job."""
        return self.read(f"/history/v1.0{W}/runs/{name}/details")

    def read(self, path: str) -> dict[str, Any]:
        """GET something that is there."""
        answer = self.emulator.send("GET", path)
        assert answer.status_code == 200, answer.text
        value: dict[str, Any] = answer.json()
        return value

    def finished(self, answer: Any, seconds: float = 60) -> dict[str, Any]:
        """The status of the operation that a request began, when it has ended."""
        assert answer.status_code in (200, 201, 202), answer.text
        path = answer.headers["Azure-AsyncOperation"].removeprefix(self.emulator.url)
        shown: dict[str, Any] = until(lambda: (now := self.read(path))["status"] != "Updating" and now, seconds)
        return shown


def until(condition: Callable[[], Any], seconds: float = 60) -> Any:
    """Poll until the condition holds, and return what it gave."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"did not happen within {seconds:g} s"
        time.sleep(0.05)
    return value
