"""The workspace's MLflow: one plain MLflow server of the local platform behind the addresses azureml-mlflow uses.

What Azure's tracking server does not know, the logged models and traces of MLflow 3 among it, is answered 404.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import requests

from tests.azure_emulator import mlflow_ids
from tests.azure_emulator.node_records import read_json, write_json

_KNOWN = (
    *(f"experiments/{call}" for call in ("create", "get", "get-by-name", "search", "list", "update", "delete")),
    *("experiments/restore", "experiments/set-experiment-tag"),
    *(f"runs/{call}" for call in ("create", "update", "get", "search", "delete", "restore", "log-metric")),
    *("runs/log-parameter", "runs/log-batch", "runs/set-tag", "runs/delete-tag"),
    *("metrics/get-history", "artifacts/list"),
)
_STATUS = {"Completed": "FINISHED", "Failed": "FAILED", "Canceled": "KILLED"}
_PATIENCE_SECONDS = 30.0


class Mlflow:
    """The tracking server of one emulator.

    Args:
        start: starts or adopts the MLflow server and gives its URL.
        folder: where the runs of jobs are remembered.
        job: gives a job's resource as it is shown, or None.
    """

    def __init__(self, start: Callable[[], str], folder: Path, job: Callable[[str], Mapping[str, Any] | None]) -> None:
        self._start = start
        self._runs = folder / "mlflow-runs.json"
        self._job = job
        self._lock = threading.Lock()
        self._url = ""
        self._closed: set[str] = set()
        self._session = requests.Session()
        self._session.trust_env = False

    def warm_up(self) -> None:
        """Start the server in the background: a first job would lose its metrics while it waits."""
        if not self._url:
            threading.Thread(target=self._server, daemon=True, name="mlflow").start()

    def forget(self) -> None:
        """Forget which runs are whose: a later job of the same name gets one of its own."""
        with self._lock:
            self._runs.unlink(missing_ok=True)
            self._closed.clear()

    def answer(self, method: str, call: str, query: Mapping[str, str], body: bytes) -> tuple[int, bytes]:
        """Answer one call of MLflow's REST API, as in `runs/get`."""
        if call not in _KNOWN:
            return 404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "The requested route does not exist."}'
        server = self._server()
        self._close_ended()
        params = mlflow_ids.translated(dict(query), self._run_to_local, self._experiment_to_local)
        sent = mlflow_ids.translated_text(body, self._run_to_local, self._experiment_to_local)
        answer = self._session.request(
            method,
            f"{server}/api/2.0/mlflow/{call}",
            params=params,
            data=sent,
            headers={"Content-Type": "application/json"},
            timeout=_PATIENCE_SECONDS,
        )
        return answer.status_code, mlflow_ids.translated_text(
            answer.content, self._run_to_azure, self._experiment_to_azure
        )

    def _close_ended(self) -> None:
        """Close the runs of jobs that have ended, which azureml-mlflow leaves to the service."""
        for name, local in (read_json(self._runs, {}) or {}).items():
            job = None if name in self._closed else self._job(name)
            status = _STATUS.get(job["properties"]["status"]) if job else None
            if status:
                self._send("POST", "runs/update", {"run_id": local, "status": status})
                self._closed.add(name)

    def _server(self) -> str:
        with self._lock:
            if not self._url:
                self._url = self._start()
            return self._url

    def _run_to_local(self, run: str) -> str:
        """A job's run is made when it is first asked for."""
        runs = read_json(self._runs, {})
        if run in runs:
            return str(runs[run])
        job = self._job(run)
        if job is None:
            return run
        experiment = self._experiment(job["properties"]["experimentName"])
        with self._lock:
            runs = read_json(self._runs, {})
            if run not in runs:
                tags = [{"key": "mlflow.rootRunId", "value": run}, {"key": "mlflow.user", "value": "Emulator"}]
                wanted = {"experiment_id": experiment, "run_name": job["properties"]["displayName"], "tags": tags}
                made = self._send("POST", "runs/create", wanted).json()
                runs[run] = made["run"]["info"]["run_id"]
                write_json(self._runs, runs)
        return str(runs[run])

    def _run_to_azure(self, run: str) -> str:
        runs = read_json(self._runs, {})
        return next((name for name, local in runs.items() if local == run), run)

    def _experiment(self, name: str) -> str:
        found = self._call("GET", "experiments/get-by-name", {"experiment_name": name})
        if found.ok:
            return str(found.json()["experiment"]["experiment_id"])
        made = self._call("POST", "experiments/create", {"name": name})
        if made.ok:
            return str(made.json()["experiment_id"])
        found = self._call("GET", "experiments/get-by-name", {"experiment_name": name})  # made by another meanwhile
        return str(found.json()["experiment"]["experiment_id"])

    def _experiments(self) -> dict[str, str]:
        """Azure's GUID of each experiment, by the server's own id."""
        found = self._call("POST", "experiments/search", {"max_results": 1000}).json()
        return {one["experiment_id"]: mlflow_ids.experiment_guid(one["name"]) for one in found.get("experiments", [])}

    def _experiment_to_local(self, experiment: str) -> str:
        known = self._experiments()
        return next((local for local, guid in known.items() if guid == experiment), experiment)

    def _experiment_to_azure(self, experiment: str) -> str:
        return self._experiments().get(experiment, experiment)

    def _call(self, method: str, call: str, content: dict[str, Any]) -> requests.Response:
        self._server()
        return self._send(method, call, content)

    def _send(self, method: str, call: str, content: dict[str, Any]) -> requests.Response:
        url = f"{self._url}/api/2.0/mlflow/{call}"
        kept = {"params": content} if method == "GET" else {"json": content}
        return self._session.request(method, url, timeout=_PATIENCE_SECONDS, **kept)
