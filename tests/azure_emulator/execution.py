"""Puts together what runs: jobs, run history, MLflow, endpoints, scoring and metrics of one emulator."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.azure_emulator import scripts
from tests.azure_emulator.deployments import Deployments
from tests.azure_emulator.endpoints import Endpoints
from tests.azure_emulator.job_files import Place, Transfers
from tests.azure_emulator.job_records import JobRecords
from tests.azure_emulator.job_spec import JobSpecs
from tests.azure_emulator.jobs import Jobs
from tests.azure_emulator.mlflow import Mlflow
from tests.azure_emulator.monitor import Monitor
from tests.azure_emulator.names import ML_RESOURCE
from tests.azure_emulator.run_history import RunHistory
from tests.azure_emulator.scoring import Scoring
from tests.azure_emulator.serving import Serving
from tests.azure_emulator.uris import ARTIFACT_CONTAINER

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_log = logging.getLogger(__name__)
_PROJECT = Path(__file__).resolve().parents[2]
_POLL_SECONDS = 0.1
_PATIENCE_SECONDS = 30.0
# How long the service takes for each state that is over at once here.
PHASE_SECONDS = 0.2
_WITH_NODES = ("Preparing", "Running", "Finalizing", "CancelRequested")


def install(emulator: Emulator) -> None:
    """Register the routes of what runs, and take up what an earlier end of the emulator interrupted."""
    from tests.azure_emulator.endpoint_routes import EndpointRoutes
    from tests.azure_emulator.job_routes import JobRoutes

    execution = emulator.execution = Execution(emulator)
    JobRoutes(execution).register(emulator.register)
    EndpointRoutes(execution).register(emulator.register)
    emulator.on_stop(execution.stop)
    execution.start()


class Execution:
    """Jobs and endpoints of one emulator; the routes are in `job_routes` and `endpoint_routes`."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        state, store, workspace = emulator.state, emulator.store, emulator.workspace_id
        source = Path(emulator.options.server_source).absolute() if emulator.options.server_source else None
        self._transfers = Transfers(emulator.storage.client)
        self.specs = JobSpecs(workspace, store.get, _PROJECT / "environments", emulator.local.home.root)
        self.records = JobRecords(state / "jobs", emulator.env)
        self.jobs = Jobs(workspace, store, self.specs, self.records, emulator.url, self._launch)
        self.history = RunHistory(self.records, self.jobs.get, self._artifacts, self._sign)
        self.mlflow = Mlflow(emulator.local.tracking_url, state, self.jobs.get)
        self.monitor = Monitor(state / "requests.jsonl", emulator.options.monitor_lag)
        self.serving = Serving(emulator.local, state / "models", self._transfers, source)
        told: dict[str, Any] = {"url": emulator.url, "phase_seconds": PHASE_SECONDS}
        self.deployments = Deployments(workspace, store, self.specs, self.serving, emulator.scenarios, **told)
        self.endpoints = Endpoints(workspace, store, self.deployments, **told)
        self.scoring = Scoring(self.endpoints.find, self.serving, self.monitor)
        self.closed = threading.Event()
        emulator.quota.is_running = lambda job: self.records.status(job)["status"] in _WITH_NODES

    def start(self) -> None:
        """Take up again what the emulator's end interrupted: jobs, servers, operations."""
        self.records.resume()
        threading.Thread(target=self._revive, daemon=True, name="revive").start()

    def stop(self) -> None:
        """End all that runs; what had not ended goes on at the next start."""
        self.closed.set()
        self.records.suspend()
        self.emulator.local.services.stop()

    def forget(self) -> None:
        """End and forget all that runs in the workspace, which is deleted."""
        for endpoint in self.endpoints.list():
            if self.endpoints.begin_delete(endpoint["name"]):
                self.endpoints.carry_out(endpoint["name"], "", True, fault=None, closed=self.closed)
        names = [job["name"] for job in self.jobs.list({"listViewType": "All"})]
        for name in names:
            self.jobs.cancel(name)
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for name in names:
            while not self.jobs.is_ended(name) and time.monotonic() < deadline:
                time.sleep(_POLL_SECONDS)
            self.records.kill_node(name)
            self.jobs.delete(name)
        self.mlflow.forget()

    def begin(self, operation: str, endpoint: str, deployment: str = "", *, delete: bool = False) -> None:
        """Do in a thread what an operation of the core stands for."""
        arguments = (operation, endpoint, deployment, delete)
        threading.Thread(target=self._work, args=arguments, daemon=True, name=operation).start()

    def finish_when_ended(self, operation: str, job: str) -> None:
        """End the operation of a cancelled job when the job has ended."""

        def wait() -> None:
            while not self.jobs.is_ended(job) and not self.closed.wait(_POLL_SECONDS):
                pass
            self.emulator.operations.finish(operation)

        threading.Thread(target=wait, daemon=True, name=operation).start()

    def _work(self, operation: str, endpoint: str, deployment: str, delete: bool) -> None:
        operations = self.emulator.operations
        if operations.is_stuck(operation):
            return
        try:
            error = self.endpoints.carry_out(
                endpoint, deployment, delete, fault=operations.fault(operation), closed=self.closed
            )
        except Exception as failure:  # a thread has nobody to raise to, and whoever polls must learn of it
            _log.exception("Operation failed name=%s", operation)
            error = {"code": "InternalServerError", "message": f"{type(failure).__name__}: {failure}"}
        if not self.closed.is_set():
            operations.finish(operation, error)

    def _revive(self) -> None:
        self.deployments.restart_servers()
        for record in self.emulator.operations.unfinished():
            _, found, rest = record["resource"].partition("/onlineEndpoints/")
            if record["family"] != "mfe" or not found:
                continue
            endpoint, _, deployment = rest.partition("/deployments/")
            resource = self.emulator.store.get(record["resource"])
            deleting = resource is None or resource["properties"]["provisioningState"] == "Deleting"
            self.begin(record["name"], endpoint, deployment, delete=deleting)

    def _launch(self, name: str, resource: Mapping[str, Any]) -> None:
        emulator, properties = self.emulator, resource["properties"]
        spec = self.specs.node(name, properties)
        spec["cluster"]["folder"] = str(emulator.state / "clusters" / spec["cluster"]["name"])
        variables = self.specs.variables(name, properties, emulator.url, emulator.identity.token(ML_RESOURCE))
        if spec["image"]["folder"]:
            self.mlflow.warm_up()
        more = {
            "storage": str(emulator.connection_file),
            "variables": {**emulator.env, **variables},
            "script": scripts.take_job(emulator.scenarios, name),
            "phase_seconds": PHASE_SECONDS,
        }
        self.records.launch(name, {**spec, **more})

    def _artifacts(self, name: str) -> list[str]:
        prefix = f"ExperimentRun/dcid.{name}/"
        with contextlib.suppress(FileNotFoundError):
            return [path.removeprefix(prefix) for path in self._transfers.names(Place(ARTIFACT_CONTAINER, prefix))]
        return []

    def _sign(self, name: str, path: str) -> str:
        return self.emulator.storage.account().sign_blob(ARTIFACT_CONTAINER, f"ExperimentRun/dcid.{name}/{path}")
