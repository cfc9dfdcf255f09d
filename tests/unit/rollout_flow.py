"""The flow's own body with its real rollout on a platform in memory, and canned stages around it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fakes
import pytest
from fakes import ENDPOINT, ENVIRONMENT, FakePlatform, model_version, training_result
from prefect.tasks import Task

import tasks.lease
import tasks.questions
import tasks.restore
import tasks.rollout
from flows import fine_tune_and_deploy as flow_module
from tasks.config import PipelineConfig
from tasks.platforms.refs import GateReport
from tasks.report import RunReport

PLACE: Any = None
OLD = "v1-16"


def plain(task: Any) -> Callable[..., Any]:
    """A step's own function, without Prefect."""
    return task.fn.__wrapped__


def constant(value: Any) -> Callable[..., Any]:
    """A function that returns the value, whatever it is given."""
    return lambda *_: value


def connected_platform(monkeypatch: pytest.MonkeyPatch) -> FakePlatform:
    """An endpoint on which version 1 serves."""
    fake = FakePlatform()
    fake.serve(OLD, "1", 100)
    monkeypatch.setattr(tasks.rollout, "connect", lambda place: fake)
    monkeypatch.setattr(tasks.restore, "connect", lambda place: fake)
    monkeypatch.setattr(tasks.lease, "connect", lambda place: fake)
    monkeypatch.setattr(tasks.questions, "connect", lambda place: fake)
    return fake


def flow_on(platform: FakePlatform, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Any]:
    """Run the flow's own body with its real rollout and canned stages before and after it."""
    published: list[RunReport] = []
    steps = {name: value for name, value in vars(flow_module).items() if isinstance(value, Task)}
    require_unchanged = tasks.questions.require_unchanged

    def run(version: str = "2", *, gate_passes: bool = True, **settings: Any) -> Any:
        model = settings.pop("model", None) or model_version(version)
        result = training_result(digest=model.digest)
        gate = GateReport(
            metric="loss",
            passed=gate_passes,
            reason="the gate's reason",
            base=3.0,
            candidate=1.0,
            champion=None,
            champion_version="",
            improvement_low=2.0,
            champion_worse_high=None,
            num_examples=20,
            model_digest=model.digest,
            origin=fakes.MADE,
        )
        canned = {
            "ensure_environment": ENVIRONMENT,
            "prepare_data": fakes.data_manifest(),
            "compare_with_champion": gate,
            "register_model": model,
        }
        for name, step in steps.items():
            rollout = step.fn.__module__ == "tasks.rollout"
            stand_in = plain(step) if rollout else constant(canned.get(name))
            monkeypatch.setattr(flow_module, name, stand_in)
        # Called by one of the flow's functions, not by the flow.
        monkeypatch.setattr(tasks.questions, "require_unchanged", plain(require_unchanged))
        for name in ("begin_run", "training_spec", "tracking_url", "failed_attempt"):
            monkeypatch.setattr(flow_module, name, lambda *_: "")
        monkeypatch.setattr(flow_module, "finish_training", lambda *_: result)
        monkeypatch.setattr(flow_module, "publish_report", lambda _, report: published.append(report))
        config = PipelineConfig.model_validate(
            {
                "name": ENDPOINT,
                "data": {"source": str(tmp_path / "x.jsonl")},
                "rollout": {"hold_seconds": 0, **settings.pop("rollout", {})},
                **settings,
            }
        )
        outcome = flow_module.fine_tune_and_deploy.fn(config)
        return SimpleNamespace(outcome=outcome, report=published[-1] if published else None)

    return run


def unchanged(platform: FakePlatform) -> None:
    """Version 1 has all of the traffic, nothing else is deployed, and nothing is left to undo."""
    assert platform.percents == {OLD: 100}
    assert list(platform.deployments) == [OLD]
    assert platform.record is None
    assert platform.leases == []
