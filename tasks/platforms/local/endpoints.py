"""Endpoints, deployments and traffic: files that the gateway reads, and one model server a deployment."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.errors import (
    ConflictError,
    NotFoundError,
)
from tasks.platforms.local.files import file_lock, read_json, write_json
from tasks.platforms.local.jobs import tail
from tasks.platforms.local.services import HOST, Services
from tasks.platforms.local.state import Home, project_folder
from tasks.platforms.refs import (
    DeploymentRef,
    DeploymentStatus,
    EndpointRef,
    EndpointStatus,
    EnvironmentRef,
    ModelVersion,
    Origin,
    RolloutRecord,
    TrafficSplit,
    digest_of,
)

if TYPE_CHECKING:
    from tasks.config import ServingConfig

_FIRST_SERVER_PORT = 8100
_RESTARTS_THAT_MEAN_BROKEN = 2
_HISTORY_LINES = 50


class Endpoints:
    """The endpoints of one state folder."""

    def __init__(self, home: Home, services: Services) -> None:
        self._home = home
        self._services = services

    def ensure(self, name: str) -> EndpointRef:
        """Make the endpoint, with its key and no deployment, unless it exists."""
        url = self._services.gateway()
        exists = self._path(name).exists()
        if not exists:
            self._home.endpoint_key(name)
            with self._changing(name, create=True):
                pass
        reason = f"endpoint {name} exists" if exists else f"there was no endpoint {name}"
        return EndpointRef(name=name, url=f"{url}/{name}", origin=Origin(reused=exists, reason=reason))

    def read(self, name: str) -> EndpointStatus | None:
        """The endpoint as its files say, each deployment as its server says."""
        state = read_json(self._path(name), None)
        if state is None:
            return None
        return EndpointStatus(
            name=name,
            url=f"{self._services.gateway()}/{name}",
            deployments=tuple(self.read_deployment(name, d) for d in state["deployments"]),
            traffic=_split(name, state["traffic"], Origin(reused=True, reason="read")),
            frozen=state.get("frozen", ""),
            rollout=rollout_of(state),
            history=tuple(state.get("history", ())),
        )

    @contextlib.contextmanager
    def lease(self, name: str, owner: str, wait_seconds: float) -> Iterator[None]:
        """A file lock that ends with its holder, and a note saying who that is."""
        folder = self._home.folder("endpoints", name)
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(file_lock(folder / "lease.lock", wait_seconds, f"endpoint {name}"))
            except ConflictError as error:
                holder = read_json(folder / "lease.json", {}).get("owner", "another run")
                raise ConflictError(
                    f"Endpoint {name} is being changed by {holder}.", fix="Wait for it, or cancel that run."
                ) from error
            write_json(folder / "lease.json", {"owner": owner})
            yield

    def deploy(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        """Define the model server and start it; the name says version and serving configuration."""
        server = self._home.snapshot(project_folder("deployments", "server"), "server")
        name = _deployment_name(model, serving, environment, server.name)
        program = _program(endpoint, name)
        exists = name in (read_json(self._path(endpoint), None) or {"deployments": {}})["deployments"]
        port = self._services.port(program, _FIRST_SERVER_PORT)
        python = str(Path(environment.location) / "bin" / "python")
        command = [
            *_server(python, model, serving, self._home.folder("services", program)),
            *("--host", HOST, "--port", str(port)),
            *("--max-concurrent-requests", str(serving.max_concurrent_requests)),
            *("--request-timeout-seconds", str(serving.request_timeout_seconds)),
        ]
        # One thread a server: a second model loading must not slow the one that answers.
        threads = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(server)}
        self._services.start(program, command, environment=threads, stop_seconds=20)
        if not exists:
            with self._changing(endpoint) as state:
                state["deployments"][name] = {
                    "url": f"http://{HOST}:{port}",
                    "server": serving.server,
                    "model_name": model.name,
                    "model_version": model.version,
                    "created": time.time(),
                }
                state["traffic"].setdefault(name, 0)
        reason = "the same version is deployed with the same serving configuration"
        return DeploymentRef(
            endpoint=endpoint,
            name=name,
            model_name=model.name,
            model_version=model.version,
            origin=Origin(reused=exists, reason=reason if exists else "no deployment had this content"),
        )

    def find_deployment(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        """The deployment that `deploy` would adopt or make, by its name; nothing is started."""
        server = self._home.snapshot(project_folder("deployments", "server"), "server")
        name = _deployment_name(model, serving, environment, server.name)
        exists = name in (read_json(self._path(endpoint), None) or {"deployments": {}})["deployments"]
        return DeploymentRef(
            endpoint=endpoint,
            name=name,
            model_name=model.name,
            model_version=model.version,
            origin=Origin(reused=exists, reason="it is there" if exists else "no deployment has this content"),
        )

    def read_deployment(self, endpoint: str, name: str) -> DeploymentStatus:
        """Ask the server's health; a server that keeps dying has failed."""
        import requests

        state = self._state(endpoint)
        if name not in state["deployments"]:
            raise NotFoundError(f"There is no deployment {name} on endpoint {endpoint}.")
        record = state["deployments"][name]
        program = _program(endpoint, name)
        status, error = "starting", ""
        try:
            response = requests.get(f"{record['url']}/health", timeout=5)
            status = "ready" if response.ok else "starting"
        except requests.RequestException:
            running = self._services.status(program)
            if running is None or running.restarts >= _RESTARTS_THAT_MEAN_BROKEN:
                status, error = "failed", self._last_words(program)
        return DeploymentStatus(
            name=name,
            model_version=record["model_version"],
            state=status,
            percent=state["traffic"].get(name, 0),
            error=error,
        )

    def _last_words(self, program: str) -> str:
        # The launcher's own lines say that it waits before the next start, not why the last one ended.
        lines = [line for line in tail(self._services.log_file(program)) if line.strip()]
        said = [line for line in lines if not line.startswith("launch: ")]
        return said[-1] if said else "the model server does not start"

    def delete_deployment(self, endpoint: str, name: str) -> None:
        """Out of the routing table first, then the server."""
        if not self._path(endpoint).exists():
            return
        with self._changing(endpoint) as state:
            if state["traffic"].get(name, 0) > 0:
                raise ConflictError(
                    f"Deployment {name} takes {state['traffic'][name]} % of {endpoint}'s traffic.",
                    fix="Shift its traffic first.",
                )
            state["deployments"].pop(name, None)
            state["traffic"].pop(name, None)
        self._services.remove(_program(endpoint, name))

    def set_traffic(self, endpoint: str, percents: dict[str, int], reason: str) -> TrafficSplit:
        """Write the new percentages; the gateway takes them from the next request on."""
        with self._changing(endpoint) as state:
            unknown = set(percents) - set(state["deployments"])
            if unknown:
                raise NotFoundError(f"There is no deployment {min(unknown)} on endpoint {endpoint}.")
            split = _split(endpoint, percents, Origin(reused=False, reason=reason))
            state["traffic"] = {name: percents.get(name, 0) for name in state["deployments"]}
            shown = " ".join(f"{name}={percent}%" for name, percent in percents.items() if percent)
            line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {shown or 'no traffic'} ({reason})"
            state["history"] = [*state.get("history", []), line][-_HISTORY_LINES:]
        return split

    def record_rollout(self, endpoint: str, record: RolloutRecord | None) -> None:
        """Keep the way back beside the traffic itself."""
        with self._changing(endpoint) as state:
            state["rollout"] = record and {
                "run_id": record.run_id,
                "candidate": record.candidate,
                "traffic_before": dict(record.traffic_before),
            }

    def freeze(self, endpoint: str, reason: str) -> None:
        """Set, or with an empty reason clear, the freeze."""
        with self._changing(endpoint) as state:
            state["frozen"] = reason

    def names(self) -> list[str]:
        """Every endpoint of this state folder."""
        return sorted(path.parent.name for path in self._home.path("endpoints").glob("*/endpoint.json"))

    def record(self, name: str) -> dict[str, Any]:
        """The endpoint as its file says, with nothing started or asked; NotFoundError when there is none."""
        return self._state(name)

    def is_leased(self, name: str) -> bool:
        """Whether somebody changes the endpoint now."""
        try:
            with file_lock(self._home.path("endpoints", name, "lease.lock"), 0, f"endpoint {name}"):
                return False
        except ConflictError:
            return True

    def _path(self, name: str) -> Path:
        return self._home.path("endpoints", name, "endpoint.json")

    def _state(self, name: str) -> dict[str, Any]:
        state = read_json(self._path(name), None)
        if state is None:
            raise NotFoundError(f"There is no endpoint {name}.", fix="phiflow run makes it.")
        return dict(state)

    @contextlib.contextmanager
    def _changing(self, name: str, *, create: bool = False) -> Iterator[dict[str, Any]]:
        with file_lock(self._home.folder("endpoints", name) / ".state.lock", 30, f"endpoint {name}"):
            empty: dict[str, Any] = {"name": name, "deployments": {}, "traffic": {}}
            state = read_json(self._path(name), empty) if create else self._state(name)
            yield state
            write_json(self._path(name), state)


def _server(python: str, model: ModelVersion, serving: ServingConfig, state: Path) -> list[str]:
    """The program that serves: our front, or the model as MLflow packaged it."""
    if serving.server == "mlflow":
        return [python, "-m", "server.score", "--model-dir", model.location]
    folder = str(Path(model.location) / "model")
    options = ["--model-dir", folder, "--model-name", model.name, "--device", "cpu", "--state-dir", str(state)]
    return [python, "-m", "server", *options]


def rollout_of(state: dict[str, Any]) -> RolloutRecord | None:
    """The rollout that an endpoint's file tells of."""
    told = state.get("rollout")
    if not told:
        return None
    before = tuple((name, percent) for name, percent in told["traffic_before"].items())
    return RolloutRecord(run_id=told["run_id"], candidate=told["candidate"], traffic_before=before)


def _deployment_name(model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef, server: str) -> str:
    # Time-outs of the rollout do not change what is served, so they are not in the name.
    content = serving.model_dump(mode="json", exclude={"start_timeout_seconds"})
    return f"v{model.version}-{digest_of(content, environment.version, server, model.digest)[:8]}"


def _program(endpoint: str, deployment: str) -> str:
    return f"server-{endpoint}-{deployment}"


def _split(endpoint: str, percents: dict[str, int], origin: Origin) -> TrafficSplit:
    return TrafficSplit(endpoint=endpoint, percents=tuple(sorted(percents.items())), origin=origin)
