"""`phiflow down` on an emulated subscription that `phiflow up` has filled: each scope, twice, killed, and back to zero.

The slow tests are one story in this order: what serves goes, then where jobs run, then all but what others made.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("azure.ai.ml", reason="the packages for Azure are not installed")

from flows.cli import main
from tasks.config import PipelineConfig, ServingConfig
from tasks.config_files import load_config
from tasks.platforms.connect import connect, plan_tear_down, provisioning, remove
from tasks.platforms.refs import EnvironmentRef
from tasks.platforms.upkeep import Remainder, Removal, Scope
from tests.azure.orphans import OURS, environment
from tests.azure.workbench import ASSETS, ENDPOINTS, JOBS, W, Workbench, until
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE
from tests.contract.conftest import emulator_process, reached
from tests.contract.places import MADE, NAME_FILE, server_source, version

ENDPOINT, CLUSTER, NUMBER = "support-down", "nodes", "3"
STORAGE = f"{SCOPE.group_id}/providers/Microsoft.Storage/storageAccounts/somebodyelses?api-version=2023-05-01"


@dataclass
class World:
    """The emulator, the configuration, and what a person types."""

    emulator: EmulatorProcess
    file: Path
    config: PipelineConfig
    capsys: Any = None

    def up(self) -> None:
        """Make the workspace and what belongs to it."""
        made = provisioning(self.config)
        for _ in made.apply("all", made.plan("all")):
            pass

    def down(self, scope: str, *options: str) -> tuple[int, dict[str, Any]]:
        """The command with --yes; its exit code and its document."""
        with pytest.raises(SystemExit) as ended:
            main(["down", str(self.file), "--scope", scope, "--yes", "--json", *options])
        return int(ended.value.code or 0), json.loads(self.capsys.readouterr().out)

    def inventory(self) -> list[str]:
        """Everything that exists in the subscription."""
        answer = self.emulator.send("GET", "/_emulator/inventory")
        return [str(one["id"]) for one in answer.json()["value"]]

    def plan(self, scope: Scope) -> tuple[dict[tuple[str, str], Removal], dict[tuple[str, str], Remainder]]:
        """What a scope would delete and leave, by kind and name."""
        plan = plan_tear_down(self.config, scope)
        removals = {(one.kind, one.name): one for one in plan.removals}
        return removals, {(one.kind, one.name): one for one in plan.remainders}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A subscription that was empty, and a workspace that phiflow made in it."""
    folder = tmp_path_factory.mktemp("down")
    options = ("--empty", "--server-source", str(server_source(folder)))
    with emulator_process(folder, *options) as process, reached(process.env):
        file = folder / "run.yaml"
        values: dict[str, Any] = {
            "name": "support",
            "platform": {
                "kind": "azure",
                "location": SCOPE.location,
                "poll_seconds": 0.1,
                "home": str(folder / "home"),
                "resources": {"chat_history": True, "monthly_budget": 9, "budget_contact": "a@b.test"},
            },
            "compute": {"name": CLUSTER, "size": "Standard_DS3_v2", "min_instances": 1, "max_instances": 2},
            "endpoint": {"name": ENDPOINT},
            "data": {"source": str(folder / "run.yaml")},
        }
        file.write_text(json.dumps(values), encoding="utf-8")
        world = World(process, file, load_config(file))
        world.up()
        yield world


@pytest.fixture
def world(made: World, capsys: pytest.CaptureFixture[str]) -> World:
    """The world, with what a command prints."""
    made.capsys = capsys
    return made


@pytest.fixture(scope="module")
def bench(made: World) -> Workbench:
    """The workspace's own interface."""
    return Workbench(made.emulator)


def serve(world: World, bench: Workbench) -> str:
    """Version 3 behind the endpoint; the name of its deployment."""
    platform: Any = connect(world.config.platform)
    bench.put(f"environments/stand-in/versions/1{ASSETS}", environment())
    storage = platform.workspace.storage
    path = f"phiflow/jobs/support-{NUMBER}/model"
    storage.write(f"{path}/{NAME_FILE}", NUMBER.encode())
    properties = {"modelUri": storage.uri(path), "modelType": "custom_model", "tags": OURS}
    bench.put(f"models/support/versions/{NUMBER}{ASSETS}", {"properties": properties})
    platform.ensure_endpoint(ENDPOINT)
    stand_in = EnvironmentRef(name="stand-in", version="1", location="azureml:stand-in:1", origin=MADE)
    deployment = platform.deploy(ENDPOINT, version(NUMBER, storage.uri(path)), ServingConfig(), stand_in)
    until(lambda: platform.read_deployment(ENDPOINT, deployment.name).state == "ready")
    platform.set_traffic(ENDPOINT, {deployment.name: 100}, "test")
    return str(deployment.name)


def their_endpoint(bench: Workbench) -> str:
    """An endpoint that somebody made by hand; its path."""
    theirs = {"location": SCOPE.location, "properties": {"authMode": "Key"}, "identity": {"type": "SystemAssigned"}}
    bench.put(f"onlineEndpoints/theirs{ENDPOINTS}", theirs)
    path = f"{W}/onlineEndpoints/theirs"
    until(lambda: bench.read(f"{path}{ENDPOINTS}")["properties"]["provisioningState"] == "Succeeded")
    return path


def delete_their_endpoint(bench: Workbench) -> None:
    """As whoever made it would."""
    path = f"{W}/onlineEndpoints/theirs{ENDPOINTS}"
    assert bench.emulator.send("DELETE", path).status_code == 202
    until(lambda: bench.emulator.send("GET", path).status_code == 404)


@pytest.mark.slow
def test_endpoint_goes_with_its_deployments_and_chat_app(world: World, bench: Workbench) -> None:
    """What ends is said before; a run's lease holds; the second time there is nothing; others' endpoints stay."""
    theirs = their_endpoint(bench)
    serve(world, bench)
    platform: Any = connect(world.config.platform)
    chat = Path(world.config.platform.home) / "chat" / ENDPOINT / "chat.json"
    chat.parent.mkdir(parents=True)
    chat.write_text(json.dumps({"url": "http://127.0.0.1:1"}))
    removals, remainders = world.plan(Scope.ENDPOINT)
    assert set(removals) == {("chat app", ENDPOINT), ("endpoint", ENDPOINT)}
    endpoint = removals["endpoint", ENDPOINT]
    assert endpoint.machines == ("Standard_E4s_v3",)
    assert "version 3 serves with 1 deployment(s); nothing will answer" in endpoint.effect
    assert remainders["cluster", CLUSTER].bills
    assert remainders["cluster", CLUSTER].fix == "phiflow down --scope compute"
    with platform.lease_endpoint(ENDPOINT, "run one", 1), pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.platforms.azure.clean_up.tear_down._LEASE_SECONDS", 0.2)
        code, told = world.down("endpoint")
    assert (code, told["error"]["kind"]) == (4, "ConflictError")
    assert "is being changed by run one" in told["error"]["message"]
    assert platform.read_endpoint(ENDPOINT)
    code, told = world.down("endpoint")
    assert (code, [one["kind"] for one in told["deleted"]]) == (0, ["endpoint"])
    assert platform.read_endpoint(ENDPOINT) is None
    assert not chat.exists()
    assert not platform.workspace.storage.exists(f"phiflow/endpoints/{ENDPOINT}.json")
    assert {one["name"] for one in told["left"] if one["bills"]} == {CLUSTER, SCOPE.workspace}
    code, told = world.down("endpoint")
    assert (code, told["deleted"]) == (0, [])
    assert bench.read(f"{theirs}{ENDPOINTS}")
    delete_their_endpoint(bench)


@pytest.mark.slow
def test_chat_app_goes_alone(world: World, bench: Workbench) -> None:
    """Scope chat ends the app, and says what the endpoint behind it goes on to cost."""
    serve(world, bench)
    chat = Path(world.config.platform.home) / "chat" / ENDPOINT / "chat.json"
    chat.write_text(json.dumps({"url": "http://127.0.0.1:1"}))
    code, told = world.down("chat")
    assert (code, told["deleted"][0]["kind"], chat.exists()) == (0, "chat app", False)
    (endpoint,) = (one for one in told["left"] if one["kind"] == "endpoint")
    assert (endpoint["fix"], endpoint["dollars_an_hour"] > 0) == ("phiflow down --scope endpoint", True)


@pytest.mark.slow
def test_cluster_goes_after_its_jobs_unless_it_has_somebody_elses(world: World, bench: Workbench) -> None:
    """The configuration's live jobs are cancelled by name; a job that is not phiflow's keeps the cluster."""
    tags = {**OURS, "phiflow.key": "support-1", "phiflow.attempt": "1", "phiflow.kind": "training", "phiflow.data": "d"}
    cluster = f"{W}/computes/{CLUSTER}"
    bench.submit("support-1", bench.job("sleep 600", cluster, tags={**tags, "phiflow.of.support": "1"}))
    bench.submit("theirs", bench.job("sleep 600", cluster))
    removals, remainders = world.plan(Scope.COMPUTE)
    assert set(removals) == {("job", "support-1")}
    assert "job theirs is on it, which is not phiflow's" in remainders["cluster", CLUSTER].reason
    code, told = world.down("compute")
    assert (code, [one["name"] for one in told["deleted"]]) == (0, ["support-1"])
    assert bench.status("support-1") == "Canceled"
    assert bench.status("theirs") not in ("Canceled", "Completed")
    assert bench.emulator.send("POST", f"{W}/jobs/theirs/cancel?api-version=2023-04-01-preview").ok
    assert bench.ended("theirs") == "Canceled"
    code, told = world.down("compute")
    assert (code, [one["kind"] for one in told["deleted"]]) == (0, ["cluster"])
    assert bench.emulator.send("GET", f"{cluster}{JOBS}").status_code == 404
    assert world.down("compute")[1]["deleted"] == []


@pytest.mark.slow
def test_what_others_made_stays_and_keeps_what_it_needs(world: World, bench: Workbench) -> None:
    """With somebody's endpoint in the workspace and somebody's account in the group, both stay, and what they need."""
    account = {"location": SCOPE.location, "sku": {"name": "Standard_LRS"}, "kind": "StorageV2", "properties": {}}
    assert world.emulator.send("PUT", STORAGE, account).ok
    their_endpoint(bench)
    removals, remainders = world.plan(Scope.ALL)
    kinds = {kind for kind, _ in removals}
    assert {"endpoint", "Cosmos DB account", "budget", "identity", "role assignment", "deployment record"} <= kinds
    assert not {"workspace", "key vault", "container registry", "application insights", "resource group"} & kinds
    assert remainders["workspace", SCOPE.workspace].reason == "it has endpoint theirs, not made by phiflow"
    assert remainders["storage account", "somebodyelses"].reason == "phiflow did not make it"
    vault = next(one for (kind, _), one in remainders.items() if kind == "key vault")
    assert "needs it, which stays" in vault.reason
    before = world.inventory()
    code, _ = world.down("all")
    assert code == 0
    left = world.inventory()
    assert set(left) < set(before)
    for word in ("workspaces/phiflow-emulated", "onlineEndpoints/theirs", "somebodyelses", "vaults/", "registries/"):
        assert [one for one in left if word.lower() in one.lower()], word
    assert not [one for one in left if "databaseAccounts" in one or "roleAssignments" in one]
    delete_their_endpoint(bench)
    assert world.emulator.send("DELETE", STORAGE).ok


def test_killed_after_each_step_it_goes_on_to_zero(world: World) -> None:
    """After each deletion a new command lists the rest and nothing else; at the end the subscription is empty."""
    world.up()
    lengths = []
    while removals := plan_tear_down(world.config, Scope.ALL).removals:
        lengths.append(len(removals))
        remove(world.config, removals[0])
        assert len(lengths) < 40
    assert lengths == sorted(set(lengths), reverse=True)
    assert len(lengths) > 12
    assert world.inventory() == []
    code, told = world.down("all")
    assert (code, told["deleted"], told["left"]) == (0, [], [])


@pytest.mark.slow
def test_without_rights_the_rest_goes_and_who_may_is_told(world: World) -> None:
    """A Contributor of the group deletes what is in it; roles and the vault's purge are left to whoever may."""
    world.up()
    role = {"scope": SCOPE.group_id, "role": "Contributor"}
    assert world.emulator.send("PUT", "/_emulator/caller", {"roles": [role]}).ok
    try:
        code, told = world.down("all")
    finally:
        assert world.emulator.send("DELETE", "/_emulator/caller").ok
    assert (code, told["error"]["kind"]) == (4, "PermissionDeniedError")
    assert {"workspace", "storage account", "resource group"} <= {one["kind"] for one in told["deleted"]}
    assert "role assignment" not in {one["kind"] for one in told["deleted"]}
    (vault,) = (one for one in told["left"] if one["kind"] == "deleted key vault")
    assert vault["fix"].startswith("az keyvault purge --name phi")
    assert [one for one in world.inventory() if "deletedVaults" in one] == world.inventory()
    assert world.down("all")[0] == 0
    assert world.inventory() == []


@pytest.fixture
def vault_between(world: World) -> Callable[[], str]:
    """Make the workspace anew, and delete its key vault as a command does that is killed before it purges it."""

    def delete() -> str:
        world.up()
        vaults = [one for one in world.inventory() if "/vaults/" in one]
        assert world.emulator.send("DELETE", f"{vaults[0]}?api-version=2023-07-01").ok
        return vaults[0].rpartition("/")[2]

    return delete


@pytest.mark.slow
def test_deleted_vault_is_purged_and_lost_answers_do_no_harm(world: World, vault_between: Callable[[], str]) -> None:
    """A vault that is deleted but not purged keeps its name taken, so it is found; a lost answer is asked again."""
    name = vault_between()
    assert ("deleted key vault", name) in world.plan(Scope.ALL)[0]
    world.emulator.add_scenario("lost", match={"method": "DELETE", "path": "/registries/"})
    code, told = world.down("all")
    assert code == 0, told
    assert "deleted key vault" in [one["kind"] for one in told["deleted"]]
    assert world.inventory() == []
