"""Environments, clusters, data and the sign-in against the emulator, through the real SDK, and what they send."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.azure_emulator.process import EmulatorProcess

# Each step prints one line of JSON; run in a process that has only the emulator's variables to reach it by.
SCRIPT = """
import json, logging, os, sys
logging.basicConfig(level=logging.DEBUG)
from tasks.config import AzurePlatformConfig, ComputeConfig, DataConfig, ModelConfig
from tasks.platforms.connect import connect
from tasks.platforms.errors import PhiflowError

def tell(**values):
    print(json.dumps(values), flush=True)

settings = json.loads(sys.argv[1])
config = AzurePlatformConfig(
    subscription_id=os.environ["AZURE_SUBSCRIPTION_ID"],
    resource_group=os.environ["AZURE_RESOURCE_GROUP"],
    **{"workspace": os.environ["AZURE_ML_WORKSPACE"], **settings.get("platform", {})},
)
try:
    platform = connect(config)
    for step, *arguments in settings["steps"]:
        if step == "environment":
            found = platform.ensure_environment(*arguments)
            tell(location=found.location, version=found.version, reused=found.origin.reused)
        if step == "compute":
            found = platform.ensure_compute(ComputeConfig(**arguments[0]))
            tell(name=found.name, reused=found.origin.reused)
        if step == "blob":
            platform.workspace.storage.write("phiflow/b", b"1")
            tell(read=platform.workspace.storage.read("phiflow/b").decode())
except PhiflowError as error:
    tell(error=type(error).__name__, told=str(error))
"""
COMPUTE = {"name": "infrastructure", "size": "Standard_E16s_v3", "max_instances": 2, "public_ip": False}


@pytest.fixture
def steps(emulator: EmulatorProcess) -> Callable[..., Any]:
    """Return a function that takes steps on the platform in a process of its own."""

    def run(*steps: tuple[Any, ...], **platform: Any) -> tuple[list[dict[str, Any]], str]:
        done = emulator.run(SCRIPT, json.dumps({"steps": steps, "platform": platform}))
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()], done.stderr

    return run


def test_environment_and_cluster_are_made_once(emulator: EmulatorProcess, steps: Callable[..., Any]) -> None:
    """A second process adopts both by one look each; the SDK says nothing, not even at DEBUG."""
    made, said = steps(("environment", "serving-cpu"), ("compute", COMPUTE), ("blob",))
    assert [step.get("reused") for step in made] == [False, False, None]
    assert made[0]["location"] == f"azureml:phiflow-serving-cpu:{made[0]['version']}"
    assert made[1]["name"] == "infrastructure"
    assert [line for line in said.splitlines() if not line.startswith("INFO:tasks.")] == []
    emulator.reset()
    adopted, _ = steps(("environment", "serving-cpu"), ("compute", COMPUTE))
    assert [step["reused"] for step in adopted] == [True, True]
    exchanges = emulator.exchanges()["exchanges"]
    management = [one for one in exchanges if "/workspaces/" in one["path"]]
    assert sorted(one["method"] for one in management) == ["GET", "GET", "GET"]  # the workspace, for its location


def test_other_cluster_under_the_name_is_refused(steps: Callable[..., Any]) -> None:
    """The service's own cluster, read back, is compared setting by setting."""
    steps(("compute", COMPUTE))
    told, _ = steps(("compute", {**COMPUTE, "max_instances": 3}))
    assert told[0]["error"] == "ConflictError"
    assert "compute.max_instances 2, but the configuration says 3" in told[0]["told"]


def test_wrong_workspace_is_one_line(steps: Callable[..., Any]) -> None:
    """A workspace that is not there is named, with its resource group."""
    told, _ = steps(("compute", COMPUTE), workspace="no-such-workspace")
    assert told[0]["error"] == "NotFoundError"
    assert told[0]["told"].startswith("Workspace no-such-workspace in resource group")
