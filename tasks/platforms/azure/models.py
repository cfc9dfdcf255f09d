"""The workspace's registered models: one version for each content, numbered by us."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import ConflictError, DataError, NotFoundError, PermissionDeniedError, PhiflowError
from tasks.platforms.refs import JobRef, ModelVersion, Origin

if TYPE_CHECKING:
    from azure.ai.ml.entities import Model

    from tasks.platforms.azure.client import Workspace

_log = logging.getLogger(__name__)
_DIGEST, _JOB, _DATA, _REJECTED = "phiflow.digest", "phiflow.job", "phiflow.data", "phiflow.rejected"
# Of the properties that hold JSON texts, since tags are short.
_NOTE = "phiflow."
_ATTEMPTS = 5


class Models:
    """The models of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def register(self, name: str, job: JobRef, location: str, digest: str, notes: dict[str, str]) -> ModelVersion:
        """Register what the job left in its declared output, under the next number, with notes as properties.

        Two that register at once ask for the same number; the second is refused and looks again.
        """
        flavors = self._flavors(location, job)
        last: PhiflowError | None = None
        for _ in range(_ATTEMPTS):
            versions = self._versions(name)
            for version in versions:
                if _tags(version).get(_DIGEST) == digest:
                    reason = f"version {version.version} has the same content"
                    return self._ours(version, Origin(reused=True, reason=reason))
            number = next_number([str(version.version) for version in versions])
            try:
                made = self._put(name, number, job, location, digest, notes, flavors)
            except PermissionDeniedError:
                raise
            except PhiflowError as error:
                if not self._is_taken(name, number):
                    raise
                last = error
                continue
            _log.info("Registered model=%s version=%s", name, number)
            return self._ours(made, Origin(reused=False, reason="no version had this content"))
        raise ConflictError(f"Model {name} got no version number in {_ATTEMPTS} attempts.", fix="Run again.") from last

    def read(self, name: str, version: str) -> ModelVersion:
        """One version as it is now."""
        return self._ours(self._get(name, version), Origin(reused=True, reason="read"))

    def versions(self, name: str) -> tuple[ModelVersion, ...]:
        """Every version, oldest first."""
        found = [model for model in self._versions(name) if str(model.version).isdecimal()]
        found.sort(key=lambda model: int(str(model.version)))
        return tuple(self._ours(model, Origin(reused=True, reason="read")) for model in found)

    def reject(self, version: ModelVersion, reason: str) -> ModelVersion:
        """Tag the version as rejected; an empty reason takes the tag away."""
        model = self._get(version.name, version.version)
        tags = {key: value for key, value in _tags(model).items() if key != _REJECTED}
        model.tags = tags | ({_REJECTED: reason} if reason else {})
        with translated(_what(version.name, version.version)):
            self._workspace.ml.models.create_or_update(model)
        return self.read(version.name, version.version)

    def _put(
        self,
        name: str,
        number: str,
        job: JobRef,
        location: str,
        digest: str,
        notes: dict[str, str],
        flavors: dict[str, Any],
    ) -> Model:
        from azure.ai.ml.entities import Model

        wanted = Model(
            name=name,
            version=number,
            type="mlflow_model",
            path=location,
            description=f"From job {job.name}, by phiflow",
            # The SDK cannot read an answer without flavors.
            flavors=flavors,
            tags={"phiflow": "1", _DIGEST: digest, _JOB: job.name, _DATA: job.data_digest},
            properties={f"{_NOTE}{name}": text for name, text in notes.items()},
        )
        with translated(_what(name, number)):
            made: Model = self._workspace.ml.models.create_or_update(wanted)
            return made

    def _versions(self, name: str) -> list[Model]:
        try:
            with translated(f"Model {name}"):
                return list(self._workspace.ml.models.list(name=name))
        except NotFoundError:
            return []

    def _get(self, name: str, version: str) -> Model:
        with translated(_what(name, version)):
            found: Model = self._workspace.ml.models.get(name, version)
            return found

    def _is_taken(self, name: str, number: str) -> bool:
        try:
            self._get(name, number)
        except NotFoundError:
            return False
        return True

    def _flavors(self, location: str, job: JobRef) -> dict[str, dict[str, str]]:
        """The flavours that the model's MLmodel names; DataError when the job left no MLflow model."""
        import yaml

        storage = self._workspace.storage
        try:
            document = yaml.safe_load(storage.read(f"{storage.path_of(location)}/MLmodel")) or {}
        except NotFoundError as error:
            raise DataError(f"Job {job.name} left no MLflow model at {location}.", fix=f"Look at {job.url}.") from error
        return {
            flavor: {key: str(value) for key, value in (settings or {}).items()}
            for flavor, settings in (document.get("flavors") or {}).items()
        }

    def _ours(self, model: Model, origin: Origin) -> ModelVersion:
        tags, storage = _tags(model), self._workspace.storage
        location = str(model.path)
        with contextlib.suppress(NotFoundError):  # as we name it, without the coordinates that the service adds
            location = storage.uri(storage.path_of(location))
        return ModelVersion(
            name=str(model.name),
            version=str(model.version),
            digest=tags.get(_DIGEST, ""),
            job=tags.get(_JOB, ""),
            data_digest=tags.get(_DATA, ""),
            location=location,
            gate=str((model.properties or {}).get(f"{_NOTE}gate") or "{}"),
            lineage=str((model.properties or {}).get(f"{_NOTE}lineage") or "{}"),
            rejected=tags.get(_REJECTED, ""),
            origin=origin,
        )


def next_number(versions: list[str]) -> str:
    """The number after the highest; versions that others named otherwise do not count."""
    return str(max((int(version) for version in versions if version.isdecimal()), default=0) + 1)


def _tags(model: Model) -> dict[str, str]:
    return model.tags or {}


def _what(name: str, version: str) -> str:
    return f"Version {version} of model {name}"
