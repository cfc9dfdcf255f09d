"""`phiflow doctor` against the emulator: what keeps a run from working is found in one line, and nothing is made."""

from __future__ import annotations

import functools
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from flows import doctor
from tasks.config import PipelineConfig
from tasks.platforms.azure.checks.facts import Facts
from tasks.platforms.azure.checks.run_checks import check_place, run_checks
from tasks.platforms.azure.client import Workspace
from tasks.platforms.azure.foundation.names import resource_names
from tasks.platforms.azure.preflight import require_runnable
from tasks.platforms.azure.quota.request import request_quota
from tasks.platforms.errors import ConfigError, PermissionDeniedError, QuotaError
from tasks.platforms.upkeep import Check, Outcome
from tests.azure_emulator.names import TENANT
from tests.azure_emulator.process import ROOT, EmulatorProcess
from tests.azure_emulator.server import SCOPE

OTHER_TENANT = "00000000-0000-0000-0000-0000000000ff"
GPU = "Standard_NC24ads_A100_v4"
READER = {"roles": [{"scope": SCOPE.subscription_id, "role": "Reader"}]}
Set = Callable[..., None]


@pytest.fixture
def cloud(in_azure: EmulatorProcess) -> Iterator[Set]:
    """Have the cloud be as a document says, until the test has ended."""
    signed_in_otherwise = []

    def have(path: str, **document: Any) -> None:
        in_azure.configure(path, document)
        if path == "sign-in" or "tenant" in document:
            signed_in_otherwise.append(path)
            kept.cache_clear()  # with its tokens

    yield have
    if signed_in_otherwise:
        kept.cache_clear()


@pytest.fixture(autouse=True)
def looked_up(in_azure: EmulatorProcess) -> Iterator[None]:
    """The doctor may look for the registry of the base images, and for no other name."""
    yield
    assert set(in_azure.refused_names()) <= {"mcr.microsoft.com"}
    in_azure.forget_refused_names()


def configured(**sections: Any) -> PipelineConfig:
    """A configuration that could run here."""
    place = {
        "kind": "azure",
        "subscription_id": SCOPE.subscription,
        "resource_group": SCOPE.group,
        "workspace": SCOPE.workspace,
    }
    values: dict[str, Any] = {
        "name": "doctored",
        "platform": place | sections.pop("platform", {}),
        "data": {"source": str(ROOT / "deployments" / "data" / "phiflow_questions.jsonl")},
        "compute": {"size": "Standard_E16s_v3"},
    }
    return PipelineConfig.model_validate({**values, **sections})


def examined(config: PipelineConfig, purpose: Any = "run", part: Any = "all") -> list[Check]:
    """What is found in Azure."""
    return list(check_place(Facts(config, kept(config.platform), purpose, part)))


@functools.cache
def kept(place: Any) -> Workspace:
    """The workspace of one place: its connections, each of which reads all certificates, serve the next test too."""
    return Workspace(place)


def failures(found: list[Check]) -> list[Check]:
    """Those that failed, each told in one line."""
    for check in found:
        assert "\n" not in check.found + check.fix, check
    return [check for check in found if check.outcome == Outcome.FAIL]


def requests_that_make(emulator: EmulatorProcess) -> list[str]:
    """What was sent that may have made something."""
    reads = ("GET", "HEAD")
    asked = [
        f"{one['method']} {one['path']}" for one in emulator.exchanges()["exchanges"] if one["method"] not in reads
    ]
    return [line for line in asked if not line.endswith(("/listSecrets", "/checkNameAvailability"))]


def test_healthy_place_has_no_failure(cloud: Set, in_azure: EmulatorProcess) -> None:
    """All that a run needs is there; the checks are told cause first, and nothing is made by looking."""
    config = configured()
    found = list(run_checks(config, kept(config.platform)))
    assert failures(found) == []
    names = [check.name for check in found]
    order = ["network", "clock", "login", "tenant", "subscription", "providers", "workspace", "rights", "size", "quota"]
    assert [name for name in dict.fromkeys(names) if name in order] == order
    assert {"endpoint", "data access", "base model", "data", "python", "environments"} <= set(names)
    assert requests_that_make(in_azure) == []


TROUBLE = {
    "quota": (
        ("quota/standardESv3Family", {"limit": 10}),
        {},
        "quota",
        "Standard ESv3 Family Cluster Dedicated vCPUs in westeurope: 24 needed",
        "phiflow up CONFIG --request-quota",
    ),
    "GPU on a free trial": (
        ("subscription", {"quotaId": "FreeTrial_2014-09-01"}),
        {"compute": {"size": GPU}},
        "quota",
        "a subscription of the offer free trial gets no GPU quota",
        "phiflow run deployments/azure-cpu.yaml",
    ),
    "role": (
        ("caller", READER),
        {},
        "rights",
        "is not allowed on",
        'az role assignment create --assignee 00000000-0000-0000-0000-0000000000bb --role "AzureML Data Scientist"',
    ),
    "tenant": (
        ("caller", {"tenant": OTHER_TENANT}),
        {},
        "tenant",
        f"signed in to tenant {OTHER_TENANT}, but the subscription is in tenant {TENANT}",
        f"az login --tenant {TENANT}",
    ),
    "configured tenant": (
        ("caller", {}),
        {"platform": {"tenant_id": OTHER_TENANT}},
        "tenant",
        f"platform.tenant_id is {OTHER_TENANT}",
        f"Set platform.tenant_id to {TENANT}",
    ),
    "provider": (
        ("providers/Microsoft.ContainerRegistry", {"registrationState": "NotRegistered"}),
        {},
        "provider",
        "Microsoft.ContainerRegistry is NotRegistered",
        "az provider register --namespace Microsoft.ContainerRegistry",
    ),
    "endpoint name": (
        ("endpoint-names/taken-by-others", {}),
        {"endpoint": {"name": "taken-by-others"}},
        "endpoint",
        "the name taken-by-others is taken in westeurope",
        "--set endpoint.name=taken-by-others-",
    ),
    "login": (
        ("sign-in", {"expired": True}),
        {},
        "login",
        "the login has expired",
        f"az login --tenant {TENANT}",
    ),
    "subscription": (
        ("subscription", {"state": "Disabled"}),
        {},
        "subscription",
        "Emulated subscription is Disabled: nothing can be made in it",
        "https://learn.microsoft.com/azure/cost-management-billing/manage/subscription-disabled",
    ),
    "clock": (("clock", {"skew_seconds": -900}), {}, "clock", "s ahead of Azure's", "timedatectl set-ntp true"),
    "size": (
        ("sizes/Standard_E16s_v3", {"available": False}),
        {},
        "size",
        "Standard_E16s_v3 (compute.size) is not available in westeurope",
        "--set compute.size=Standard_E",
    ),
    "workspace": (
        ("caller", {}),
        {"platform": {"workspace": "nowhere", "location": "westeurope"}},
        "workspace",
        "nowhere in phiflow-emulator does not exist",
        "phiflow up CONFIG",
    ),
}


# Without a login nothing is asked of the subscription, and so on.
CAUSES = ("clock", "login", "tenant", "subscription", "provider")


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_is_found_in_one_line_with_its_command(trouble: str, cloud: Set, in_azure: EmulatorProcess) -> None:
    """What is wrong is named, with the command that mends it; a cause ends what stands on it; nothing was made."""
    (path, document), sections, name, words, fix = TROUBLE[trouble]
    cloud(path, **document)
    found = examined(configured(**sections))
    wrong = failures(found)
    assert any(one.name == name and words in one.found and fix in one.fix for one in wrong), wrong
    assert requests_that_make(in_azure) == []
    if name in CAUSES:
        assert {check.name for check in wrong} == {name}
        assert not {check.name for check in found} & {"quota", "size", "endpoint", "data access"}


def test_no_network_is_told_and_nothing_else_asked(cloud: Set) -> None:
    """Where Resource Manager cannot be reached, nobody is asked to sign in."""
    config = configured()
    workspace = Workspace(config.platform)  # type: ignore[arg-type]
    workspace.__dict__["resource_manager"] = "https://127.0.0.1:9"
    found = list(check_place(Facts(config, workspace)))
    assert [check.name for check in failures(found)] == ["network"]
    assert found[-1].name == "network"
    assert "HTTPS_PROXY" in found[-1].fix


def test_what_would_do_instead_is_told(cloud: Set) -> None:
    """Where quota is missing, sizes and regions that have it are named, and the way without a GPU."""
    cloud("quota/StandardNCADSA100v4Family", limit=0)
    cloud("quota/StandardNCADSA100v4Family", limit=24, location="swedencentral")
    found = examined(configured(compute={"size": GPU}))
    instead = next(check for check in found if check.name == "instead")
    assert "Standard_NC40ads_H100_v5" in instead.found
    assert f"regions with room for {GPU}: swedencentral" in instead.found
    assert "azure-cpu.yaml" in instead.fix


def test_quota_is_asked_for_and_granted(cloud: Set) -> None:
    """`--request-quota` asks for what is missing and follows the request to its end; then the check passes."""
    cloud("quota/StandardNCADSA100v4Family", limit=0)
    config = configured(compute={"size": GPU}, platform={"poll_seconds": 0.1})
    (asked,) = request_quota(config, kept(config.platform))
    assert (asked.outcome, asked.found.endswith("a limit of 24 was granted")) == (Outcome.PASS, True), asked
    assert failures(examined(config)) == []
    assert list(request_quota(config, Workspace(config.platform))) == []  # type: ignore[arg-type]


def test_quota_that_is_refused_names_page_and_number(cloud: Set) -> None:
    """Where a person has to look at the request, the page, the limit's name and the number are told."""
    cloud("quota/StandardNCADSA100v4Family", limit=0)
    cloud("quota-requests", result="Failed", message="Please contact support.")
    config = configured(compute={"size": GPU}, platform={"poll_seconds": 0.1})
    (asked,) = request_quota(config, kept(config.platform))
    assert asked.outcome == Outcome.FAIL and "refused: Please contact support." in asked.found
    assert asked.fix.startswith(
        "Ask for a limit of 24 for Standard NCADSA100v4 Family Cluster Dedicated vCPUs in westeu"
    )
    assert asked.fix.endswith("/quota")


def test_parts_of_up_need_different_rights(cloud: Set) -> None:
    """A contributor may do the engineer's part of `phiflow up`, and not the owner's, which gives roles."""
    cloud("caller", roles=[{"scope": SCOPE.subscription_id, "role": "Contributor"}])
    assert failures(examined(configured(), "up", "engineer")) == []
    (wrong,) = failures(examined(configured(), "up", "owner"))
    assert "Microsoft.Authorization/roleAssignments/write" in wrong.found
    assert '--role "Role Based Access Control Administrator"' in wrong.fix


def test_deleted_key_vault_that_keeps_its_name_is_told(cloud: Set) -> None:
    """A vault that was deleted and not purged is found before `phiflow up` stumbles over its name."""
    config = configured(platform={"workspace": "again", "location": "westeurope"})
    vault = resource_names(config.platform).key_vault.rpartition("/")[2]  # type: ignore[arg-type]
    cloud(f"deleted-vaults/{vault}")
    (wrong,) = failures(examined(config, "up"))
    assert f"key vault {vault} was deleted and keeps its name" in wrong.found
    assert wrong.fix.startswith(f"az keyvault purge --name {vault}")


def test_run_is_refused_for_what_no_wait_can_mend(cloud: Set) -> None:
    """Before anything is uploaded: a limit too low for one node, a right that is missing, a name that is taken."""
    config = configured()
    cloud("quota/standardESv3Family", limit=8)
    with pytest.raises(QuotaError, match="the limit is 8, and 16 vCPUs are needed at once"):
        require_runnable(config, kept(config.platform))
    cloud("quota/standardESv3Family", limit=24)
    require_runnable(config, kept(config.platform))
    cloud("endpoint-names/doctored-taken")
    taken = configured(endpoint={"name": "doctored-taken"})
    with pytest.raises(ConfigError, match="taken in westeurope by somebody else"):
        require_runnable(taken, kept(taken.platform))
    cloud("caller", **READER)
    with pytest.raises(PermissionDeniedError, match="is not allowed on"):
        require_runnable(config, kept(config.platform))


def test_command_tells_and_ends_with_4(cloud: Set, capsys: pytest.CaptureFixture[str]) -> None:
    """`phiflow doctor` on Azure: a line each, the configuration's path in the command."""
    cloud("quota/standardESv3Family", limit=0)
    path = ROOT / "deployments" / "azure-emulator.yaml"
    assert doctor.examine(path, [], False) == 4
    told = capsys.readouterr().out
    assert "fail  quota" in told
    assert f"fix: phiflow up {path} --request-quota" in told


def test_roles_of_the_identity_are_looked_for_where_they_hold(cloud: Set, in_azure: EmulatorProcess) -> None:
    """The identity of cluster and endpoint needs storage and registry; a role given on the group counts as well."""
    group = f"{SCOPE.subscription_id}/resourceGroups/{SCOPE.group}"
    identity = f"{group}/providers/Microsoft.ManagedIdentity/userAssignedIdentities/doctored"
    made = in_azure.send("PUT", f"{identity}?api-version=2023-01-31", {"location": SCOPE.location})
    assert made.ok, made.text
    config = configured(platform={"identity": {"resource_id": identity}})
    wrong = failures(examined(config))
    assert "doctored lacks Storage Blob Data Contributor on " in wrong[0].found
    assert {check.name for check in wrong} == {"identity"}
    principal = made.json()["properties"]["principalId"]
    assert f'--assignee-object-id {principal} --assignee-principal-type ServicePrincipal --role "' in wrong[0].fix
    assignments = []
    for role in ("ba92f5b4-2d11-453d-a403-e96b0029c9fe", "7f951dda-4ed3-4680-a7ca-43fe172d538d"):
        definition = f"{SCOPE.subscription_id}/providers/Microsoft.Authorization/roleDefinitions/{role}"
        properties = {"roleDefinitionId": definition, "principalId": principal, "principalType": "ServicePrincipal"}
        assigned = f"{group}/providers/Microsoft.Authorization/roleAssignments/{uuid.uuid4()}?api-version=2022-04-01"
        assert in_azure.send("PUT", assigned, {"properties": properties}).ok
        assignments.append(assigned)
    assert failures(examined(config)) == []
    for made_here in (*assignments, f"{identity}?api-version=2023-01-31"):
        assert in_azure.send("DELETE", made_here).ok
    absent = configured(platform={"identity": {"resource_id": f"{identity}-gone"}})
    assert "which does not exist" in failures(examined(absent))[0].found
