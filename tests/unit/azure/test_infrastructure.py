"""A cluster's name, and when an existing one is another than the configuration says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from azure.core.polling import LROPoller, NoPolling

from tasks.config import AzureIdentityConfig, AzurePlatformConfig, ComputeConfig
from tasks.platforms.azure.client import Workspace
from tasks.platforms.azure.infrastructure import Infrastructure, cluster_name
from tasks.platforms.errors import ConfigError, ConflictError, Failure, NotFoundError, PhiflowError, QuotaError

IDENTITY = "/subscriptions/s/resourceGroups/g/providers/Microsoft.ManagedIdentity/userAssignedIdentities/phi"
COMPUTE = ComputeConfig(size="Standard_E16s_v3", max_instances=2, public_ip=False)


@pytest.mark.parametrize(
    ("compute", "name"),
    [
        (ComputeConfig(size="Standard_E16s_v3"), "phi-e16s-v3"),
        (ComputeConfig(size="Standard_NC24ads_A100_v4"), "phi-nc24ads-a100-v4"),
        (ComputeConfig(size="Standard_E16s_v3", tier="low_priority"), "phi-low-e16s-v3"),
        (ComputeConfig(size="Standard_E16s_v3", name="my-cluster"), "my-cluster"),
    ],
)
def test_cluster_is_named_by_its_size_and_tier(compute: ComputeConfig, name: str) -> None:
    """Without a name the size and the tier give one, so that another size is another cluster."""
    assert cluster_name(compute) == name


def test_long_size_still_gives_a_name_the_service_takes() -> None:
    """A name over the service's 24 characters is shortened, and two sizes stay two names."""
    names = {cluster_name(ComputeConfig(size=f"Standard_ND96isr_MI300X_v{n}", tier="low_priority")) for n in (5, 6)}
    assert len(names) == 2
    assert all(len(name) <= 24 and name[-1] != "-" for name in names)


@pytest.mark.parametrize(
    ("compute", "told"),
    [
        (ComputeConfig(), "compute.size is empty"),
        (ComputeConfig(size="Standard_E16s_v3", name="cluster-1"), "'cluster-1' is no name for a cluster"),
        (ComputeConfig(size="Standard_E16s_v3", name="a-name-of-twenty-five-char"), "is no name for a cluster"),
    ],
)
def test_cluster_that_cannot_be_is_one_clear_error(compute: ComputeConfig, told: str) -> None:
    """No size, or a name that the service refuses, is a mistake in the configuration."""
    with pytest.raises(ConfigError, match=told):
        cluster_name(compute)


class Clusters:
    """The SDK's `compute`, with one cluster or none."""

    def __init__(self, existing: Any = None) -> None:
        self.existing = existing
        self.begun: list[Any] = []

    def get(self, name: str) -> Any:
        if self.existing is None:
            raise NotFoundError(f"Compute cluster {name} was not found.")
        return self.existing

    def begin_create_or_update(self, compute: Any) -> LROPoller[Any]:
        self.begun.append(compute)
        return LROPoller(None, None, lambda _: None, NoPolling())


@pytest.fixture
def connected(config: AzurePlatformConfig, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that gives an Infrastructure over a cluster that is there, and the SDK's stand-in."""

    def connect(existing: Any = None, **settings: Any) -> tuple[Infrastructure, Clusters]:
        workspace = Workspace(config.model_copy(update=settings))
        clusters = Clusters(existing)
        workspace.__dict__["ml"] = SimpleNamespace(compute=clusters)
        workspace.__dict__["properties"] = {"location": "westeurope"}
        return Infrastructure(workspace, None), clusters  # type: ignore[arg-type]

    return connect


def made(infrastructure: Any, clusters: Clusters) -> Any:
    """The cluster as the service would give it back after it was begun."""
    from azure.ai.ml.entities import AmlCompute

    rest = clusters.begun[0]._to_rest_object()
    rest.properties.provisioning_state = "Succeeded"
    cluster = AmlCompute._load_from_rest(rest)
    cluster.name, cluster.location = clusters.begun[0].name, "westeurope"
    return cluster


def test_cluster_is_begun_as_configured_and_then_adopted(connected: Any) -> None:
    """Every setting goes to the service, and what came of it is the same cluster for the same configuration."""
    identity = AzureIdentityConfig(resource_id=IDENTITY, client_id="c")
    infrastructure, clusters = connected(identity=identity)
    compute = infrastructure.compute(COMPUTE)
    assert (compute.name, compute.size, compute.origin.reused) == ("phi-e16s-v3", "Standard_E16s_v3", False)
    body = clusters.begun[0]._to_rest_object().as_dict()
    properties = body["properties"]["properties"]
    assert properties["vmSize"] == "Standard_E16s_v3"
    assert properties["vmPriority"] == "Dedicated"
    assert properties["enableNodePublicIp"] is False
    assert properties["scaleSettings"] == {
        "maxNodeCount": 2,
        "minNodeCount": 0,
        "nodeIdleTimeBeforeScaleDown": "PT5M",
    }
    assert body["location"] == "westeurope"
    assert list(body["identity"]["userAssignedIdentities"]) == [IDENTITY]
    again, untouched = connected(made(infrastructure, clusters), identity=identity)
    adopted = again.compute(COMPUTE)
    assert adopted == compute
    assert adopted.origin.reused
    assert untouched.begun == []


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"size": "Standard_E4s_v3", "name": "phi-e16s-v3"}, "compute.size Standard_E16s_v3.*Standard_E4s_v3"),
        ({"tier": "low_priority", "name": "phi-e16s-v3"}, "compute.tier dedicated.*low_priority"),
        ({"max_instances": 9}, "compute.max_instances 2.*9"),
        ({"min_instances": 1}, "compute.min_instances 0.*1"),
        ({"idle_seconds": 60}, "compute.idle_seconds 300.*60"),
        ({"public_ip": True}, "compute.public_ip false.*true"),
    ],
)
def test_other_cluster_under_the_name_is_not_changed(connected: Any, changed: dict[str, Any], told: str) -> None:
    """A cluster that differs is refused with the setting and both values, and nothing is sent to change it."""
    infrastructure, clusters = connected()
    infrastructure.compute(COMPUTE)
    again, untouched = connected(made(infrastructure, clusters))
    with pytest.raises(ConflictError, match=told):
        again.compute(COMPUTE.model_copy(update=changed))
    assert untouched.begun == []


NO_QUOTA = "The specified subscription has a total vCPU quota of 0 and cannot accomodate for at least 1 node."


@pytest.mark.parametrize(
    ("error", "told", "kind", "failure"),
    [
        ({"code": "BadRequest", "message": NO_QUOTA}, "vCPU quota of 0", QuotaError, Failure.QUOTA),
        ({"code": "ClusterCoreQuotaReached"}, "ClusterCoreQuotaReached", QuotaError, Failure.QUOTA),
        ({"code": "Unexpected", "message": "It broke."}, "It broke", PhiflowError, Failure.SERVICE),
    ],
)
def test_cluster_that_failed_says_why(
    connected: Any,
    monkeypatch: pytest.MonkeyPatch,
    error: dict[str, str],
    told: str,
    kind: type[PhiflowError],
    failure: Failure,
) -> None:
    """A cluster that was not created tells the service's words, which name quota where the code does not."""
    infrastructure, clusters = connected()
    infrastructure.compute(COMPUTE)
    failed = made(infrastructure, clusters)
    failed._provisioning_state, failed._provisioning_errors = "Failed", error["code"]
    answer = SimpleNamespace(json=lambda: {"properties": {"provisioningErrors": [{"error": error}]}})
    monkeypatch.setattr(Workspace, "send", lambda *_, **__: answer)
    with pytest.raises(kind, match=told) as caught:
        connected(failed)[0].compute(COMPUTE)
    assert caught.value.failure == failure
    assert "az ml compute delete --name phi-e16s-v3" in caught.value.fix


def test_more_nodes_than_the_cluster_has_is_a_mistake(connected: Any) -> None:
    """A job that could never start is refused."""
    with pytest.raises(ConfigError, match=r"num_nodes is 3.*max_instances is 2"):
        connected()[0].compute(COMPUTE.model_copy(update={"num_nodes": 3}))
