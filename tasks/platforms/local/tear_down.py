"""Ends what one configuration has on this machine; the files stay, since they cost nothing but disk."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.platforms.local.chat import program_name
from tasks.platforms.retention import shown_bytes
from tasks.platforms.upkeep import Remainder, Removal, Scope, TearDown

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.local.local_platform import LocalPlatform

CHAT, ENDPOINT, JOB, SERVICES = "chat app", "endpoint", "job", "services"
_BY = "phiflow down"
_LEASE_SECONDS = 45.0


class LocalTearDown:
    """One look at what a configuration has in a state folder."""

    def __init__(self, config: PipelineConfig, platform: LocalPlatform) -> None:
        self._config = config
        self._platform = platform

    def plan(self, scope: Scope) -> TearDown:
        """What ends with a scope, in this order, and what is left then."""
        endpoint, platform = self._config.endpoint_name, self._platform
        removals = [] if scope == Scope.COMPUTE else list(chat_removals(platform, endpoint))
        if scope in (Scope.ENDPOINT, Scope.ALL):
            removals += self._endpoint(endpoint)
        if scope in (Scope.COMPUTE, Scope.ALL):
            removals += self._jobs("" if scope == Scope.ALL else self._config.name)
        if scope == Scope.ALL:
            removals += self._services(ending={_name_of_program(removal) for removal in removals})
        return TearDown(scope=scope, removals=tuple(removals), remainders=tuple(self._left(scope)))

    def remove(self, removal: Removal) -> None:
        """End one thing, and return when it has ended."""
        platform = self._platform
        if removal.kind == CHAT:
            platform.chat.remove(removal.location)
        elif removal.kind == ENDPOINT:
            with platform.endpoints.lease(removal.location, _BY, _LEASE_SECONDS):
                delete_endpoint(platform, removal.location)
        elif removal.kind == JOB:
            for job in platform.jobs.running():
                if job.name == removal.location:
                    platform.jobs.cancel(job, _BY)
        else:
            platform.services.interrupt_runs()  # they would start again what is being ended
            platform.services.stop()

    def _endpoint(self, name: str) -> Iterator[Removal]:
        endpoints = self._platform.endpoints
        if name not in endpoints.names():
            return
        state = endpoints.record(name)
        serving = max(state["traffic"], key=state["traffic"].__getitem__, default="")
        deployments = f"with {len(state['deployments'])} deployment(s)"
        effect = f"nothing serves, {deployments}"
        if serving and state["traffic"][serving]:
            version = state["deployments"][serving]["model_version"]
            told = "nothing will answer, and no version is left to roll back to"
            effect = f"version {version} serves, {deployments}; {told}"
        if frozen := state.get("frozen"):
            effect += f"; frozen: {frozen}"
        yield Removal(kind=ENDPOINT, name=name, location=name, effect=effect)

    def _jobs(self, run: str) -> Iterator[Removal]:
        for job in self._platform.jobs.running(run):
            state = self._platform.jobs.read(job).state
            effect = f"{state}; it stops with a checkpoint, and the next run continues it"
            yield Removal(kind=JOB, name=job.name, location=job.name, effect=effect)

    def _services(self, ending: set[str]) -> Iterator[Removal]:
        """Everything else that is supervised, ended as `phiflow stop` does; definitions stay."""
        running = [one["name"] for one in self._platform.services.table() if one["state"] != "stopped"]
        names = [name for name in running if name not in ending and not _is_server_of(name, self._config.endpoint_name)]
        if names:
            effect = "they end; phiflow run starts them again"
            yield Removal(kind=SERVICES, name=", ".join(names), location=SERVICES, effect=effect)

    def _left(self, scope: Scope) -> Iterator[Remainder]:
        root = self._platform.home.root
        if scope == Scope.ALL:
            kinds = "data, models, checkpoints, environments and the services' records"
            reason = f"{shown_bytes(folder_bytes(root))} of disk: {kinds}"
            yield Remainder(kind="files", name=str(root), reason=reason, fix=f"rm -rf {root}")
            return
        running = [one["name"] for one in self._platform.services.table() if one["state"] != "stopped"]
        if running:
            reason = f"{', '.join(running)} run on this machine"
            yield Remainder(kind=SERVICES, name=f"of {root}", reason=reason, fix="phiflow stop")


def chat_removals(platform: LocalPlatform, endpoint: str) -> Iterator[Removal]:
    """The chat app in front of an endpoint, if there is one on this machine."""
    if platform.services.status(program_name(endpoint)) or platform.chat.read(endpoint):
        effect = "people lose the page; their conversations stay in its history file"
        yield Removal(kind=CHAT, name=endpoint, location=endpoint, effect=effect)


def delete_endpoint(platform: LocalPlatform, name: str) -> None:
    """Out of the gateway's table first, then its servers, then its files; under the endpoint's lease."""
    endpoints = platform.endpoints
    endpoints.set_traffic(name, {}, "deleted")
    for deployment in endpoints.record(name)["deployments"]:
        endpoints.delete_deployment(name, deployment)
    folder = platform.home.path("endpoints", name)
    (folder / "endpoint.json").unlink(missing_ok=True)
    shutil.rmtree(folder)


def folder_bytes(root: Path) -> int:
    """The bytes of the files below a folder; a link counts nothing, and neither does what vanishes meanwhile."""
    total = 0
    for folder, _, names in os.walk(root):
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path):
                total += os.path.getsize(path)
    return total


def _name_of_program(removal: Removal) -> str:
    return program_name(removal.location) if removal.kind == CHAT else ""


def _is_server_of(program: str, endpoint: str) -> bool:
    """Whether a program is a model server of the endpoint; another endpoint's name may begin with this one's."""
    return re.fullmatch(rf"server-{re.escape(endpoint)}-v[^-]+-[0-9a-f]{{8}}", program) is not None
