"""The model registry and job tracking: one MLflow server, spoken to over HTTP."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.platforms.errors import NotFoundError, PhiflowError, TransientPlatformError
from tasks.platforms.local.files import file_lock
from tasks.platforms.local.state import Home
from tasks.platforms.refs import JobRef, JobState, ModelVersion, Origin

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion as RegistryEntry

_DIGEST, _JOB, _DATA = "phiflow.digest", "phiflow.job", "phiflow.data"
_REJECTED = "phiflow.rejected"
_NOTE = "phiflow."
_ENDED = {JobState.COMPLETED: "FINISHED", JobState.FAILED: "FAILED", JobState.CANCELLED: "KILLED"}


class Models:
    """The registered models of one state folder.

    Args:
        tracking_url: gives the MLflow server's address, starting the server when needed.
    """

    def __init__(self, home: Home, tracking_url: Callable[[], str]) -> None:
        self._home = home
        self._tracking_url = tracking_url
        self._made: MlflowClient | None = None

    def start_tracking(self, job_name: str, experiment: str) -> dict[str, str]:
        """Open an MLflow run for a job and return the environment that makes the job write to it."""
        client = self._client()
        found = client.get_experiment_by_name(experiment)
        experiment_id = found.experiment_id if found else client.create_experiment(experiment)
        run = client.create_run(experiment_id, run_name=job_name, tags={_JOB: job_name})
        url = self._tracking_url()
        return {
            "MLFLOW_TRACKING_URI": url,
            "MLFLOW_EXPERIMENT_NAME": experiment,
            "MLFLOW_RUN_ID": run.info.run_id,
            "PHIFLOW_JOB_URL": f"{url}/#/experiments/{experiment_id}/runs/{run.info.run_id}",
        }

    def end_tracking(self, run_id: str, state: JobState) -> None:
        """Close the MLflow run of a job that could not close it itself."""
        client = self._client()
        if run_id and client.get_run(run_id).info.status == "RUNNING":
            client.set_terminated(run_id, _ENDED[state])

    def register(
        self, name: str, job: JobRef, run_id: str, location: str, digest: str, notes: dict[str, str]
    ) -> ModelVersion:
        """Copy the model into the registry's store and give it the next version number.

        Args:
            notes: JSON texts by name: the gate's decision, the lineage.
        """
        from mlflow.exceptions import MlflowException

        client = self._client()
        with file_lock(self._home.folder("models") / f".{name}.lock", 120, f"model {name}"):
            for entry in self._versions(name):
                if entry.tags.get(_DIGEST) == digest:
                    reason = f"version {entry.version} has the same content"
                    return _version(entry, Origin(reused=True, reason=reason))
            try:
                client.log_artifacts(run_id, location, "model")
                artifacts = client.get_run(run_id).info.artifact_uri
                if not self._exists(name):
                    client.create_registered_model(name)
                entry = client.create_model_version(
                    name,
                    source=f"{artifacts}/model",
                    run_id=run_id,
                    tags={_DIGEST: digest, _JOB: job.name, _DATA: job.data_digest, **_noted(notes)},
                )
            except MlflowException as error:
                raise PhiflowError(
                    f"Model {name} could not be registered from job {job.name}: {error.message}"
                ) from error
            return _version(entry, Origin(reused=False, reason="no version had this content"))

    def read(self, name: str, version: str) -> ModelVersion:
        """One version as it is now."""
        for entry in self._versions(name):
            if str(entry.version) == version:
                return _version(entry, Origin(reused=True, reason="read"))
        raise NotFoundError(f"There is no version {version} of model {name} in the registry.")

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """Every version of one model, oldest first."""
        found = sorted(self._versions(name), key=lambda entry: int(entry.version))
        return tuple(_version(entry, Origin(reused=True, reason="read")) for entry in found)

    def registered(self) -> list[ModelVersion]:
        """Every version that phiflow registered, the newest first; starts no server where none was ever needed."""
        if not self._home.path("mlflow", "mlflow.db").exists():
            return []
        found = [entry for entry in self._search("") if entry.tags.get(_DIGEST)]
        found.sort(key=lambda entry: int(entry.version), reverse=True)
        return [_version(entry, Origin(reused=True, reason="read")) for entry in found]

    def delete(self, version: ModelVersion) -> None:
        """Delete the files of a version, and then the version; its job's MLflow run stays."""
        if Path(version.location).is_relative_to(self._home.root):
            shutil.rmtree(version.location, ignore_errors=True)
        self._client().delete_model_version(version.name, version.version)

    def reject(self, version: ModelVersion, reason: str) -> ModelVersion:
        """Tag the version as rejected; an empty reason takes the tag away."""
        client = self._client()
        if reason:
            client.set_model_version_tag(version.name, version.version, _REJECTED, reason)
        elif version.rejected:
            client.delete_model_version_tag(version.name, version.version, _REJECTED)
        return self.read(version.name, version.version)

    def _client(self) -> MlflowClient:
        if self._made is None:
            # Loopback answers at once or is restarting; MLflow's own default would wait minutes.
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "4")
            os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "30")
            os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
            from mlflow import MlflowClient

            logging.getLogger("mlflow").setLevel(logging.WARNING)
            url = self._tracking_url()
            self._made = MlflowClient(tracking_uri=url, registry_uri=url)
        return self._made

    def _exists(self, name: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self._client().get_registered_model(name)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return False
            raise
        return True

    def _versions(self, name: str) -> list[RegistryEntry]:
        return self._search(f"name='{name}'")

    def _search(self, condition: str) -> list[RegistryEntry]:
        from mlflow.exceptions import MlflowException

        try:
            return list(self._client().search_model_versions(condition))
        except MlflowException as error:
            what = f"the versions where {condition}" if condition else "the versions of models"
            raise TransientPlatformError(
                f"The MLflow server at {self._tracking_url()} did not list {what}: {error.message}",
                fix="phiflow status shows whether it runs.",
            ) from error


def _noted(notes: dict[str, str]) -> dict[str, str]:
    return {f"{_NOTE}{name}": text for name, text in notes.items()}


def _version(entry: RegistryEntry, origin: Origin) -> ModelVersion:
    return ModelVersion(
        name=entry.name,
        version=str(entry.version),
        digest=entry.tags.get(_DIGEST, ""),
        job=entry.tags.get(_JOB, ""),
        data_digest=entry.tags.get(_DATA, ""),
        location=str(entry.source).removeprefix("file://"),
        gate=entry.tags.get(f"{_NOTE}gate", "{}"),
        lineage=entry.tags.get(f"{_NOTE}lineage", "{}"),
        rejected=entry.tags.get(_REJECTED, ""),
        origin=origin,
    )
