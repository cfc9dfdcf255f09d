"""A configuration as a Prefect deployment's parameters: what is resolved where it is deployed, and what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows import deployment_parameters
from flows.deployment_parameters import read_configuration
from tasks.config import WORKSPACE_VARIABLES, PipelineConfig

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where `prefect deploy` runs, on a machine that names no workspace."""
    monkeypatch.chdir(ROOT)
    for name in WORKSPACE_VARIABLES.values():
        monkeypatch.delenv(name, raising=False)


def test_workspace_that_is_not_known_is_left_to_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the variables a deployment is made all the same; its run takes them from the worker's environment."""
    told = read_configuration("deployments/azure-cpu.yaml")
    assert {told["config"]["platform"][key] for key in WORKSPACE_VARIABLES} == {""}
    assert told["environment"] == {}
    with pytest.raises(ValueError, match="AZURE_SUBSCRIPTION_ID"):
        PipelineConfig.model_validate(told["config"])
    for name in WORKSPACE_VARIABLES.values():
        monkeypatch.setenv(name, "the-workers")
    config = PipelineConfig.model_validate(told["config"])
    assert config.platform.kind == "azure"
    assert config.platform.workspace == "the-workers"


def test_known_workspace_is_resolved_and_keeps_the_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the variables the deployment names the workspace, and its runs keep their results there."""
    for name in WORKSPACE_VARIABLES.values():
        monkeypatch.setenv(name, "mine")
    monkeypatch.setattr(deployment_parameters, "_where_results_go", lambda config: {"seen": config.platform.workspace})
    told = read_configuration("deployments/azure-cpu.yaml")
    assert {told["config"]["platform"][key] for key in WORKSPACE_VARIABLES} == {"mine"}
    assert told["environment"] == {"seen": "mine"}


def test_local_run_keeps_its_results_on_the_workers_disk() -> None:
    """A configuration of this machine needs no block, and its paths stay relative to the project."""
    told = read_configuration("deployments/local.yaml")
    assert told["environment"] == {}
    assert told["config"]["data"]["source"] == "deployments/data/phiflow_questions.jsonl"
