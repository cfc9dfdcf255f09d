"""What nobody uses in a state folder: found by its records and files, deleted after another look, and no more."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.config import LocalPlatformConfig, PipelineConfig
from tasks.config_files import build_config
from tasks.platforms.connect import connect
from tasks.platforms.errors import ConflictError
from tasks.platforms.local import environments
from tasks.platforms.local.files import write_json
from tasks.platforms.local.local_platform import LocalPlatform
from tasks.platforms.local.state import project_folder
from tasks.platforms.refs import ModelVersion, Origin
from tasks.platforms.upkeep import Leftover, LeftoverKind

HOUR = 3600.0


class Planting:
    """A state folder with orphans, and what looks like them."""

    def __init__(self, platform: LocalPlatform) -> None:
        self.platform = platform
        self.root = platform.home.root
        self.models: list[ModelVersion] = []

    def file(self, *parts: str, content: Any = None, hours: float = 0) -> Path:
        """A file of that age, and so its folder."""
        path = self.root.joinpath(*parts)
        write_json(path, content or {})
        moment = time.time() - hours * HOUR
        for one in (path, path.parent):
            os.utime(one, (moment, moment))
        return path

    def model(self, number: int, **values: Any) -> None:
        """A registered version whose job left its model and its data."""
        location = self.root / "mlflow" / "artifacts" / str(number) / "model"
        location.mkdir(parents=True)
        (location / "MLmodel").write_text("x" * number)
        version = ModelVersion(
            name="support",
            version=str(number),
            digest=str(number) * 64,
            job=f"support-{number}",
            data_digest=f"data-{number}",
            location=str(location),
            origin=Origin(reused=True, reason="read"),
            **values,
        )
        self.models.insert(0, version)

    def job(self, name: str, hours: float, **more: Any) -> None:
        """A completed job."""
        record = {"name": name, "key": name, "attempt": 1, "kind": "training", "data_digest": "d", "url": ""}
        record |= {"runs": ["r"], "run_name": "support", **more}
        self.file("jobs", name, "logs", "result.json", hours=hours)
        self.file("jobs", name, "model", "weights", hours=hours)
        self.file("jobs", name, "process.json", content={"pid": 0}, hours=hours)
        self.file("jobs", name, "job.json", content=record, hours=hours)

    def endpoint(self, name: str, hours: float, **state: Any) -> None:
        """An endpoint of that age, and its key."""
        state = {"name": name, "deployments": {}, "traffic": {}, **state}
        self.file("endpoints", name, "endpoint.json", content=state)
        self.file("endpoints", name, "key", hours=hours)

    def environment(self, folder: str, hours: float) -> Path:
        """A built environment."""
        return self.file("environments", folder, ".complete", hours=hours).parent


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Planting]:
    """Everything at once; MLflow's answers stand in for the server, which tests/flows has."""
    platform = connect(LocalPlatformConfig(home=str(tmp_path / "home")))
    assert isinstance(platform, LocalPlatform)
    planting = Planting(platform)
    monkeypatch.setattr(platform.models, "registered", lambda: list(planting.models))
    monkeypatch.setattr(platform.models, "delete", planting.models.remove)
    for number in range(1, 8):
        planting.model(number, rejected="worse" if number == 2 else "")
        planting.job(f"support-{number}", hours=200 - number)
        planting.file("checkpoints", f"support-{number}", "checkpoint-1", hours=200 - number)
        planting.file(
            "data", f"key-{number}", "manifest.json", content={"digest": f"data-{number}"}, hours=200 - number
        )
    deployments = {name: _deployment(number, hours) for name, number, hours in DEPLOYMENTS}
    traffic = {name: 100 if name == "v5-serving" else 0 for name in deployments}
    planting.endpoint("support", 200, deployments=deployments, traffic=traffic)
    planting.endpoint("stale", 2000)
    planting.endpoint("frozen", 2000, frozen="by hand")
    planting.endpoint("rolling", 200, **_rollout("v7-candidate"))
    planting.job("failed", hours=200)
    planting.job("young", hours=1)
    for key, hours in (("failed", 200.0), ("young", 200.0), ("nobody", 200.0)):
        planting.file("checkpoints", key, "checkpoint-1", hours=hours)
    planting.file("data", "key-nobody", "manifest.json", content={"digest": "nobody"}, hours=300)
    current = environments.content_digest(project_folder("environments", "training"))[:12]
    for folder, hours in ((f"training-{current}", 300), ("training-old", 200), ("training-a", 20), ("training-b", 10)):
        planting.environment(folder, hours)
    yield planting


DEPLOYMENTS = [("v6-unused", 6, 90), ("v4-before", 4, 60), ("v5-serving", 5, 50)]
ORPHANS = {
    (LeftoverKind.ENDPOINT, "stale"),
    (LeftoverKind.DEPLOYMENT, "support/v6-unused"),
    (LeftoverKind.MODEL, "support:1"),
    (LeftoverKind.MODEL, "support:3"),
    *((LeftoverKind.CHECKPOINTS, f"checkpoints/support-{number}") for number in range(1, 6)),
    (LeftoverKind.CHECKPOINTS, "checkpoints/failed"),
    (LeftoverKind.CHECKPOINTS, "checkpoints/nobody"),
    (LeftoverKind.ENVIRONMENT, "environments/training-old"),
    *((LeftoverKind.DATA, f"data/key-{name}") for name in ("1", "3", "nobody")),
}


def _deployment(number: int, hours: float) -> dict[str, Any]:
    created = time.time() - hours * HOUR
    return {"url": "", "server": "openai", "model_name": "support", "model_version": str(number), "created": created}


def _rollout(candidate: str) -> dict[str, Any]:
    rollout = {"run_id": "r", "candidate": candidate, "traffic_before": {}}
    return {"deployments": {candidate: _deployment(7, 90)}, "traffic": {candidate: 0}, "rollout": rollout}


def configuration(home: Path) -> PipelineConfig:
    """What retention says."""
    retention = {"soak_hours": 24, "endpoint_hours": 1000, "checkpoint_hours": 48, "keep_last": 2}
    values = {"name": "support", "data": {"source": "x"}, "retention": retention, "platform": {"home": str(home)}}
    return build_config(values, "test")


def found(planting: Planting) -> list[Leftover]:
    """What is found now."""
    return list(planting.platform.find_leftovers(configuration(planting.root)))


def relative(planting: Planting, leftover: Leftover) -> tuple[LeftoverKind, str]:
    """Kind and location, below the state folder."""
    return leftover.kind, leftover.location.removeprefix(f"{planting.root}/")


def files(root: Path) -> set[str]:
    """The files that matter below a state folder."""
    kinds = ("checkpoints", "data", "environments", "endpoints", "mlflow", "jobs")
    paths = (path.relative_to(root).as_posix() for kind in kinds for path in (root / kind).rglob("*") if path.is_file())
    return {path for path in paths if not path.endswith((".lock", "lease.json"))}


def test_orphans_are_found_deleted_and_nothing_else(planted: Planting) -> None:
    """What nobody uses is found with a reason, and is all that is deleted; a second look finds nothing."""
    leftovers, before = found(planted), files(planted.root)
    assert {relative(planted, one) for one in leftovers} == ORPHANS
    assert all(one.reason for one in leftovers)
    for leftover in leftovers:
        planted.platform.remove_leftover(leftover)
        planted.platform.remove_leftover(leftover)
    assert found(planted) == []
    gone = before - files(planted.root)
    orphans = [location for kind, location in ORPHANS if "/" in location and kind != LeftoverKind.DEPLOYMENT]
    also = ["endpoints/stale", "jobs/support-1/model", "jobs/support-3/model"]
    assert {path for path in gone if not path.startswith(tuple(f"{one}/" for one in (*orphans, *also)))} == set()
    assert {path.split("/")[1] for path in gone if path.startswith("checkpoints")} >= {"failed", "support-5"}
    deployments = planted.platform.endpoints.record("support")["deployments"]
    assert set(deployments) == {"v4-before", "v5-serving"}


def test_what_is_in_use_again_stays(planted: Planting) -> None:
    """Deleting looks again: traffic, rollouts, freezes, rejections, a model's data, processes, today's environment."""
    current = environments.content_digest(project_folder("environments", "training"))[:12]
    before = files(planted.root)
    refused = [
        (LeftoverKind.DEPLOYMENT, "support/v5-serving", "takes 100 %"),
        (LeftoverKind.DEPLOYMENT, "rolling/v7-candidate", "rollout of run r"),
        (LeftoverKind.ENDPOINT, "rolling", "has a rollout"),
        (LeftoverKind.ENDPOINT, "frozen", "by hand"),
        (LeftoverKind.MODEL, "support:2", "evidence: worse"),
        (LeftoverKind.MODEL, "support:5", "v5-serving on support is of it"),
        (LeftoverKind.DATA, str(planted.root / "data" / "key-5"), "version 5 of support was trained on it"),
        (LeftoverKind.ENVIRONMENT, str(planted.root / "environments" / f"training-{current}"), "what a run would use"),
    ]
    for kind, location, reason in refused:
        with pytest.raises(ConflictError, match=reason):
            planted.platform.remove_leftover(Leftover(kind=kind, name="x", reason="earlier", location=location))
    folder = planted.root / "environments" / "training-old"
    (folder / "bin").mkdir()
    (folder / "bin" / "python").symlink_to(sys.executable)
    with subprocess.Popen([str(folder / "bin" / "python"), "-c", "input()"], stdin=subprocess.PIPE) as process:
        leftover = Leftover(kind=LeftoverKind.ENVIRONMENT, name="x", reason="earlier", location=str(folder))
        with pytest.raises(ConflictError, match="a process runs in it"):
            planted.platform.remove_leftover(leftover)
        assert relative(planted, leftover) not in {relative(planted, one) for one in found(planted)}
        process.communicate(b"\n")
    assert files(planted.root) - before == {"environments/training-old/bin/python"}


def test_live_job_is_told_with_its_runs(planted: Planting) -> None:
    """A job that has not ended is among what is found, with who wants it, and keeps its checkpoints and data."""
    name, key = "support-live", "support-live"
    record = {"name": name, "key": key, "attempt": 1, "kind": "training", "data_digest": "nobody", "url": ""}
    planted.file("jobs", name, "job.json", content=record | {"runs": ["r1", "r2"], "run_name": "support"})
    planted.file("checkpoints", key, "checkpoint-1", hours=500)
    leftovers = {relative(planted, one): one for one in found(planted)}
    assert leftovers[LeftoverKind.JOB, name].runs == ("r1", "r2")
    assert (LeftoverKind.CHECKPOINTS, f"checkpoints/{key}") not in leftovers
    assert (LeftoverKind.DATA, "data/key-nobody") not in leftovers


def test_environments_of_another_state_folder_are_not_ours(planted: Planting, tmp_path: Path) -> None:
    """A link to environments that somebody else built is not followed."""
    elsewhere = tmp_path / "elsewhere"
    (planted.root / "environments").rename(elsewhere)
    (planted.root / "environments").symlink_to(elsewhere)
    assert not [one for one in found(planted) if one.kind == LeftoverKind.ENVIRONMENT]


def test_sweep_starts_nothing_where_nothing_is(tmp_path: Path) -> None:
    """An empty state folder is looked at without a service being started for it."""
    platform = connect(LocalPlatformConfig(home=str(tmp_path / "home")))
    assert platform.find_leftovers(configuration(tmp_path / "home")) == ()
    assert json.dumps(platform.services.table()) == "[]"  # type: ignore[attr-defined]
