"""Deletes what one configuration has in a workspace: what serves, where jobs run, and the workspace itself.

First a list for a person to agree to, then one thing at a time, each awaited. What is gone is not listed, so that a
tear-down that was killed is continued by the next. What has no tag of phiflow's is told as left, with the reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.clean_up.foundation import Foundation
from tasks.platforms.azure.clean_up.inventory import (
    Inventory,
    cluster_machines,
    compute_of,
    is_ours,
    job_machines,
    machines_of,
    tags_of,
    traffic_of,
)
from tasks.platforms.azure.endpoint_state import EndpointNotes, EndpointState
from tasks.platforms.azure.infrastructure import cluster_name
from tasks.platforms.azure.jobs import Jobs
from tasks.platforms.azure.resources import Resource, state_of
from tasks.platforms.errors import ConflictError, TransientPlatformError
from tasks.platforms.local.tear_down import CHAT, chat_removals
from tasks.platforms.refs import JobRef
from tasks.platforms.upkeep import Remainder, Removal, Scope, TearDown

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.azure.client import Workspace
    from tasks.platforms.local.local_platform import LocalPlatform

ENDPOINT, JOB, CLUSTER = "endpoint", "job", "cluster"
_BY = "phiflow down"
_LEASE_SECONDS = 45.0  # longer than a killed run keeps its own
_CANCEL_SECONDS = 600.0
_BEGIN_SECONDS = 900.0
_GONE_SECONDS = 1800.0
_NOT_OURS = "phiflow did not make it"
Item = Removal | Remainder


class AzureTearDown:
    """One look at what a configuration has in a subscription."""

    def __init__(self, config: PipelineConfig, workspace: Workspace, this_machine: LocalPlatform) -> None:
        self._config = config
        self._workspace = workspace
        self._this_machine = this_machine
        self._inventory = Inventory(workspace)
        self._foundation = Foundation(config, workspace, self._inventory)

    def plan(self, scope: Scope) -> TearDown:
        """What goes with a scope, in the order in which it can go, and what is left then."""
        every = scope == Scope.ALL and self._foundation.owns_workspace
        items: list[Item] = [] if scope == Scope.COMPUTE else list(self._chat_apps(every))
        if self._foundation.workspace is not None:
            for part, found in ((Scope.ENDPOINT, self._endpoints(every)), (Scope.COMPUTE, self._compute(every))):
                items += found if scope in (part, Scope.ALL) else _as_left(found, part)
        if scope == Scope.ALL:
            items += self._foundation.items()
        elif self._foundation.workspace is not None:
            items.append(_standing(self._workspace.name))
        return TearDown(
            scope=scope,
            removals=tuple(item for item in items if isinstance(item, Removal)),
            remainders=tuple(item for item in items if isinstance(item, Remainder)),
        )

    def remove(self, removal: Removal) -> None:
        """Delete one thing, and return when it is gone."""
        if removal.kind == CHAT:
            self._this_machine.chat.remove(removal.location)
        elif removal.kind == ENDPOINT:
            with EndpointState(self._workspace.storage).lease(removal.location, _BY, _LEASE_SECONDS):
                delete_endpoint(self._workspace, removal.location)
        elif removal.kind == JOB:
            self._cancel(removal.location)
        elif removal.kind == CLUSTER:
            delete_cluster(self._workspace, removal.location)
        else:
            self._foundation.remove(removal)

    def _chat_apps(self, every: bool) -> Iterator[Removal]:
        """On this machine; those of other machines answer nothing when their endpoint is gone."""
        others = [str(one["name"]) for one in self._inventory.endpoints if is_ours(one)] if every else []
        for name in dict.fromkeys([self._config.endpoint_name, *others]):
            yield from chat_removals(self._this_machine, name)

    def _endpoints(self, every: bool) -> Iterator[Item]:
        """The configuration's endpoint, or every one of phiflow's."""
        for endpoint in self._inventory.endpoints:
            name = str(endpoint["name"])
            if name != self._config.endpoint_name and not (every and is_ours(endpoint)):
                continue
            deployments = self._inventory.deployments[name]
            machines = tuple(size for one in deployments for size in machines_of(one))
            strangers = [one["name"] for one in (endpoint, *deployments) if not is_ours(one)]
            if not strangers:
                effect = self._effect(endpoint, deployments)
                yield Removal(kind=ENDPOINT, name=name, location=name, effect=effect, machines=machines)
            else:
                reason = _NOT_OURS if strangers[0] == name else f"phiflow did not make its deployment {strangers[0]}"
                yield Remainder(kind=ENDPOINT, name=name, reason=reason, bills=bool(machines), machines=machines)

    def _effect(self, endpoint: dict[str, Any], deployments: list[dict[str, Any]]) -> str:
        """What ends with an endpoint, for whoever is asked."""
        traffic = traffic_of(endpoint)
        serving = max(deployments, key=lambda one: traffic.get(one["name"], 0), default=None)
        kept = f" with {len(deployments)} deployment(s)" if deployments else " without a deployment"
        if serving is None or not traffic.get(serving["name"]):
            return f"nothing serves{kept}"
        version = tags_of(serving).get("phiflow.version", "?")
        frozen = (EndpointState(self._workspace.storage).read(endpoint["name"]) or EndpointNotes()).frozen
        told = f"version {version} serves{kept}; nothing will answer, and no version is left to roll back to"
        return f"{told}; frozen: {frozen}" if frozen else told

    def _compute(self, every: bool) -> Iterator[Item]:
        """The configuration's live jobs and its cluster, or all of phiflow's; jobs first."""
        clusters = [one for one in self._inventory.clusters if self._is_meant(one, every)]
        leaving = {one["name"] for one in clusters if is_ours(one)}
        label, stays = f"phiflow.of.{self._config.name}", dict[str, str]()
        for job in self._inventory.live_jobs:
            ours, place = "phiflow.key" in tags_of(job), compute_of(job)
            if not ours:
                stays[place] = f"job {job['name']} is on it, which is not phiflow's"
            elif every or label in tags_of(job) or place in leaving:
                status = str(job["properties"].get("status")).lower()
                after = "its checkpoints go with the storage" if every else "the next run continues it"
                name, machines = str(job["name"]), job_machines(job, self._inventory)
                effect = f"{status}; it is cancelled, and {after}"
                yield Removal(kind=JOB, name=name, location=name, effect=effect, machines=machines)
        for cluster in clusters:
            name, machines = str(cluster["name"]), cluster_machines(cluster, self._inventory)
            reason = stays.get(name, "") if is_ours(cluster) else _NOT_OURS
            if reason:
                yield Remainder(kind=CLUSTER, name=name, reason=reason, bills=bool(machines), machines=machines)
            else:
                effect = f"{len(machines)} node(s) without a job" if machines else "keeps no node"
                yield Removal(kind=CLUSTER, name=name, location=name, effect=effect, machines=machines)

    def _is_meant(self, cluster: dict[str, Any], every: bool) -> bool:
        compute = self._config.compute
        named = cluster_name(compute) if compute.size or compute.name else ""
        return cluster["name"] == named or (every and is_ours(cluster))

    def _cancel(self, name: str) -> None:
        jobs = Jobs(self._workspace)
        job = jobs.find(name)
        if job is None:
            return
        jobs.cancel(job, by=_BY)
        deadline = time.monotonic() + _CANCEL_SECONDS
        while not _has_ended(jobs, job):
            if time.monotonic() > deadline:
                raise TransientPlatformError(
                    f"Job {name} goes on {_CANCEL_SECONDS:.0f} s after it was cancelled.", fix=f"Look at {job.url}."
                )
            time.sleep(min(self._workspace.config.poll_seconds, 5))


def delete_files(config: PipelineConfig, workspace: Workspace) -> Iterator[str]:
    """Delete the files of a configuration's jobs and what was noted of its endpoint; yields a line for each kind.

    Job records, registered models and environment versions stay: they cost nothing and say what happened.
    """
    for prefix in (
        f"phiflow/jobs/{config.name}-",
        f"phiflow/checkpoints/{config.name}-",
        f"phiflow/endpoints/{config.endpoint_name}.",
    ):
        if count := workspace.storage.delete_all(prefix):
            yield f"deleted {count} blobs below {prefix}"


def delete_endpoint(workspace: Workspace, name: str) -> None:
    """Delete an endpoint with all it has, wait until it is gone, and forget what was noted of it."""
    delete = workspace.ml.online_endpoints.begin_delete
    _delete(Resource(workspace, f"onlineEndpoints/{name}", f"Endpoint {name}"), lambda: delete(name))
    EndpointState(workspace.storage).forget(name)


def delete_cluster(workspace: Workspace, name: str) -> None:
    """Delete a cluster, and wait until it is gone."""
    delete = workspace.ml.compute.begin_delete
    _delete(Resource(workspace, f"computes/{name}", f"Cluster {name}"), lambda: delete(name))


def _delete(resource: Resource, delete: Any) -> None:
    def is_going() -> bool:
        found = resource.read()
        return found is None or state_of(found) == "Deleting"

    if not is_going():
        # An endpoint goes only when nothing is being created in it; the service says so with a conflict.
        resource.begin(delete, is_going, _BEGIN_SECONDS)
    left = resource.await_settled(_GONE_SECONDS)
    if left is not None:
        code, message = resource.why_failed(left)
        raise ConflictError(
            f"{resource.what} is there after its deletion: {message or code or 'the service gives no reason'}.",
            fix="It may bill until it is gone; run the same command again.",
        )


def _as_left(items: Iterator[Item], part: Scope) -> list[Item]:
    """What would go with another scope, where it bills."""
    left: list[Item] = []
    for item in items:
        if isinstance(item, Remainder):
            left.append(item)
        elif item.machines:
            fix = f"phiflow down --scope {part}"
            told = Remainder(kind=item.kind, name=item.name, reason=item.effect, bills=True, fix=fix)
            left.append(replace(told, machines=item.machines))
    return left


def _standing(name: str) -> Remainder:
    """The workspace, which stays unless everything goes."""
    return Remainder(
        kind="workspace",
        name=name,
        reason="job records, registered models, environments and data stay; storage and registry bill by the month",
        bills=True,
        fix="phiflow down --scope all",
    )


def _has_ended(jobs: Jobs, job: JobRef) -> bool:
    return jobs.read(job).state.ended
