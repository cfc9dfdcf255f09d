"""`phiflow up` on an emulated subscription that has nothing in it: makes all, repeats, goes on, refuses, in parts."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("azure.ai.ml", reason="the packages for Azure are not installed")

from flows.cli import main
from tasks.config_files import load_config
from tasks.platforms.azure.foundation.names import ResourceNames, last_name, resource_names
from tasks.platforms.azure.foundation.wanted_roles import ACR_PULL
from tasks.platforms.connect import connect, provisioning, run_checks
from tasks.platforms.errors import ConfigError
from tests.azure.emptying import empty
from tests.azure.workbench import until
from tests.azure_emulator.names import PRINCIPAL
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE
from tests.contract.conftest import emulator_process, reached

ELSEWHERE = f"{SCOPE.subscription_id}/resourceGroups/elsewhere"
STORAGE = f"{ELSEWHERE}/providers/Microsoft.Storage/storageAccounts/somebodyelses"
# The service keeps no tags of these.
UNTAGGED = (
    "microsoft.authorization/roleassignments",
    "microsoft.consumption/budgets",
    "microsoft.resources/deployments",
)
TEXT = """\
# The team's.
name: support

platform:
  kind: azure
  location: westeurope
  poll_seconds: 0.05

data:
  source: run.yaml
compute:
  size: Standard_DS3_v2  # enough
"""
WHOLE = {"chat_history": True, "monthly_budget": 9, "budget_contact": "a@b.test", "identity_roles": "contributor"}


@dataclass
class World:
    """The emulator and its empty subscription, a configuration, and what a person types."""

    emulator: EmulatorProcess
    file: Path
    capsys: Any

    def up(self, *options: str) -> tuple[int, dict[str, Any]]:
        """The command; its exit code and its document."""
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(["up", str(self.file), "--json", *options])
        told = json.loads(self.capsys.readouterr().out)
        print(json.dumps(told, indent=1))  # for whoever reads why a test failed
        return int(ended.value.code or 0), told

    def inventory(self) -> list[str]:
        """What exists, but for the records of deployments, whose names are no matter."""
        return [one for one in self.emulator.inventory() if "/deployments/" not in one]

    def names(self) -> ResourceNames:
        """What things are called here."""
        return resource_names(load_config(self.file).platform)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmulatorProcess]:
    """An emulator that begins with nothing, reached from this process."""
    with emulator_process(tmp_path_factory.mktemp("up"), "--empty") as process, reached(process.env):
        yield process


@pytest.fixture
def world(
    process: EmulatorProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    """Nothing exists, and a configuration that names the place by variables."""
    monkeypatch.setenv("PHIFLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("flows.up.run_checks", lambda *_: iter(()))  # test_doctor has them, and they take longest
    process.reset()
    file = tmp_path / "run.yaml"
    file.write_text(TEXT, encoding="utf-8")
    world = World(process, file, capsys)
    yield world
    process.reset()
    empty(process)


def settings(**resources: Any) -> list[str]:
    """Options that set keys of platform.resources."""
    return [part for key, value in resources.items() for part in ("--set", f"platform.resources.{key}={value}")]


def num_begun(world: World) -> int:
    """How many deployments were begun since the last reset."""
    return world.emulator.count("PUT S/resourcegroups/{group}/providers/Microsoft.Resources/deployments/{name}")


def test_up_makes_everything_and_a_second_changes_nothing(world: World) -> None:
    """One command makes the workspace and what belongs to it; the next finds nothing to change, and deploys nothing."""
    options = settings(**WHOLE, engineer=PRINCIPAL)
    code, told = world.up(*options)
    assert (code, {one["action"] for one in told["changes"]}) == (0, {"create"})
    made, names = world.inventory(), world.names()
    assert {names.group, names.workspace, names.storage_account, names.container_registry} < set(made)
    assert {names.identity, names.log_analytics, names.application_insights, names.key_vault} < set(made)
    assert {names.chat_history, names.budget} < set(made)
    assert f"{names.workspace}/computes/phi-ds3-v2" in made
    assert len([one for one in made if "roleAssignments" in one]) == 7
    assert len(told["done"]) == len(told["changes"]) == len(made)
    for one in world.emulator.control("GET", "inventory").json()["value"]:
        if one["type"].lower() not in UNTAGGED:
            assert one["tags"] == {"phiflow": "1", "phiflow.workspace": SCOPE.workspace}, one["id"]
    assert {one["name"] for one in told["costs"]} >= {"container registry", "storage account", "Cosmos DB"}
    world.emulator.reset()
    written = world.file.read_bytes()
    code, told = world.up(*options)
    assert (code, told["changes"], told["done"], told["configuration"]["written"]) == (0, [], [], [])
    assert (num_begun(world), world.inventory(), world.file.read_bytes()) == (0, made, written)


def test_a_run_adopts_what_up_made(world: World) -> None:
    """The identity's ids stand in the file, and with them a run finds the cluster to be the one it would make."""
    code, told = world.up()
    assert code == 0
    lines = world.file.read_text(encoding="utf-8").splitlines()
    assert [line for line in TEXT.splitlines() if line not in lines] == []
    assert told["configuration"]["written"] == ["platform.identity.resource_id", "platform.identity.client_id"]
    assert set(told["configuration"]["elsewhere"].values()) == {
        "AZURE_SUBSCRIPTION_ID",
        "AZURE_RESOURCE_GROUP",
        "AZURE_ML_WORKSPACE",
    }
    config = load_config(world.file)
    assert config.platform.kind == "azure"
    assert config.platform.identity.resource_id == world.names().identity
    cluster = connect(config.platform).ensure_compute(config.compute)
    assert (cluster.name, cluster.origin.reused) == ("phi-ds3-v2", True)


def test_what_if_shows_all_and_makes_nothing(world: World) -> None:
    """In an empty subscription the change set is everything, and not even the resource group is made for it."""
    code, told = world.up("--what-if")
    assert code == 0
    assert [one["kind"] for one in told["changes"]][:2] == ["resource group", "storage account"]
    assert len(told["changes"]) == 12
    assert world.emulator.inventory() == []
    assert world.file.read_text(encoding="utf-8") == TEXT


@pytest.mark.slow
def test_two_people_make_what_one_would(world: World) -> None:
    """The engineer is told what the owner has to do first; after both parts all is there, and each changes nothing."""
    options = settings(**WHOLE, engineer=PRINCIPAL)
    assert world.up(*options)[0] == 0
    by_one = world.inventory()
    empty(world.emulator)
    code, told = world.up("--part", "engineer", *options)
    assert code == 4
    assert "resource group phiflow-emulator" in told["error"]["message"]
    assert "phiflow up --part owner" in told["error"]["fix"]
    assert world.emulator.inventory() == []
    assert world.up("--part", "owner", *options)[0] == 0
    assert not [one for one in world.inventory() if "MachineLearningServices" in one or "KeyVault" in one]
    world.emulator.configure("caller", {"roles": [{"scope": SCOPE.group_id, "role": "Contributor"}]})
    code, told = world.up("--part", "engineer", *options)
    assert (code, {one["kind"] for one in told["changes"]} & {"role", "identity"}) == (0, set())
    assert world.inventory() == by_one
    assert world.up("--part", "engineer", *options)[1]["changes"] == []


@pytest.mark.slow
def test_engineer_is_told_of_each_missing_thing(world: World) -> None:
    """A role that the owner's part did not give is named, and nothing is made without it."""
    assert world.up("--part", "owner")[0] == 0
    role = next(one for one in world.inventory() if one.startswith(world.names().storage_account) and "role" in one)
    world.emulator.send("DELETE", f"{role}?api-version=2022-04-01")
    before = world.inventory()
    code, told = world.up("--part", "engineer")
    assert (code, world.inventory()) == (4, before)
    storage = last_name(world.names().storage_account)
    assert f"missing: role Storage Blob Data Contributor on storage account {storage} for" in told["error"]["message"]
    assert len(world.up("--part", "owner")[1]["done"]) == 1


def test_failed_resource_is_one_line_and_the_next_up_goes_on(world: World) -> None:
    """The resource is named with the service's own reason; what was made before it stays and is used."""
    world.emulator.add_scenario(
        "fail",
        match={"kind": "template-resource", "name": "vaults"},
        status=409,
        code="VaultAlreadyExists",
        message="The vault name is already in use.",
    )
    code, told = world.up()
    assert code == 4
    assert told["error"]["message"].startswith(f"Key vault {last_name(world.names().key_vault)} ")
    assert "The vault name is already in use" in told["error"]["message"]
    assert "az keyvault purge" in told["error"]["fix"]
    assert world.names().workspace not in world.inventory()
    code, told = world.up()
    assert code == 0
    assert not {one["kind"] for one in told["changes"]} & {"resource group", "storage account", "role"}
    assert world.names().workspace in world.inventory()


@pytest.mark.slow
def test_deployment_that_runs_is_waited_for(world: World) -> None:
    """A deployment that an earlier command began is adopted: nothing is begun beside it, and all is there once."""
    world.emulator.add_scenario("slow", match={"kind": "template-resource", "name": "storageAccounts"}, seconds=1.5)
    config = load_config(world.file)

    def begin() -> None:
        made = provisioning(config)
        for _ in made.apply("owner", made.plan("owner")):
            pass

    first = threading.Thread(target=begin)
    first.start()
    deployments = f"{SCOPE.group_id}/providers/Microsoft.Resources/deployments/phiflow-owner?api-version=2025-04-01"
    until(lambda: world.emulator.send("GET", deployments).status_code == 200)
    lines = list(provisioning(config).await_running())
    first.join()
    assert lines[0] == "deployment phiflow-owner runs already; waiting for its end"
    assert f"done: storage account {last_name(world.names().storage_account)}" in lines
    assert world.up()[0] == 0
    assert len(world.inventory()) == 12


def test_interrupt_says_what_goes_on_and_how_to_end_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C ends the command alone: it names the deployment that Azure goes on with, and the commands for it."""
    from tasks.platforms.azure.foundation import deployment as template_deployment

    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(template_deployment.time, "sleep", interrupt)
    with pytest.raises(SystemExit) as ended:
        main(["up", str(world.file)])
    monkeypatch.undo()
    said = world.capsys.readouterr().err
    assert ended.value.code == 130
    assert "Deployment phiflow-owner goes on in Azure; the same command waits for it" in said
    assert "az deployment group cancel --resource-group phiflow-emulator --name phiflow-owner" in said


def test_failed_check_makes_nothing(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deleted vault that keeps the name is found before anything is made: exit code 4, one line with the command."""
    monkeypatch.setattr("flows.up.run_checks", run_checks)
    vault = last_name(world.names().key_vault)
    world.emulator.control("PUT", f"deleted-vaults/{vault}", {})
    code, told = world.up()
    failed = [one for one in told["checks"] if one["outcome"] == "fail"]
    assert (code, told["error"]["exit_code"], len(failed)) == (4, 4, 1)
    assert vault in failed[0]["found"] and "az keyvault purge" in failed[0]["fix"]
    assert "changes" not in told
    assert [one for one in world.emulator.inventory() if "deletedVaults" not in one] == []


@pytest.mark.slow
def test_existing_resources_are_used_and_not_made(world: World) -> None:
    """A storage account in another group serves the workspace; its role is given there, and the rest is made."""
    for path, body in (
        (f"{ELSEWHERE}?api-version=2021-04-01", {}),
        (f"{STORAGE}?api-version=2024-01-01", {"sku": {"name": "Standard_LRS"}, "kind": "StorageV2"}),
    ):
        assert world.emulator.send("PUT", path, {"location": "westeurope", **body}).ok
    until(lambda: world.emulator.send("GET", f"{STORAGE}?api-version=2024-01-01").status_code == 200)
    options = settings(storage_account=STORAGE)
    code, told = world.up(*options)
    assert code == 0
    assert "storage account" not in {one["kind"] for one in told["changes"]}
    assert world.names().storage_account not in world.inventory()
    assert [one for one in world.inventory() if one.startswith(f"{STORAGE}/providers/Microsoft.Authorization")]
    workspace = world.emulator.send("GET", f"{world.names().workspace}?api-version=2024-10-01-preview").json()
    assert workspace["properties"]["storageAccount"] == STORAGE
    assert world.up(*options)[1]["changes"] == []


@pytest.mark.slow
def test_role_that_somebody_gave_by_hand_is_no_obstacle(world: World) -> None:
    """The service refuses the same role twice; one that is there under another GUID is left as it is."""
    assert world.up("--part", "owner")[0] == 0
    registry = world.names().container_registry
    role = next(one for one in world.inventory() if one.startswith(registry) and "roleAssignments" in one)
    properties = world.emulator.send("GET", f"{role}?api-version=2022-04-01").json()["properties"]
    assert world.emulator.send("DELETE", f"{role}?api-version=2022-04-01").ok
    by_hand = f"{role.rpartition('/')[0]}/11111111-0000-0000-0000-000000000000?api-version=2022-04-01"
    kept = {key: properties[key] for key in ("roleDefinitionId", "principalId", "principalType")}
    assert last_name(kept["roleDefinitionId"]) == ACR_PULL
    assert world.emulator.send("PUT", by_hand, {"properties": kept}).ok
    code, told = world.up()
    assert (code, [one for one in told["changes"] if one["kind"] == "role"]) == (0, [])


@pytest.mark.slow
def test_workspace_of_somebody_else_is_used_as_it_is(world: World) -> None:
    """Around a workspace that phiflow did not make, it makes the identity, its roles and the cluster, and no more."""
    assert world.up()[0] == 0
    names = world.names()
    body = world.emulator.send("GET", f"{names.workspace}?api-version=2024-10-01-preview").json()
    tags = {"tags": {"team": "x"}}
    assert world.emulator.send("PATCH", f"{names.workspace}?api-version=2024-10-01-preview", tags).ok
    code, told = world.up(*settings(monthly_budget=5, budget_contact="a@b.test"))
    assert (code, [one["kind"] for one in told["changes"]]) == (0, ["budget"])
    after = world.emulator.send("GET", f"{names.workspace}?api-version=2024-10-01-preview").json()
    assert after["tags"] == {"team": "x"}
    assert after["properties"]["storageAccount"] == body["properties"]["storageAccount"]


def test_file_that_cannot_be_written_is_told_with_the_lines(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The resources are made all the same; the lines for the file are printed to be copied."""

    def refuse(path: Path, *_: object) -> None:
        raise ConfigError(f"Configuration {path} cannot be written: Permission denied.")

    monkeypatch.setattr("tasks.config_edit._write", refuse)
    with pytest.raises(SystemExit) as ended:
        main(["up", str(world.file), "--part", "owner"])
    said = world.capsys.readouterr().out
    assert ended.value.code == 0
    assert "cannot be written: Permission denied. Put this into it:" in said
    assert f"    resource_id: {world.names().identity}\n" in said
    assert world.file.read_text(encoding="utf-8") == TEXT


def test_wrong_part_and_missing_region_are_mistakes(world: World) -> None:
    """An unknown part, and a place without a region, are one line each; on this machine nothing needs to be made."""
    assert world.up("--part", "both")[0] == 2
    world.file.write_text(TEXT.replace("  location: westeurope\n", ""), encoding="utf-8")
    code, told = world.up()
    assert (code, world.emulator.inventory()) == (2, [])
    assert "--set platform.location=westeurope" in told["error"]["fix"]
    with pytest.raises(SystemExit) as ended:
        main(["up"])
    assert ended.value.code == 0
    assert "This machine needs nothing made" in world.capsys.readouterr().out
