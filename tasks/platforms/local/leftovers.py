"""Finds what phiflow made on this machine and nobody uses; `removal` deletes it.

All of it is in the state folder, so all of it is phiflow's; ages are those of its records and files.
"""

from __future__ import annotations

import contextlib
from collections import defaultdict
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.local import environments
from tasks.platforms.local.endpoints import rollout_of
from tasks.platforms.local.files import read_json
from tasks.platforms.local.state import project_folder
from tasks.platforms.local.tear_down import folder_bytes
from tasks.platforms.refs import ModelVersion
from tasks.platforms.retention import Served, hours_since, last_traffic, shown_bytes, shown_hours, unused
from tasks.platforms.upkeep import Leftover, LeftoverKind

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.local.local_platform import LocalPlatform


class Leftovers:
    """One look at a state folder."""

    def __init__(self, platform: LocalPlatform) -> None:
        self._platform = platform
        self._home = platform.home
        self._endpoints = {name: platform.endpoints.record(name) for name in platform.endpoints.names()}
        self._models = platform.models.registered()
        self._live = platform.jobs.running()

    def find(self, config: PipelineConfig) -> Iterator[Leftover]:
        """What runs first; what uses another thing before that thing."""
        keep_last = config.retention.keep_last
        yield from self._serving(config)
        for job in self._live:
            state = str(self._platform.jobs.read(job).state)
            runs = self._platform.jobs.runs_of(job)
            yield Leftover(kind=LeftoverKind.JOB, name=job.name, reason=state, location=job.name, runs=runs)
        models = [version for versions in self._models_by_name() for version in versions[keep_last:]]
        models = [version for version in models if not self.use_of_model(version)]
        for version in models:
            yield Leftover(
                kind=LeftoverKind.MODEL,
                name=f"{version.name} version {version.version}",
                reason=_beyond(keep_last),
                location=f"{version.name}:{version.version}",
                cost=_size(Path(version.location)),
            )
        yield from self._checkpoints(config)
        yield from self._environments(keep_last)
        yield from self._data(keep_last, models)

    def _serving(self, config: PipelineConfig) -> Iterator[Leftover]:
        hours = config.retention.endpoint_hours
        for name, state in self._endpoints.items():
            if state.get("frozen") or self._platform.endpoints.is_leased(name):
                continue
            made = _modified(self._home.path("endpoints", name, "key"))
            if hours and not state.get("rollout") and hours_since(made) >= hours:
                reason = f"made {shown_hours(made)} ago, past retention.endpoint_hours {hours:g}"
                yield Leftover(kind=LeftoverKind.ENDPOINT, name=name, reason=reason, location=name)
            else:
                yield from self._deployments(config, name, state)

    def _deployments(self, config: PipelineConfig, endpoint: str, state: dict[str, Any]) -> Iterator[Leftover]:
        history, rejected = state.get("history", ()), {(one.name, one.version) for one in self._models if one.rejected}
        deployments = sorted(state["deployments"].items(), key=lambda found: float(found[1]["created"]))
        served = []
        for name, record in deployments:
            made = datetime.fromtimestamp(record["created"], UTC)
            served.append(
                Served(
                    name=name,
                    percent=state["traffic"].get(name, 0),
                    usable=(record["model_name"], record["model_version"]) not in rejected,
                    since=last_traffic(name, made, made, history),
                )
            )
        rollout = rollout_of(state)
        for idle in unused(served, rollout, config.rollout.keep_previous, config.retention.soak_hours):
            reason = f"no traffic for {shown_hours(idle.since)}, and not kept for roll-back"
            yield Leftover(
                kind=LeftoverKind.DEPLOYMENT,
                name=f"{idle.name} on {endpoint}",
                reason=reason,
                location=f"{endpoint}/{idle.name}",
            )

    def _models_by_name(self) -> list[list[ModelVersion]]:
        found: dict[str, list[ModelVersion]] = defaultdict(list)
        for version in self._models:
            found[version.name].append(version)
        return list(found.values())

    def _checkpoints(self, config: PipelineConfig) -> Iterator[Leftover]:
        registered, live = {version.job for version in self._models}, {job.key for job in self._live}
        folders = sorted(_folders(self._home.path("checkpoints")), key=_modified, reverse=True)
        kept = 0
        for folder in folders:
            job = self._platform.jobs.latest(folder.name)
            if folder.name in live:
                continue
            if job and job.name in registered:
                kept += 1
                if kept <= config.retention.keep_last:
                    continue
                reason = f"job {job.name} left a registered model; {_beyond(config.retention.keep_last)}"
            else:
                began = _modified(self._home.path("jobs", job.name, "job.json") if job else folder)
                if hours_since(began) < config.retention.checkpoint_hours:
                    continue
                about = f"job {job.name} left no registered model" if job else "no job has them any more"
                reason = f"{about}, and began {shown_hours(began)} ago"
            yield Leftover(
                kind=LeftoverKind.CHECKPOINTS,
                name=folder.name,
                reason=reason,
                location=str(folder),
                cost=_size(folder),
            )

    def _environments(self, keep_last: int) -> Iterator[Leftover]:
        root = self._home.path("environments")
        if root.is_symlink():  # another state folder's
            return
        built: dict[str, list[Path]] = defaultdict(list)
        for folder in sorted(_folders(root), key=lambda path: _modified(path / ".complete"), reverse=True):
            built[folder.name.rpartition("-")[0]].append(folder)
        for folders in built.values():
            for folder in folders[keep_last:]:
                if not self.use_of_environment(folder):
                    yield Leftover(
                        kind=LeftoverKind.ENVIRONMENT,
                        name=folder.name,
                        reason=_beyond(keep_last),
                        location=str(folder),
                        cost=_size(folder),
                    )

    def _data(self, keep_last: int, leaving: list[ModelVersion]) -> Iterator[Leftover]:
        folders = _folders(self._home.path("data"))
        prepared = sorted(folders, key=lambda path: _modified(path / "manifest.json"), reverse=True)
        for folder in prepared[keep_last:]:
            if not self.use_of_data(folder, leaving):
                reason = f"{_beyond(keep_last)}; no model that stays was trained on it"
                yield Leftover(
                    kind=LeftoverKind.DATA, name=folder.name, reason=reason, location=str(folder), cost=_size(folder)
                )

    # Who uses it

    def use_of_model(self, version: ModelVersion) -> str:
        """What keeps a version; empty: nothing."""
        if version.rejected:
            return f"it was rejected, and stays as evidence: {version.rejected}"
        for endpoint, state in self._endpoints.items():
            for name, record in state["deployments"].items():
                if (record["model_name"], record["model_version"]) == (version.name, version.version):
                    return f"deployment {name} on {endpoint} is of it"
        return ""

    def use_of_environment(self, folder: Path) -> str:
        """What keeps an environment: what is built from the sources of now, a service, a process."""
        source = project_folder("environments") / folder.name.rpartition("-")[0]
        if source.is_dir() and folder.name.endswith(environments.content_digest(source)[:12]):
            return "it is what a run would use"
        inside = f"{folder}/"
        for name, command in self._platform.services.supervisor.commands().items():
            if any(part.startswith(inside) for part in command):
                return f"service {name} runs in it"
        return "a process runs in it" if _any_process_in(inside) else ""

    def use_of_data(self, folder: Path, leaving: list[ModelVersion]) -> str:
        """What keeps prepared data; versions that are leaving do not count."""
        digest = read_json(folder / "manifest.json", {}).get("digest")
        gone = {(version.name, version.version) for version in leaving}
        for version in self._models:
            if version.data_digest == digest and (version.name, version.version) not in gone:
                return f"version {version.version} of {version.name} was trained on it"
        return next((f"job {job.name} uses it" for job in self._live if job.data_digest == digest), "")


def _folders(root: Path) -> list[Path]:
    return [path for path in root.glob("*") if path.is_dir() and not path.name.startswith(".")]


def _modified(path: Path) -> datetime:
    """When a file was last written; of one that is missing, now."""
    with contextlib.suppress(OSError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    return datetime.now(UTC)


def _size(folder: Path) -> str:
    return f"{shown_bytes(folder_bytes(folder))} of disk"


def _beyond(keep_last: int) -> str:
    return f"beyond the last {keep_last} (retention.keep_last)"


def _any_process_in(folder: str) -> bool:
    import psutil

    for process in psutil.process_iter(["cmdline"]):
        if any(part.startswith(folder) for part in process.info["cmdline"] or ()):
            return True
    return False
