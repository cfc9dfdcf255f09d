"""How many machines the emulated subscription gets, which a region has, and what they cost."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import requests

from tests.azure.answers import error, until
from tests.azure.bodies import cluster_body
from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.quota import LOW_PRIORITY, TOTAL, Quota
from tests.azure_emulator.server import SCOPE
from tests.azure_emulator.store import Store

S, W = SCOPE.subscription_id, SCOPE.workspace_id
ML = f"{S}/providers/Microsoft.MachineLearningServices/locations"
L = f"{ML}/{SCOPE.location}"
QUOTA = "api-version=2023-02-01"
STABLE = "api-version=2024-04-01"
PRICES = "/api/retail/prices?api-version=2023-01-01-preview"


@pytest.fixture
def cloud(emulator: EmulatorProcess) -> Iterator[EmulatorProcess]:
    """The emulator, as it was again afterwards."""
    yield emulator
    emulator.reset()


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
