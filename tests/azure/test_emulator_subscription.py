"""The emulated subscription: its state, tenant and providers, how many machines it gets, and what they cost."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from dataclasses import replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from tests.azure.bodies import cluster_body
from tests.azure_contract.exchange import logged
from tests.azure_contract.judge import Judge, contract_folder, unjudged
from tests.azure_emulator.names import TENANT
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.quota import LOW_PRIORITY, TOTAL, Quota
from tests.azure_emulator.server import SCOPE
from tests.azure_emulator.store import Store

S, W = SCOPE.subscription_id, SCOPE.workspace_id
ML = f"{S}/providers/Microsoft.MachineLearningServices/locations"
L = f"{ML}/{SCOPE.location}"
ANOTHER_TENANT = "00000000-0000-0000-0000-0000000000cc"
SUBSCRIPTIONS, RESOURCES, QUOTA = "api-version=2022-12-01", "api-version=2021-04-01", "api-version=2023-02-01"
STABLE = "api-version=2024-04-01"
PRICES = "/api/retail/prices?api-version=2023-01-01-preview"


@pytest.fixture
def cloud(emulator: EmulatorProcess) -> Iterator[EmulatorProcess]:
    """The emulator, as it was again afterwards."""
    yield emulator
    emulator.reset()


def error(response: requests.Response) -> tuple[int, str, str]:
    """Status, code and message of a refusal."""
    told = response.json()["error"]
    return response.status_code, told["code"], told["message"]


def until(cloud: EmulatorProcess, path: str, *places: str, wanted: str) -> dict[str, Any]:
    """What is at a path when the value at a place in it is the wanted one."""
    deadline = time.monotonic() + 10
    while True:
        body = cloud.send("GET", path).json()
        value: Any = body
        for place in places:
            value = value.get(place) if isinstance(value, dict) else None
        if value == wanted:
            return dict(body)
        assert time.monotonic() < deadline, body
        time.sleep(0.02)


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


def usage(cloud: EmulatorProcess, name: str, location: str = SCOPE.location) -> tuple[Any, int]:
    """Use and limit of a family or of a sum."""
    found = cloud.send("GET", f"{ML}/{location}/usages?{STABLE}").json()["value"]
    one = next(one for one in found if one["name"]["value"] == name and one["limit"] >= 0)
    return one["currentValue"], one["limit"]


def test_usages_count_the_nodes_of_clusters_in_their_region(cloud: EmulatorProcess) -> None:
    """A cluster's smallest size is taken from its family and from the sum; another region is untouched."""
    family, before = "standardFSv2Family", usage(cloud, "TotalDedicatedCores")[0]
    body = cluster_body(size="Standard_F4s_v2", most=3)
    body["properties"]["properties"]["scaleSettings"]["minNodeCount"] = 2
    assert cloud.send("PUT", f"{W}/computes/counted?{STABLE}", body).status_code == 201
    assert usage(cloud, family) == (8, 500)
    assert usage(cloud, "TotalDedicatedCores")[0] == before + 8
    assert usage(cloud, family, "eastus2") == (0, 500)
    until(cloud, f"{W}/computes/counted?{STABLE}", "properties", "provisioningState", wanted="Succeeded")
    cloud.send("DELETE", f"{W}/computes/counted?{STABLE}&underlyingResourceAction=Delete")
    until(cloud, f"{W}/computes/counted?{STABLE}", "error", "code", wanted="ResourceNotFound")
    assert usage(cloud, family) == (0, 500)


def test_usages_count_the_instances_of_deployments_and_the_nodes_of_jobs(tmp_path: Path) -> None:
    """Whatever traffic they take; of a cluster the nodes that must be, or those that jobs have when these are more."""
    store = Store(tmp_path)
    store.put(f"{W}/computes/c", _cluster("c", "Standard_DS3_v2", smallest=1))
    store.put(f"{W}/computes/l", _cluster("l", "Standard_DS3_v2", priority="LowPriority"))
    for job, cluster in (("j", "c"), ("k", "c"), ("m", "l"), ("ended", "c")):
        told = {"computeId": f"{W}/computes/{cluster}", "resources": {"instanceCount": 1}}
        store.put(f"{W}/jobs/{job}", {"name": job, "properties": told})
    blue = f"{W}/onlineEndpoints/e/deployments/blue"
    store.put(blue, {"id": blue, "properties": {"instanceType": "Standard_E4s_v3"}, "sku": {"capacity": 3}})
    emulator: Any = SimpleNamespace(store=store, scope=SCOPE, workspace_id=W)
    quota = Quota(emulator)
    quota.is_running = lambda job: job != "ended"
    counted = quota.used(SCOPE.location)
    assert counted == {"standardDSv2Family": 8, "standardESv3Family": 12, TOTAL: 20, LOW_PRIORITY: 4}
    assert quota.used(SCOPE.location, without=blue)[TOTAL] == 8


def _cluster(name: str, size: str, *, smallest: int = 0, priority: str = "Dedicated") -> dict[str, Any]:
    inner = {"vmSize": size, "vmPriority": priority, "scaleSettings": {"minNodeCount": smallest}, "errors": None}
    told = {"provisioningState": "Succeeded", "properties": inner}
    return {"id": f"{W}/computes/{name}", "name": name, "properties": told}


def test_a_cluster_that_not_one_node_of_fits_the_quota_fails(cloud: EmulatorProcess) -> None:
    """As the service says it: the making fails, with the family's limit and the node's cores."""
    cloud.configure("quota/Standard FSv2 Family Cluster Dedicated vCPUs", {"limit": 2})
    cloud.send("PUT", f"{W}/computes/too-big?{STABLE}", cluster_body(size="Standard_F4s_v2"))
    made = until(cloud, f"{W}/computes/too-big?{STABLE}", "properties", "provisioningState", wanted="Failed")
    told = made["properties"]["provisioningErrors"][0]["error"]["message"]
    assert "vCPU quota of 2" in told and "4 vCPUs" in told
    cloud.send("DELETE", f"{W}/computes/too-big?{STABLE}&underlyingResourceAction=Delete")


def test_more_quota_is_granted_after_a_moment_or_refused(cloud: EmulatorProcess) -> None:
    """202, then the limit is another; a refusal says to ask support, and an offer without GPUs may not even ask."""
    family = "StandardNCADSA100v4Family"
    path = f"{L}/providers/Microsoft.Quota"
    cloud.configure(f"quota/{family}", {"limit": 0})
    body = {"properties": {"limit": {"limitObjectType": "LimitValue", "value": 24}, "name": {"value": family}}}
    asked = cloud.send("PUT", f"{path}/quotas/{family}?{QUOTA}", body)
    assert asked.status_code == 202
    until(cloud, asked.headers["Location"].removeprefix(cloud.url), "status", wanted="Succeeded")
    assert usage(cloud, family) == (0, 24)
    read = cloud.send("GET", f"{path}/quotas/{family}?{QUOTA}").json()
    assert read["properties"]["limit"]["value"] == 24
    cloud.configure("quota-requests", {"result": "Failed", "seconds": 0})
    body["properties"]["limit"] = {"limitObjectType": "LimitValue", "value": 96}
    assert cloud.send("PATCH", f"{path}/quotas/{family}?{QUOTA}", body).status_code == 202
    requests_ = cloud.send("GET", f"{path}/quotaRequests?{QUOTA}").json()["value"]
    assert sorted(one["properties"]["provisioningState"] for one in requests_) == ["Failed", "Succeeded"]
    failed = next(one for one in requests_ if one["properties"]["provisioningState"] == "Failed")
    assert failed["properties"]["error"]["code"] == "ContactSupport"
    assert usage(cloud, family) == (0, 24)
    cloud.configure("subscription", {"quotaId": "FreeTrial_2014-09-01"})
    refused = cloud.send("PUT", f"{path}/quotas/standardNCSv3Family?{QUOTA}", body)
    assert error(refused)[:2] == (400, "QuotaNotAvailableForResource")
    assert usage(cloud, "standardNCSv3Family") == (None, 0)


def test_a_size_that_a_region_lacks_is_restricted_and_cannot_be_used(cloud: EmulatorProcess) -> None:
    """Azure Machine Learning does not list it, Compute lists why not, and a cluster of it is refused."""
    size = "Standard_F8s_v2"
    cloud.configure(f"sizes/{size}", {"available": False, "locations": ["westeurope"]})

    def offered(location: str) -> bool:
        found = cloud.send("GET", f"{ML}/{location}/vmSizes?{STABLE}").json()["value"]
        return size in {one["name"] for one in found}

    assert (offered("westeurope"), offered("eastus2")) == (False, True)
    query = "api-version=2021-07-01&$filter=location eq 'westeurope'"
    skus = cloud.send("GET", f"{S}/providers/Microsoft.Compute/skus?{query}").json()["value"]
    restricted = {one["name"]: one["restrictions"][0]["reasonCode"] for one in skus if one["restrictions"]}
    assert restricted == {size: "NotAvailableForSubscription"}
    refused = cloud.send("PUT", f"{W}/computes/absent?{STABLE}", cluster_body(size=size))
    assert "STANDARD_VM_SIZE_NOT_AVAILABLE" in refused.text
    nowhere = cloud.send("GET", f"{ML}/atlantis/usages?{STABLE}")
    assert error(nowhere)[:2] == (400, "LocationNotAvailableForResourceType")


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


def items(cloud: EmulatorProcess, told: str) -> list[dict[str, Any]]:
    """All pages of a question for prices, which needs no token."""
    found, url = [], f"{cloud.env['PHIFLOW_PRICES_URL']}{PRICES.partition('prices')[2]}&$filter={told}"
    while url:
        page = requests.get(url, verify=cloud.env["REQUESTS_CA_BUNDLE"], timeout=10).json()
        assert page["Count"] == len(page["Items"])
        found += page["Items"]
        url = page["NextPageLink"]
    return found


def test_prices_are_public_paged_and_filtered(cloud: EmulatorProcess) -> None:
    """Of a size and a region there are the plain price and those that are not it; values are compared in their case."""
    size = "Standard_NC24ads_A100_v4"
    cloud.configure("prices-page", {"size": 2})
    cloud.configure(f"prices/{size}", {"retailPrice": 4.5})
    told = f"armSkuName eq '{size}' and armRegionName eq 'westeurope'"
    found = items(cloud, told)
    assert len(found) == 5
    plain = [
        one["retailPrice"]
        for one in items(cloud, f"{told} and priceType eq 'Consumption'")
        if "Windows" not in one["productName"] and not one["skuName"].endswith(("Spot", "Low Priority"))
    ]
    assert plain == [4.5]
    assert items(cloud, told.replace("westeurope", "WestEurope")) == []
    either = f"(armSkuName eq '{size}' or armSkuName eq 'Standard_DS3_v2') and contains(skuName, 'Spot') and "
    assert len(items(cloud, f"{either} armRegionName eq 'eastus'")) == 2
    refused = requests.get(
        f"{cloud.url}{PRICES}&$filter=colour eq 'red'", verify=cloud.env["REQUESTS_CA_BUNDLE"], timeout=10
    )
    assert error(refused)[:2] == (400, "BadRequest")


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


def test_a_deployment_that_the_quota_has_no_cores_for_is_refused(cloud: EmulatorProcess) -> None:
    """With the reserve that the service keeps for upgrades, of which sizes with an A100 are free."""
    body = {"location": SCOPE.location, "identity": {"type": "SystemAssigned"}, "properties": {"authMode": "Key"}}
    endpoint = f"{W}/onlineEndpoints/short-of-cores"
    assert cloud.send("PUT", f"{endpoint}?{STABLE}", body).status_code == 201
    until(cloud, f"{endpoint}?{STABLE}", "properties", "provisioningState", wanted="Succeeded")

    def refused(size: str) -> str:
        properties = {"endpointComputeType": "Managed", "instanceType": size}
        deployment = {"location": SCOPE.location, "properties": properties, "sku": {"name": "Default", "capacity": 1}}
        return cloud.send("PUT", f"{endpoint}/deployments/blue?{STABLE}", deployment).text

    cloud.configure("quota/standardESv3Family", {"limit": 4})
    assert "Current usage/limit: 0/4. Additional needed: 8" in refused("Standard_E4s_v3")
    cloud.configure("quota/StandardNCADSA100v4Family", {"limit": 20})
    assert "Current usage/limit: 0/20. Additional needed: 24" in refused("Standard_NC24ads_A100_v4")
    cloud.configure("quota/StandardNCADSA100v4Family", {"limit": 24})
    assert "quota" not in refused("Standard_NC24ads_A100_v4")
    cloud.send("DELETE", f"{endpoint}?{STABLE}")


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
