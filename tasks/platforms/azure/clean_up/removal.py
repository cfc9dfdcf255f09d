"""Deletes one thing that nobody uses, after another look at it; what is in use again stays.

In an order that a kill does not harm: what was half deleted is found again.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.clean_up.inventory import (
    Inventory,
    asset_id,
    cluster_in_use,
    data_in_use,
    is_live,
    is_ours,
    kept_nodes,
    tags_of,
    traffic_of,
)
from tasks.platforms.azure.clean_up.leftovers import model_folder
from tasks.platforms.azure.clean_up.tear_down import delete_endpoint
from tasks.platforms.azure.deployments import Deployments
from tasks.platforms.azure.endpoint_state import EndpointNotes, EndpointState
from tasks.platforms.azure.job_request import CHECKPOINTS
from tasks.platforms.azure.jobs import Jobs
from tasks.platforms.azure.preparation import DATA, DATA_KEYS
from tasks.platforms.azure.resources import API, SWEPT, Resource, state_of, stop_polling
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import ConflictError, NotFoundError
from tasks.platforms.upkeep import Leftover, LeftoverKind

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

_BY = "phiflow sweep"
_LEASE_SECONDS = 10.0
_CHANGE_SECONDS = 300.0


class LeftoverRemoval:
    """Deletes leftovers of one workspace."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._state = EndpointState(workspace.storage)
        self._jobs = Jobs(workspace)

    def remove(self, leftover: Leftover) -> None:
        """Look again, and delete.

        Raises:
            ConflictError: it is in use again, or not phiflow's any more; the message says by what.
        """
        methods: dict[LeftoverKind, Callable[[str], None]] = {
            LeftoverKind.DEPLOYMENT: self._deployment,
            LeftoverKind.ENDPOINT: self._endpoint,
            LeftoverKind.CLUSTER: self._cluster,
            LeftoverKind.JOB: self._job,
            LeftoverKind.MODEL: self._model,
            LeftoverKind.CHECKPOINTS: self._checkpoints,
            LeftoverKind.ENVIRONMENT: self._environment,
            LeftoverKind.DATA: self._data,
        }
        methods[leftover.kind](leftover.location)

    def _deployment(self, location: str) -> None:
        endpoint, _, name = location.partition("/")
        what = f"Deployment {name} on endpoint {endpoint}"
        deployments = Deployments(self._workspace)
        with self._state.lease(endpoint, _BY, _LEASE_SECONDS):
            found = Resource(self._workspace, f"onlineEndpoints/{endpoint}", f"Endpoint {endpoint}").read()
            with contextlib.suppress(NotFoundError):
                _require_ours(deployments.read(endpoint, name), what)
                notes = self._require_at_rest(endpoint, what)
                if percent := traffic_of(found or {"properties": {}}).get(name, 0):
                    raise ConflictError(f"{what} takes {percent} % of the traffic again.")
                if notes.rollout and name in (notes.rollout.candidate, *dict(notes.rollout.traffic_before)):
                    raise ConflictError(f"{what} is part of a rollout again, of run {notes.rollout.run_id}.")
                deployments.delete(endpoint, name)

    def _endpoint(self, name: str) -> None:
        what = f"Endpoint {name}"
        with self._state.lease(name, _BY, _LEASE_SECONDS):
            found = Resource(self._workspace, f"onlineEndpoints/{name}", what).read()
            if found is None:
                return
            _require_ours(found, what)
            if self._require_at_rest(name, what).rollout:
                raise ConflictError(f"{what} has a rollout again.")
            for deployment in Deployments(self._workspace).all_of(name):
                _require_ours(deployment, f"Deployment {deployment['name']} on endpoint {name}")
            delete_endpoint(self._workspace, name)

    def _require_at_rest(self, endpoint: str, what: str) -> EndpointNotes:
        notes = self._state.read(endpoint) or EndpointNotes()
        if notes.frozen:
            raise ConflictError(f"{what} is frozen: {notes.frozen}.", fix="Thaw it with: phiflow freeze --off")
        return notes

    def _cluster(self, name: str) -> None:
        """Let its nodes go; the cluster stays, which costs nothing, with its identity and the roles given to that."""
        found = Resource(self._workspace, f"computes/{name}", f"Cluster {name}").read()
        if found is None or not kept_nodes(found):
            return
        _require_ours(found, f"Cluster {name}")
        if cluster_in_use(found, Inventory(self._workspace)):
            raise ConflictError(f"Cluster {name} has a job again.")
        computes = self._workspace.ml.compute
        with translated(f"Cluster {name}"):
            cluster: Any = computes.get(name)
            cluster.min_instances, cluster.tags = 0, {**(cluster.tags or {}), SWEPT: "1"}
            stop_polling(computes.begin_update(cluster))
        resource = Resource(self._workspace, f"computes/{name}", f"Cluster {name}")
        resource.await_settled(_CHANGE_SECONDS)

    def _job(self, name: str) -> None:
        job = self._jobs.find(name)
        if job is not None:
            self._jobs.cancel(job, by=_BY)

    def _model(self, location: str) -> None:
        name, _, number = location.partition(":")
        what, inventory = f"Version {number} of model {name}", Inventory(self._workspace)
        version = next((one for one in inventory.models if asset_id(one) == (name, number)), None)
        if version is None:
            return
        if reason := tags_of(version).get("phiflow.rejected"):
            raise ConflictError(f"{what} was rejected, and stays as evidence: {reason}")
        if (name, number) in inventory.deployed("model") | inventory.in_live_jobs():
            raise ConflictError(f"{what} is in use again.")
        # No run may adopt the job any more: its model is about to go.
        if self._jobs.find(job := tags_of(version).get("phiflow.job", "")):
            self._jobs.tag(job, {SWEPT: "1"})
        if folder := model_folder(self._workspace, version):
            self._workspace.storage.delete_all(f"{folder}/")
        self._delete_asset(f"models/{name}/versions/{number}", what)

    def _checkpoints(self, folder: str) -> None:
        key = folder.removeprefix(f"{CHECKPOINTS}/")
        if any(is_live(job) and tags_of(job)["phiflow.key"] == key for job in Inventory(self._workspace).jobs):
            raise ConflictError(f"The checkpoints of {key} are in use again: an attempt has not ended.")
        self._workspace.storage.delete_all(f"{folder}/")

    def _environment(self, location: str) -> None:
        """Archived, since jobs and deployments that were may name it; its image stays in the registry."""
        name, _, number = location.partition(":")
        inventory = Inventory(self._workspace)
        if all(asset_id(one) != (name, number) for one in inventory.environments):
            return
        if (name, number) in inventory.deployed("environmentId") | inventory.in_live_jobs():
            raise ConflictError(f"Version {number} of environment {name} is in use again.")
        with translated(f"Environment {name}:{number}"):
            self._workspace.ml.environments.archive(name, number)

    def _data(self, folder: str) -> None:
        digest, storage = folder.removeprefix(f"{DATA}/"), self._workspace.storage
        if digest in data_in_use(Inventory(self._workspace)):
            raise ConflictError(f"Data {digest[:16]} is in use again: a model or a job is made from it.")
        # First what leads to it, so that no run adopts what is half deleted.
        for name in _keys_of_data(self._workspace, digest):
            storage.delete(name)
        storage.delete_all(f"{folder}/")

    def _delete_asset(self, path: str, what: str) -> None:
        # The SDK only archives; https://learn.microsoft.com/rest/api/azureml/model-versions/delete
        url = f"{self._workspace.resource_id}/{path}"
        with contextlib.suppress(NotFoundError):
            self._workspace.send("DELETE", url, params={"api-version": API}, what=what)


def _require_ours(resource: dict[str, Any], what: str) -> None:
    if not is_ours(resource):
        raise ConflictError(f"{what} was not made by phiflow, or lost its tag; it stays.")
    if state_of(resource) == "Deleting":
        raise NotFoundError(f"{what} is being deleted already.")


def _keys_of_data(workspace: Workspace, digest: str) -> list[str]:
    """The blobs that say of an input that its prepared data has this digest."""
    storage = workspace.storage
    return [name for name in storage.names(f"{DATA_KEYS}/") if json.loads(storage.read(name)).get("digest") == digest]
