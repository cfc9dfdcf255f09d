"""Managed online endpoints: made, read, routed and asked; what the service has no place for is kept in storage."""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.deployments import Deployments, tags_of
from tasks.platforms.azure.endpoint_state import EndpointNotes, EndpointState
from tasks.platforms.azure.metrics import read_metrics
from tasks.platforms.azure.resources import Resource, state_of
from tasks.platforms.azure.scoring import Scoring, base_url
from tasks.platforms.contracts import Question
from tasks.platforms.errors import ConflictError, NotFoundError, PhiflowError
from tasks.platforms.refs import (
    Answer,
    DeploymentMetrics,
    DeploymentRef,
    DeploymentStatus,
    EndpointRef,
    EndpointStatus,
    EnvironmentRef,
    ModelVersion,
    Origin,
    RolloutRecord,
    TrafficSplit,
)

if TYPE_CHECKING:
    from tasks.config import ServingConfig
    from tasks.platforms.azure.client import Workspace

_log = logging.getLogger(__name__)
# Conflicts and faults are waited out this long, and then what was begun this long.
_BEGIN_SECONDS = 300.0
_SETTLE_SECONDS = 1200.0


class Endpoints:
    """The endpoints of one workspace; see the port for what each method promises."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._deployments = Deployments(workspace)
        self._scoring = Scoring(workspace, self._deployments)

    def ensure(self, name: str, description: str = "") -> EndpointRef:
        """Make the endpoint, with key authentication and no deployment, unless it exists or is being made."""
        resource = self._resource(name)
        found = resource.read()
        if found is not None and state_of(found) == "Deleting":
            found = resource.await_settled(_SETTLE_SECONDS)
        exists = found is not None
        if not exists:
            self._create(name, resource, description)
        if found is None or state_of(found) != "Succeeded":
            found = resource.await_settled(_SETTLE_SECONDS)
        self._require_usable(name, resource, found)
        assert found is not None
        reason = f"endpoint {name} exists" if exists else f"there was no endpoint {name}"
        return EndpointRef(name=name, url=base_url(found), origin=Origin(reused=exists, reason=reason))

    def _create(self, name: str, resource: Resource, description: str) -> None:
        from azure.ai.ml.entities import IdentityConfiguration, ManagedIdentityConfiguration, ManagedOnlineEndpoint

        identity = self._workspace.config.identity
        assigned = ManagedIdentityConfiguration(resource_id=identity.resource_id, client_id=identity.client_id or None)
        wanted = ManagedOnlineEndpoint(
            name=name,
            description=description or "Chat completions, by phiflow",
            auth_mode="key",
            tags={"phiflow": "1"},
            identity=IdentityConfiguration(type="user_assigned", user_assigned_identities=[assigned])
            if identity.resource_id
            else IdentityConfiguration(type="system_assigned"),
        )
        self._state.forget(name)  # what was noted of an endpoint that somebody has deleted
        create = self._workspace.ml.online_endpoints.begin_create_or_update
        try:
            resource.begin(lambda: create(wanted), lambda: resource.read() is not None, _BEGIN_SECONDS)
        except ConflictError as error:
            error.fix = error.fix or "Endpoint names are unique in a region: set endpoint.name to another."
            raise
        _log.info("Began to make endpoint=%s", name)

    def _require_usable(self, name: str, resource: Resource, found: dict[str, Any] | None) -> None:
        where = f"--workspace-name {self._workspace.name} --resource-group {self._workspace.config.resource_group}"
        delete = f"az ml online-endpoint delete --yes --name {name} {where}"
        if found is None:
            raise ConflictError(f"Endpoint {name} was deleted while it was waited for.", fix="Run it again.")
        if state_of(found) != "Succeeded":
            code, message = resource.why_failed(found)
            raise PhiflowError(
                f"Endpoint {name} is {state_of(found).lower()}: {message or code or 'the service gives no reason'}",
                fix=f"Delete it, and run the same command again: {delete}",
            )
        if str(found["properties"].get("authMode")).lower() != "key":
            raise ConflictError(
                f"Endpoint {name} exists and authenticates by {found['properties'].get('authMode')}, not by key.",
                fix=f"Set endpoint.name to another, or delete it: {delete}",
            )

    def read(self, name: str) -> EndpointStatus | None:
        """The endpoint as the service shows it, with what is noted beside it.

        Deployments that are not phiflow's are shown only while they take traffic, so that none is ever retired.
        """
        found = self._resource(name).read()
        if found is None or state_of(found) == "Deleting":
            return None
        traffic = _traffic(found)
        deployments = [
            one for one in self._deployments.all_of(name) if tags_of(one).get("phiflow") or traffic.get(one["name"], 0)
        ]
        notes = self._state.read(name) or EndpointNotes()
        percents = {one["name"]: traffic.get(one["name"], 0) for one in deployments}
        return EndpointStatus(
            name=name,
            url=base_url(found),
            deployments=tuple(self._deployments.status(name, one, percents[one["name"]]) for one in deployments),
            traffic=_split(name, percents, Origin(reused=True, reason="read")),
            frozen=notes.frozen,
            rollout=notes.rollout,
            history=notes.history,
        )

    def lease(self, name: str, owner: str, wait_seconds: float) -> AbstractContextManager[None]:
        """A Blob lease, which ends by itself when its holder dies."""
        return self._state.lease(name, owner, wait_seconds)

    def deploy(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        """Begin a deployment at 0 %, or adopt the one with that content."""
        return self._deployments.begin(endpoint, model, serving, environment)

    def find_deployment(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        """What `deploy` would adopt or make."""
        return self._deployments.find(endpoint, model, serving, environment)

    def read_deployment(self, endpoint: str, name: str) -> DeploymentStatus:
        """The deployment's state; the service gives no traffic to one that is being created."""
        found = self._deployments.read(endpoint, name)
        percent = 0 if state_of(found) == "Creating" else _traffic(self._require(endpoint)).get(name, 0)
        return self._deployments.status(endpoint, found, percent)

    def delete_deployment(self, endpoint: str, name: str) -> None:
        """Delete it and wait until it bills no more; refused while it has traffic."""
        resource = self._resource(endpoint).read()
        if resource is None:
            return
        if percent := _traffic(resource).get(name, 0):
            raise ConflictError(
                f"Deployment {name} takes {percent} % of {endpoint}'s traffic.", fix="Shift its traffic first."
            )
        self._deployments.delete(endpoint, name)

    def set_traffic(self, endpoint: str, percents: dict[str, int], reason: str) -> TrafficSplit:
        """Send traffic as told, and return when the service does so; all else of the endpoint stays as it is."""
        resource, wanted = self._resource(endpoint), {name: percent for name, percent in percents.items() if percent}
        found = self._require(endpoint)
        known = {one["name"] for one in self._deployments.all_of(endpoint)}
        if unknown := set(percents) - known:
            raise NotFoundError(f"There is no deployment {min(unknown)} on endpoint {endpoint}.")
        split = _split(endpoint, percents, Origin(reused=False, reason=reason))
        if not _routes(found, wanted):
            self._begin_traffic(resource, endpoint, wanted)
            settled = resource.await_settled(_SETTLE_SECONDS)
            if settled is None or not _routes(settled, wanted):
                code, message = resource.why_failed(settled) if settled else ("", "it was deleted")
                raise ConflictError(
                    f"Endpoint {endpoint} did not take the traffic {_shown(wanted)}: "
                    f"{message or code or 'somebody else changed it'}.",
                    fix="phiflow status shows where traffic goes.",
                )
        self._scoring.forget(endpoint)
        self._state.change(endpoint, lambda notes: notes.with_line(percents, reason))
        return split

    def _begin_traffic(self, resource: Resource, endpoint: str, wanted: dict[str, int]) -> None:
        """A full PUT of what the service has, with other traffic."""
        online_endpoints = self._workspace.ml.online_endpoints

        def put() -> Any:
            endpoint_as_it_is = online_endpoints.get(endpoint)
            endpoint_as_it_is.traffic = dict(wanted)
            return online_endpoints.begin_create_or_update(endpoint_as_it_is)

        def is_done() -> bool:
            now = resource.read()
            return now is None or _routes(now, wanted)

        resource.begin(put, is_done, _BEGIN_SECONDS)

    def record_rollout(self, endpoint: str, record: RolloutRecord | None) -> None:
        """Keep the way back beside the endpoint."""
        self._note(endpoint, lambda notes: replace(notes, rollout=record))

    def freeze(self, endpoint: str, reason: str) -> None:
        """Set, or with an empty reason clear, the freeze."""
        self._note(endpoint, lambda notes: replace(notes, frozen=reason))

    def invoke(
        self,
        endpoint: str,
        messages: list[dict[str, Any]],
        *,
        tools: Sequence[dict[str, Any]] = (),
        deployment: str = "",
        max_tokens: int = 128,
        timeout_seconds: float = 60,
    ) -> Answer:
        """One greedy answer."""
        question = Question(messages, max_tokens, tuple(tools))
        return self._scoring.ask(endpoint, question, deployment, timeout_seconds)

    def server(self, endpoint: str) -> str:
        """What kind of server answers most of the endpoint's traffic: `openai` or `mlflow`."""
        return self._scoring.server(endpoint)

    def metrics(self, endpoint: str, window_seconds: int) -> tuple[DeploymentMetrics, ...]:
        """Azure Monitor's counters: whole minutes, some minutes late."""
        return read_metrics(self._workspace, endpoint, window_seconds)

    @functools.cached_property
    def _state(self) -> EndpointState:
        return EndpointState(self._workspace.storage)

    def _note(self, endpoint: str, change: Any) -> None:
        if self._state.read(endpoint) is None:
            self._require(endpoint)
        self._state.change(endpoint, change)

    def _require(self, name: str) -> dict[str, Any]:
        found = self._resource(name).read()
        if found is None:
            raise NotFoundError(f"There is no endpoint {name}.", fix="phiflow run makes it.")
        return found

    def _resource(self, name: str) -> Resource:
        return Resource(self._workspace, f"onlineEndpoints/{name}", f"Endpoint {name}")


def _traffic(endpoint: dict[str, Any]) -> dict[str, int]:
    return {name: int(percent) for name, percent in (endpoint["properties"].get("traffic") or {}).items() if percent}


def _routes(endpoint: dict[str, Any], wanted: dict[str, int]) -> bool:
    """Whether traffic goes as wanted, and nothing is about to change that."""
    return state_of(endpoint) == "Succeeded" and _traffic(endpoint) == wanted


def _split(endpoint: str, percents: dict[str, int], origin: Origin) -> TrafficSplit:
    return TrafficSplit(endpoint=endpoint, percents=tuple(sorted(percents.items())), origin=origin)


def _shown(percents: dict[str, int]) -> str:
    return " ".join(f"{name}={percent}%" for name, percent in sorted(percents.items())) or "no traffic"
