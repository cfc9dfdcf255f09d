"""Metrics of a run to MLflow, when MLFLOW_TRACKING_URI is set; a server that is down never stops the training."""

from __future__ import annotations

import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from trainer.ranks import is_first

log = logging.getLogger(__name__)

_SECONDS_BETWEEN_WRITES = 3.0
# What Azure Machine Learning's tracking server takes in one request, and in one value.
_PARAMS_A_BATCH, _METRICS_A_BATCH, _PARAM_CHARACTERS = 100, 200, 500
_TABLES_TAG = "mlflow.loggedArtifacts"


class Tracker:
    """One MLflow run, or nothing; points are written in batches."""

    def __init__(self) -> None:
        self.run_id: str | None = None
        self._client: Any = None
        self._points: list[tuple[str, float, int, int]] = []
        self._written = time.monotonic()
        self._takes_files = True
        self._tables: list[str] = []

    def start(self, params: dict[str, Any]) -> None:
        """Open the run that the environment names, or a new one."""
        if not os.environ.get("MLFLOW_TRACKING_URI") or not is_first():
            return
        # MLflow's own patience is minutes; a training must not wait that long for its metrics.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"
        self._attempt("start", lambda: self._open(params))

    def point(self, name: str, value: float, step: int) -> None:
        """Add one point of a metric."""
        if self._client is None:
            return
        self._points.append((name, value, int(time.time() * 1000), step))
        if time.monotonic() - self._written > _SECONDS_BETWEEN_WRITES:
            self.flush()

    def flush(self) -> None:
        """Write the points that wait."""
        points, self._points, self._written = self._points, [], time.monotonic()
        if points and self._client is not None:
            self._attempt("write metrics", lambda: self._log(points))

    def table(self, name: str, rows: Sequence[dict[str, Any]]) -> None:
        """Write rows of equal keys as a table that MLflow's pages show, over an older one of that name (.json)."""
        if rows:
            columns = list(rows[0])
            content = {"columns": columns, "data": [[row[column] for column in columns] for row in rows]}
            self._artifact(name, json.dumps(content, ensure_ascii=False).encode(), is_table=True)

    def picture(self, name: str, png: bytes) -> None:
        """Write a picture that MLflow's pages show, over an older one of that name."""
        self._artifact(name, png)

    def page(self, name: str, text: str) -> None:
        """Write a page that MLflow's pages show, over an older one of that name (.html)."""
        self._artifact(name, text.encode())

    def _artifact(self, name: str, content: bytes, is_table: bool = False) -> None:
        # A job on Azure leaves its files in its log folder, which the service keeps and shows with the run.
        if self._client is None or not self._takes_files or _owned_by_service():
            return
        try:
            with tempfile.TemporaryDirectory(prefix="phiflow-") as folder:
                (Path(folder) / name).write_bytes(content)
                self._client.log_artifact(self.run_id, str(Path(folder) / name))
            if is_table and name not in self._tables:
                self._tables.append(name)
                # What mlflow.log_table marks a table with; it would also read the old one back, and need pandas.
                marks = [{"path": table, "type": "table"} for table in self._tables]
                self._client.set_tag(self.run_id, _TABLES_TAG, json.dumps(marks))
        except Exception as error:  # a server may take metrics and no files
            self._takes_files = False
            log.warning("Stopped writing files to MLflow: could not write %s: %s", name, _one_line(error))

    def metrics(self, values: dict[str, float]) -> None:
        """Add values that belong to no step."""
        for name, value in values.items():
            self.point(name, value, 0)

    def finish(self, metrics: dict[str, float], status: str) -> None:
        """Write the final metrics and close the run as FINISHED, FAILED or KILLED."""
        self.metrics(metrics)
        self.flush()
        if self._client is not None and not _owned_by_service():
            self._attempt("close", lambda: self._client.set_terminated(self.run_id, status))

    def _open(self, params: dict[str, Any]) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        client = MlflowClient()
        run_id = os.environ.get("MLFLOW_RUN_ID")
        if run_id and not _owned_by_service():
            client.update_run(run_id, status="RUNNING")
        elif not run_id:
            name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "phiflow")
            experiment = client.get_experiment_by_name(name)
            experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
            run_id = client.create_run(experiment_id, run_name=os.environ.get("PHIFLOW_JOB_NAME")).info.run_id
        self._client, self.run_id = client, run_id
        known = client.get_run(run_id).data.params
        new = [Param(key, str(value)[:_PARAM_CHARACTERS]) for key, value in params.items() if key not in known]
        for begin in range(0, len(new), _PARAMS_A_BATCH):
            client.log_batch(run_id, params=new[begin : begin + _PARAMS_A_BATCH])

    def _log(self, points: list[tuple[str, float, int, int]]) -> None:
        from mlflow.entities import Metric

        metrics = [Metric(key, value, stamp, step) for key, value, stamp, step in points]
        for begin in range(0, len(metrics), _METRICS_A_BATCH):
            self._client.log_batch(self.run_id, metrics=metrics[begin : begin + _METRICS_A_BATCH])

    def _attempt(self, what: str, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:  # any failure of the server means the same here: train on
            self._client = None
            where = os.environ["MLFLOW_TRACKING_URI"]
            log.warning("Stopped tracking: could not %s on %s: %s", what, where, _one_line(error))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]


def _owned_by_service() -> bool:
    """Whether the run is a job's on Azure, whose state the service sets."""
    return bool(os.environ.get("MLFLOW_RUN_ID")) and os.environ["MLFLOW_TRACKING_URI"].startswith("azureml")
