"""Finds what phiflow made in a workspace and nobody uses; `removal` deletes it.

Everything is known by phiflow's tag, whichever configuration it was made for; what has none is not looked at, unless it
uses what has one. Blobs are phiflow's when they are below `phiflow/`.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.clean_up.inventory import (
    Asset,
    Inventory,
    asset_id,
    asset_of,
    changed_at,
    cluster_in_use,
    compute_of,
    data_in_use,
    is_live,
    is_ours,
    job_machines,
    kept_nodes,
    machines_of,
    made_at,
    run_ids,
    size_of,
    tags_of,
    traffic_of,
)
from tasks.platforms.azure.endpoint_state import EndpointNotes, EndpointState
from tasks.platforms.azure.job_request import CHECKPOINTS
from tasks.platforms.azure.preparation import DATA
from tasks.platforms.azure.resources import state_of
from tasks.platforms.errors import NotFoundError
from tasks.platforms.retention import Served, hours_since, last_traffic, shown_bytes, shown_hours, unused
from tasks.platforms.upkeep import Leftover, LeftoverKind

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.azure.client import Workspace
    from tasks.platforms.azure.storage import StoredBlob

_BY_THE_HOUR = "bills by the hour"


class Leftovers:
    """One look at a workspace for what nobody uses."""

    def __init__(self, workspace: Workspace, config: PipelineConfig) -> None:
        self._workspace = workspace
        self._config = config
        self._retention = config.retention
        self._inventory = Inventory(workspace)
        self._state = EndpointState(workspace.storage)

    def find(self) -> Iterator[Leftover]:
        """What bills by the hour first; what uses another thing before that thing."""
        _ = self._workspace.properties  # there is none: said once, instead of each list's own way of saying so
        yield from self._endpoints()
        yield from self._jobs()
        yield from self._clusters()
        models = tuple(self._models())
        yield from models
        yield from self._checkpoints()
        yield from self._environments()
        yield from self._data({leftover.location for leftover in models})

    # What bills by the hour

    def _endpoints(self) -> Iterator[Leftover]:
        """Endpoints past their time to live, else their deployments that have had their soak."""
        for endpoint in self._inventory.endpoints:
            name = str(endpoint["name"])
            if not is_ours(endpoint) or state_of(endpoint) == "Deleting" or self._state.is_leased(name):
                continue
            notes = self._state.read(name) or EndpointNotes()
            if notes.frozen:
                continue
            deployments = self._inventory.deployments[name]
            if self._is_past_its_time(endpoint, deployments, notes):
                yield Leftover(
                    kind=LeftoverKind.ENDPOINT,
                    name=name,
                    reason=f"made {shown_hours(made_at(endpoint))} ago, past retention.endpoint_hours "
                    f"{self._retention.endpoint_hours:g}",
                    location=name,
                    cost=_BY_THE_HOUR if deployments else "",
                    machines=tuple(size for one in deployments for size in machines_of(one)),
                )
            else:
                yield from self._deployments(endpoint, deployments, notes)

    def _is_past_its_time(
        self, endpoint: dict[str, Any], deployments: list[dict[str, Any]], notes: EndpointNotes
    ) -> bool:
        hours = self._retention.endpoint_hours
        if not hours or notes.rollout or not all(map(is_ours, deployments)):
            return False
        return hours_since(made_at(endpoint)) >= hours

    def _deployments(
        self, endpoint: dict[str, Any], deployments: list[dict[str, Any]], notes: EndpointNotes
    ) -> Iterator[Leftover]:
        name, traffic, changed = str(endpoint["name"]), traffic_of(endpoint), changed_at(endpoint)
        ours = {one["name"]: one for one in deployments if is_ours(one)}
        served = [
            Served(
                name=deployment,
                percent=traffic.get(deployment, 0),
                usable=state_of(one) == "Succeeded" and self._version_of(one) not in self._rejected,
                since=last_traffic(deployment, made_at(one), changed, notes.history),
            )
            for deployment, one in ours.items()
        ]
        for idle in unused(served, notes.rollout, self._config.rollout.keep_previous, self._retention.soak_hours):
            yield Leftover(
                kind=LeftoverKind.DEPLOYMENT,
                name=f"{idle.name} on {name}",
                reason=f"no traffic for {shown_hours(idle.since)}, and not kept for roll-back",
                location=f"{name}/{idle.name}",
                cost=_BY_THE_HOUR,
                machines=machines_of(ours[idle.name]),
            )

    def _version_of(self, deployment: dict[str, Any]) -> Asset | None:
        return asset_of(str(deployment["properties"].get("model") or ""))

    @property
    def _rejected(self) -> set[Asset]:
        return {asset_id(one) for one in self._inventory.models if tags_of(one).get("phiflow.rejected")}

    def _jobs(self) -> Iterator[Leftover]:
        for job in self._inventory.jobs:
            if is_live(job):
                yield Leftover(
                    kind=LeftoverKind.JOB,
                    name=str(job["name"]),
                    reason=f"{str(job['properties']['status']).lower()} since {shown_hours(made_at(job))}",
                    location=str(job["name"]),
                    cost=_BY_THE_HOUR,
                    machines=job_machines(job, self._inventory),
                    runs=run_ids(job),
                )

    def _clusters(self) -> Iterator[Leftover]:
        """Clusters that keep nodes, and have had no job for as long as a deployment may soak."""
        soak = self._retention.soak_hours
        for cluster in self._inventory.clusters:
            kept = kept_nodes(cluster)
            if not kept or not is_ours(cluster) or cluster_in_use(cluster, self._inventory):
                continue
            jobs = [made_at(job) for job in self._inventory.all_jobs if compute_of(job) == cluster["name"]]
            since = max([made_at(cluster), *jobs])
            if hours_since(since) >= soak:
                yield Leftover(
                    kind=LeftoverKind.CLUSTER,
                    name=str(cluster["name"]),
                    reason=f"keeps {kept} node(s), and no job was sent to it for {shown_hours(since)}",
                    location=str(cluster["name"]),
                    cost=_BY_THE_HOUR,
                    machines=(size_of(cluster),) * kept,
                )

    # What storage is billed for

    def _models(self) -> Iterator[Leftover]:
        """Versions beyond the last ones that serve nowhere, and show no rejection."""
        used = self._inventory.deployed("model") | self._inventory.in_live_jobs()
        for name, versions in _by_name(self._inventory.models).items():
            versions.sort(key=lambda one: (len(asset_id(one)[1]), asset_id(one)[1]), reverse=True)
            for version in versions[self._retention.keep_last :]:
                if asset_id(version) in used or tags_of(version).get("phiflow.rejected"):
                    continue
                number = asset_id(version)[1]
                yield Leftover(
                    kind=LeftoverKind.MODEL,
                    name=f"{name} version {number}",
                    reason=self._beyond(),
                    location=f"{name}:{number}",
                    cost=self._storage_cost(model_folder(self._workspace, version)),
                )

    def _checkpoints(self) -> Iterator[Leftover]:
        """Checkpoints that no attempt will start from, or has for long."""
        registered = {tags_of(version).get("phiflow.job") for version in self._inventory.models}
        last = {tags_of(job)["phiflow.key"]: job for job in reversed(self._inventory.jobs)}
        live = {tags_of(job)["phiflow.key"] for job in self._inventory.jobs if is_live(job)}
        kept = 0
        # The newest first, so that the last ones of jobs that left a model are kept.
        folders = sorted(self._folders(CHECKPOINTS).items(), key=lambda found: _newest(found[1]), reverse=True)
        for key, blobs in folders:
            job = last.get(key)
            if key in live:
                continue
            if job is not None and job["name"] in registered:
                kept += 1
                if kept <= self._retention.keep_last:
                    continue
                reason = f"job {job['name']} left a registered model; {self._beyond()}"
            else:
                since = made_at(job) if job else _newest(blobs)
                if hours_since(since) < self._retention.checkpoint_hours:
                    continue
                about = f"job {job['name']} left no registered model" if job else "no job has them any more"
                reason = f"{about}, and began {shown_hours(since)} ago"
            yield Leftover(
                kind=LeftoverKind.CHECKPOINTS,
                name=key,
                reason=reason,
                location=f"{CHECKPOINTS}/{key}",
                cost=_stored(blobs),
            )

    def _environments(self) -> Iterator[Leftover]:
        """Versions beyond the last ones that no deployment and no live job is in."""
        used = self._inventory.deployed("environmentId") | self._inventory.in_live_jobs()
        for name, versions in _by_name(self._inventory.environments).items():
            for version in versions[self._retention.keep_last :]:
                if asset_id(version) not in used:
                    number = asset_id(version)[1]
                    yield Leftover(
                        kind=LeftoverKind.ENVIRONMENT,
                        name=f"{name} version {number}",
                        reason=self._beyond(),
                        location=f"{name}:{number}",
                    )

    def _data(self, leaving: set[str]) -> Iterator[Leftover]:
        """Prepared data beyond the last that no model which stays, and no live job, was made from."""
        used = data_in_use(self._inventory, leaving)
        folders = sorted(self._folders(DATA).items(), key=lambda found: _newest(found[1]), reverse=True)
        for digest, blobs in folders[self._retention.keep_last :]:
            if digest not in used:
                yield Leftover(
                    kind=LeftoverKind.DATA,
                    name=digest[:16],
                    reason=f"{self._beyond()}; no model that stays was trained on it",
                    location=f"{DATA}/{digest}",
                    cost=_stored(blobs),
                )

    def _beyond(self) -> str:
        return f"beyond the last {self._retention.keep_last} (retention.keep_last)"

    def _folders(self, root: str) -> dict[str, list[StoredBlob]]:
        """The blobs below a folder by the name of the folder they are in."""
        found: dict[str, list[StoredBlob]] = defaultdict(list)
        for blob in self._workspace.storage.blobs(f"{root}/"):
            name, inside, _ = blob.name.removeprefix(f"{root}/").partition("/")
            if inside:
                found[name].append(blob)
        return found

    def _storage_cost(self, folder: str) -> str:
        return _stored(self._workspace.storage.blobs(f"{folder}/")) if folder else ""


def model_folder(workspace: Workspace, version: dict[str, Any]) -> str:
    """Where the files of a model version lie in the default datastore; empty when they lie elsewhere."""
    try:
        path = workspace.storage.path_of(str(version["properties"].get("modelUri") or ""))
    except NotFoundError:
        return ""
    return path if path.startswith("phiflow/jobs/") else ""


def _by_name(versions: list[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for version in versions:
        found[asset_id(version)[0]].append(version)
    return found


def _newest(blobs: list[StoredBlob]) -> Any:
    return max(blob.modified for blob in blobs)


def _stored(blobs: list[StoredBlob]) -> str:
    return f"{shown_bytes(sum(blob.num_bytes for blob in blobs))} of storage" if blobs else ""
