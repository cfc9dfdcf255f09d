"""`phiflow up`, killed while each resource is being made, and run again: all is there, once, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("azure.ai.ml", reason="the packages for Azure are not installed")

from tests.azure.emptying import empty
from tests.azure.workbench import until
from tests.azure_emulator.process import ROOT, EmulatorProcess
from tests.azure_emulator.server import SCOPE
from tests.contract.conftest import emulator_process

pytestmark = pytest.mark.slow
TEXT = """\
name: support
platform: {kind: azure, location: westeurope, poll_seconds: 0.05}
data: {source: questions.jsonl}
compute: {size: Standard_DS3_v2}
"""
# In the order in which they are made, and of the roles which; a scenario is matched with type and name.
RESOURCES = (
    "ManagedIdentity/userAssignedIdentities",
    "ContainerRegistry/registries",
    "Storage/storageAccounts/phi",
    "Authorization/roleAssignments",
    "Authorization/roleAssignments#2",
    "Authorization/roleAssignments#3",
    "KeyVault/vaults",
    "OperationalInsights/workspaces",
    "Insights/components",
    "MachineLearningServices/workspaces/phiflow-emulated$",
    "MachineLearningServices/workspaces/computes",
)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    """An emulator that begins with nothing."""
    with emulator_process(tmp_path_factory.mktemp("killed-up"), "--empty") as process:
        yield process


@pytest.fixture(scope="module")
def undisturbed(emulator: EmulatorProcess) -> list[str]:
    """What one `up` makes that nobody kills."""
    made = finished(emulator, configuration(emulator.state / "undisturbed"))
    empty(emulator)
    assert len(made) == 12
    return made


@pytest.fixture
def file(emulator: EmulatorProcess, undisturbed: list[str], tmp_path: Path) -> Iterator[Path]:
    """A configuration; nothing exists before it or after."""
    emulator.reset()
    yield configuration(tmp_path / "place")
    emulator.reset()
    empty(emulator)


def configuration(folder: Path) -> Path:
    """A configuration that could run, in a folder of its own."""
    folder.mkdir()
    shutil.copy(ROOT / "deployments" / "data" / "phiflow_questions.jsonl", folder / "questions.jsonl")
    (folder / "run.yaml").write_text(TEXT, encoding="utf-8")
    return folder / "run.yaml"


def begun(emulator: EmulatorProcess, file: Path) -> subprocess.Popen[str]:
    """Begin `phiflow up` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "flows", "up", str(file)],
        cwd=ROOT,
        env={**emulator.environment(), "PHIFLOW_HOME": str(emulator.state / "home")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finished(emulator: EmulatorProcess, file: Path) -> list[str]:
    """Run `up` to its end; what exists then."""
    up = begun(emulator, file)
    output, _ = up.communicate(timeout=300)
    assert up.returncode == 0, output
    return existing(emulator)


def existing(emulator: EmulatorProcess) -> list[str]:
    """What exists, but for the records of deployments, which cost nothing."""
    return [one for one in emulator.inventory() if "/Microsoft.Resources/deployments/" not in one]


def kill_when(emulator: EmulatorProcess, file: Path, reached: Callable[[], bool]) -> None:
    """Begin `up`, and end it with SIGKILL once something is so."""
    up = begun(emulator, file)
    until(reached)
    up.kill()
    up.communicate()


@pytest.mark.parametrize("resource", RESOURCES)
def test_killed_while_it_makes(emulator: EmulatorProcess, file: Path, undisturbed: list[str], resource: str) -> None:
    """The deployment goes on without its command; the next command waits for it and makes the rest, no more."""
    name, _, nth = resource.partition("#")
    match = {"kind": "template-resource", "name": name, "nth": int(nth or 1)}
    emulator.add_scenario("slow", match=match, seconds=1.0)
    kill_when(emulator, file, lambda: not emulator.waiting_scenarios())
    assert existing(emulator) != undisturbed
    assert finished(emulator, file) == undisturbed


def test_killed_after_the_group(emulator: EmulatorProcess, file: Path, undisturbed: list[str]) -> None:
    """A resource group is all there is when the command dies; the next goes on in it."""
    emulator.add_scenario("slow", match={"method": "PUT", "path": "/deployments/phiflow-owner"}, seconds=30)
    kill_when(emulator, file, lambda: not emulator.waiting_scenarios())
    emulator.kill()
    emulator.start()
    assert existing(emulator) == [SCOPE.group_id]
    assert finished(emulator, file) == undisturbed


@pytest.mark.parametrize("resource", ["Storage/storageAccounts/phi", "KeyVault/vaults"])
def test_killed_with_the_service_itself(
    emulator: EmulatorProcess, file: Path, undisturbed: list[str], resource: str
) -> None:
    """When the service too is interrupted in the middle, the next command still ends with the same."""
    emulator.add_scenario("slow", match={"kind": "template-resource", "name": resource}, seconds=1.0)
    kill_when(emulator, file, lambda: not emulator.waiting_scenarios())
    emulator.kill()
    emulator.start()
    assert finished(emulator, file) == undisturbed
