"""Deletes one thing on this machine that nobody uses, after another look at it; what is in use again stays."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.errors import ConflictError
from tasks.platforms.local import environments
from tasks.platforms.local.endpoints import rollout_of
from tasks.platforms.local.files import file_lock
from tasks.platforms.local.leftovers import Leftovers
from tasks.platforms.local.tear_down import delete_endpoint
from tasks.platforms.upkeep import Leftover, LeftoverKind

if TYPE_CHECKING:
    from tasks.platforms.local.local_platform import LocalPlatform

_BY = "phiflow sweep"
_LOCK_SECONDS = 5.0


class LeftoverRemoval:
    """Deletes leftovers of one state folder."""

    def __init__(self, platform: LocalPlatform) -> None:
        self._platform = platform
        self._home = platform.home

    def remove(self, leftover: Leftover) -> None:
        """Look again, and delete; ConflictError when it is in use again."""
        methods: dict[LeftoverKind, Callable[[str], None]] = {
            LeftoverKind.DEPLOYMENT: self._deployment,
            LeftoverKind.ENDPOINT: self._endpoint,
            LeftoverKind.JOB: self._job,
            LeftoverKind.MODEL: self._model,
            LeftoverKind.CHECKPOINTS: self._checkpoints,
            LeftoverKind.ENVIRONMENT: self._environment,
            LeftoverKind.DATA: self._data,
        }
        methods[leftover.kind](leftover.location)

    def _deployment(self, location: str) -> None:
        endpoint, _, name = location.partition("/")
        endpoints = self._platform.endpoints
        if endpoint not in endpoints.names():
            return
        with endpoints.lease(endpoint, _BY, _LOCK_SECONDS):
            rollout = self._require_at_rest(endpoint)
            if rollout and name in (rollout.candidate, *dict(rollout.traffic_before)):
                raise ConflictError(f"Deployment {name} on {endpoint} is part of a rollout of run {rollout.run_id}.")
            endpoints.delete_deployment(endpoint, name)

    def _endpoint(self, name: str) -> None:
        if name not in self._platform.endpoints.names():
            return
        with self._platform.endpoints.lease(name, _BY, _LOCK_SECONDS):
            if self._require_at_rest(name):
                raise ConflictError(f"Endpoint {name} has a rollout again.")
            delete_endpoint(self._platform, name)
        self._platform.chat.remove(name)

    def _require_at_rest(self, endpoint: str) -> Any:
        state = self._platform.endpoints.record(endpoint)
        if frozen := state.get("frozen"):
            raise ConflictError(f"Endpoint {endpoint} is frozen: {frozen}.", fix="Thaw it with: phiflow freeze --off")
        return rollout_of(state)

    def _job(self, name: str) -> None:
        for job in self._platform.jobs.running():
            if job.name == name:
                self._platform.jobs.cancel(job, _BY)

    def _model(self, location: str) -> None:
        name, _, number = location.partition(":")
        found = [one for one in self._platform.models.registered() if (one.name, one.version) == (name, number)]
        for version in found:
            _require_unused(f"Version {number} of model {name}", Leftovers(self._platform).use_of_model(version))
            # Its job has then not completed, so that the next run with its content trains again.
            if version.job:
                _delete(self._home.path("jobs", version.job, "model"))
            self._platform.models.delete(version)

    def _checkpoints(self, location: str) -> None:
        key = Path(location).name
        if any(job.key == key for job in self._platform.jobs.running()):
            raise ConflictError(f"The checkpoints of {key} are in use again: an attempt has not ended.")
        _delete(Path(location))

    def _environment(self, location: str) -> None:
        folder = Path(location)
        with file_lock(folder.with_name(f".{folder.name}.lock"), _LOCK_SECONDS, f"environment {folder.name}"):
            _require_unused(f"Environment {folder.name}", Leftovers(self._platform).use_of_environment(folder))
            environments.remove(folder)

    def _data(self, location: str) -> None:
        folder = Path(location)
        with file_lock(folder.with_name(f".{folder.name}.lock"), _LOCK_SECONDS, f"data {folder.name}"):
            _require_unused(f"Data {folder.name}", Leftovers(self._platform).use_of_data(folder, []))
            (folder / "manifest.json").unlink(missing_ok=True)  # first, so that nobody adopts what is half deleted
            _delete(folder)


def _require_unused(what: str, use: str) -> None:
    if use:
        raise ConflictError(f"{what} is in use again: {use}.")


def _delete(folder: Path) -> None:
    if folder.is_dir():
        shutil.rmtree(folder)
