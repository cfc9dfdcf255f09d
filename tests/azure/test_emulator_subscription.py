"""The emulated subscription: its state, its tenant, its providers, and the names that others have."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from typing import Any

import pytest
import requests

from tests.azure.answers import error, until
from tests.azure.bodies import cluster_body
from tests.azure_contract.exchange import logged
from tests.azure_contract.judge import Judge, contract_folder, unjudged
from tests.azure_emulator.names import TENANT
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE

S, W = SCOPE.subscription_id, SCOPE.workspace_id
ML = f"{S}/providers/Microsoft.MachineLearningServices/locations"
L = f"{ML}/{SCOPE.location}"
ANOTHER_TENANT = "00000000-0000-0000-0000-0000000000cc"
SUBSCRIPTIONS, RESOURCES, QUOTA = "api-version=2022-12-01", "api-version=2021-04-01", "api-version=2023-02-01"
STABLE = "api-version=2024-04-01"


@pytest.fixture
def cloud(emulator: EmulatorProcess) -> Iterator[EmulatorProcess]:
    """The emulator, as it was again afterwards."""
    yield emulator
    emulator.reset()


def test_a_subscription_tells_its_state_its_tenant_and_its_offer(cloud: EmulatorProcess) -> None:
    """Listed and read alike; the emulator's control changes them at once."""
    cloud.configure("subscription", {"state": "Warned", "quotaId": "MSDN_2014-09-01"})
    read = cloud.send("GET", f"{S}?{SUBSCRIPTIONS}").json()
    assert (read["state"], read["tenantId"]) == ("Warned", TENANT)
    assert read["subscriptionPolicies"]["quotaId"] == "MSDN_2014-09-01"
    assert cloud.send("GET", f"/subscriptions?{SUBSCRIPTIONS}").json()["value"] == [read]
    assert cloud.send("GET", f"/tenants?{SUBSCRIPTIONS}").json()["value"][0]["tenantId"] == TENANT
    regions = cloud.send("GET", f"{S}/locations?{SUBSCRIPTIONS}").json()["value"]
    assert {"westeurope", "eastus2"} <= {region["name"] for region in regions}


def test_nobody_needs_a_token_to_learn_the_tenant_or_that_there_is_no_subscription(cloud: EmulatorProcess) -> None:
    """The refusal says where tokens are given, and there is none for a subscription that does not exist."""
    get = {"verify": cloud.env["REQUESTS_CA_BUNDLE"], "timeout": 10}
    refused = requests.get(f"{cloud.url}{S}?{SUBSCRIPTIONS}", **get)  # type: ignore[arg-type]
    assert refused.status_code == 401
    assert f"/{TENANT}" in refused.headers["WWW-Authenticate"]
    other = S.replace("0001", "0009")
    absent = requests.get(f"{cloud.url}{other}?{SUBSCRIPTIONS}", **get)  # type: ignore[arg-type]
    assert error(absent)[:2] == (404, "SubscriptionNotFound")


def test_a_token_of_another_tenant_is_refused_in_the_services_words(cloud: EmulatorProcess) -> None:
    """Both issuers are named, and the subscription is not listed."""
    cloud.configure("caller", {"tenant": ANOTHER_TENANT})
    status, code, message = error(cloud.send("GET", f"{W}?{STABLE}"))
    assert (status, code) == (401, "InvalidAuthenticationTokenTenant")
    assert message.index(ANOTHER_TENANT) < message.index(TENANT)
    assert cloud.send("GET", f"/subscriptions?{SUBSCRIPTIONS}").json()["value"] == []


def test_a_disabled_subscription_can_be_read_and_emptied_only(cloud: EmulatorProcess) -> None:
    """Writing is refused with 409."""
    cloud.configure("subscription", {"state": "Disabled"})
    assert cloud.send("GET", f"{W}?{STABLE}").status_code == 200
    refused = cloud.send("PUT", f"{W}/computes/disabled?{STABLE}", cluster_body())
    assert error(refused)[:2] == (409, "ReadOnlyDisabledSubscription")
    gone = cloud.send("DELETE", f"{W}/computes/disabled?{STABLE}&underlyingResourceAction=Delete")
    assert gone.status_code == 404


def test_an_expired_sign_in_gives_no_tokens(cloud: EmulatorProcess) -> None:
    """Neither to us nor to the SDK's credential, which says why."""
    cloud.configure("sign-in", {"expired": True})
    script = (
        "from azure.identity import DefaultAzureCredential as C; import os\n"
        "try: C().get_token(os.environ['PHIFLOW_EMULATOR_URL'] + '/.default')\n"
        "except Exception as error: print(type(error).__name__, 'AADSTS70043' in str(error))"
    )
    assert cloud.run(script).stdout.split()[-1] == "True"
    cloud.configure("sign-in")
    assert cloud.token()


def test_the_clock_of_the_service_can_be_off(cloud: EmulatorProcess) -> None:
    """The header Date is, by as much as was set."""
    cloud.configure("clock", {"skew_seconds": 900})
    told = parsedate_to_datetime(cloud.send("GET", f"{S}?{SUBSCRIPTIONS}").headers["Date"]).timestamp()
    assert told - time.time() == pytest.approx(900, abs=5)


def test_a_provider_is_registered_by_asking_and_nothing_is_made_before(cloud: EmulatorProcess) -> None:
    """409 names the namespace; registering takes a moment."""
    cloud.configure("providers/Microsoft.MachineLearningServices", {"registrationState": "NotRegistered"})
    put = ("PUT", f"{W}/computes/unregistered?{STABLE}", cluster_body())
    status, code, message = error(cloud.send(*put))
    assert (status, code) == (409, "MissingSubscriptionRegistration")
    assert "'Microsoft.MachineLearningServices'" in message
    path = f"{S}/providers/microsoft.machinelearningservices"
    begun = cloud.send("POST", f"{path}/register?{RESOURCES}").json()
    assert begun["registrationState"] == "Registering"
    told = until(cloud, f"{path}?{RESOURCES}", "registrationState", wanted="Registered")
    kinds = {one["resourceType"]: one for one in told["resourceTypes"]}
    assert "West Europe" in kinds["workspaces"]["locations"]
    assert "2024-04-01" in kinds["workspaces"]["apiVersions"]
    listed = cloud.send("GET", f"{S}/providers?{RESOURCES}").json()["value"]
    assert {"Microsoft.Storage", "Microsoft.Quota"} <= {one["namespace"] for one in listed}
    assert error(cloud.send("GET", f"{S}/providers/Microsoft.Nonsense?{RESOURCES}"))[0] == 404


def test_a_name_that_somebody_else_in_the_region_has_resolves_and_is_refused(cloud: EmulatorProcess) -> None:
    """The one sign of it before an endpoint is made is its host's name; asking is not counted as reaching out."""
    cloud.configure("endpoint-names/taken", {})
    script = """
import json, socket
def look(name):
    try:
        return socket.getaddrinfo(f"{name}.westeurope.inference.ml.azure.com", 443)[0][4][0]
    except socket.gaierror as error:
        return error.errno == socket.EAI_NONAME
print(json.dumps([look("taken"), look("free")]))
"""
    assert json.loads(cloud.run(script).stdout) == ["127.0.0.1", True]
    assert cloud.refused_names() == []
    body = {"location": SCOPE.location, "identity": {"type": "SystemAssigned"}, "properties": {"authMode": "Key"}}
    refused = cloud.send("PUT", f"{W}/onlineEndpoints/taken?{STABLE}", body)
    assert error(refused)[:2] == (400, "UserError")
    assert "unique within the region" in refused.text


@pytest.mark.parametrize(
    ("document", "wrong"),
    [
        ("subscription", {"state": "Happy"}),
        ("caller", {"roles": [{"scope": S, "role": "Emperor"}]}),
        ("quota/standardDSv2Family", {"limit": "much"}),
        ("quota/nonsense", {"limit": 1}),
        ("sizes/Standard_X", {"available": False}),
        ("providers/Microsoft.Storage", {"registrationState": "Maybe"}),
        ("clock", {"skew": 1}),
    ],
)
def test_controls_refuse_what_makes_no_sense(cloud: EmulatorProcess, document: str, wrong: dict[str, Any]) -> None:
    """A test that is set up wrongly is told so, and does not pass for the wrong reason."""
    with pytest.raises(AssertionError, match="error"):
        cloud.configure(document, wrong)


def test_what_is_told_here_is_what_microsoft_describes(cloud: EmulatorProcess) -> None:
    """Providers, roles and quota: no finding, and with a key too many in any answer there is one."""
    contract = contract_folder()
    if contract is None:
        pytest.skip("Microsoft's descriptions of Azure are not on this machine: set PHIFLOW_AZURE_CONTRACT")
    before, roles = len(list(logged(cloud.log))), "api-version=2022-04-01"
    limit = {"properties": {"limit": {"limitObjectType": "LimitValue", "value": 600}}}
    for method, path in (
        ("GET", f"{S}/providers?{RESOURCES}"),
        ("POST", f"{S}/providers/Microsoft.Storage/register?{RESOURCES}"),
        ("GET", f"{S}/resourceGroups/{SCOPE.group}/providers/Microsoft.Authorization/permissions?{roles}"),
        ("GET", f"{W}/providers/Microsoft.Authorization/permissions?{roles}"),
        ("GET", f"{W}/providers/Microsoft.Authorization/roleAssignments?{roles}&$filter=atScope()"),
        ("GET", f"{S}/providers/Microsoft.Authorization/roleDefinitions?{roles}"),
        ("GET", f"{L}/usages?{STABLE}"),
        ("GET", f"{L}/vmSizes?{STABLE}"),
        ("GET", f"{L}/providers/Microsoft.Quota/usages?{QUOTA}"),
        ("GET", f"{L}/providers/Microsoft.Quota/quotas?{QUOTA}"),
        ("PUT", f"{L}/providers/Microsoft.Quota/quotas/standardFSv2Family?{QUOTA}"),
        ("GET", f"{L}/providers/Microsoft.Quota/quotaRequests?{QUOTA}"),
    ):
        assert cloud.send(method, path, limit if method == "PUT" else None).status_code < 300
    told = [one for one in list(logged(cloud.log))[before:] if one.managed]
    judge = Judge(contract)
    assert [unjudged(one) for one in told] == [None] * 12
    assert [str(finding) for finding in judge.findings(told)] == []
    answered = [one for one in told if isinstance(one.response, dict)]
    mutants = [replace(one, response={**one.response, "surprise": 1}) for one in answered]
    assert len(mutants) == 11 and [one.operation for one in mutants if not judge.problems(one)] == []
