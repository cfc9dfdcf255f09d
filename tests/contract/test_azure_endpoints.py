"""Endpoints in a workspace of the emulator, through the real SDK: what the service's faults must not do.

The port's own promises are in test_platform.py. Model servers are its stand-in.
"""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tasks.config import ServingConfig
from tasks.platforms.connect import connect
from tasks.platforms.errors import ConfigError, ConflictError, NotFoundError, QuotaError, TransientPlatformError
from tests.contract.azure_service import IDENTITY, Service
from tests.contract.places import NAME

# Its own emulator and some twenty deployments take a minute or more.
pytestmark = pytest.mark.slow
QUESTION = [{"role": "user", "content": "Who are you?"}]
ENDPOINT = "W/onlineEndpoints/{name}"
DEPLOYMENT = "W/onlineEndpoints/{name}/deployments/{deployment}"


@pytest.fixture
def service(emulated: Service) -> Iterator[Service]:
    """The service with an endpoint that has neither deployments nor traffic, and without scenarios."""
    emulated.process.reset()
    emulated.platform.ensure_endpoint(NAME)
    yield emulated
    emulated.process.reset()
    emulated.platform.set_traffic(NAME, {}, "end of a test")
    for deployment in emulated.platform.read_endpoint(NAME).deployments:
        emulated.platform.delete_deployment(NAME, deployment.name)


def test_endpoint_and_deployment_are_what_was_configured(service: Service) -> None:
    """Everything that the configuration says reaches the service, and the tags say what is served."""
    deployment = service.deploy()
    assert service.settled(deployment).state == "ready"
    endpoint = service.resource(f"onlineEndpoints/{NAME}")
    assert endpoint["properties"]["authMode"] == "Key"
    assert endpoint["properties"]["description"]
    assert endpoint["tags"] == {"phiflow": "1"}
    assert endpoint["identity"]["type"] == "UserAssigned"
    assert list(endpoint["identity"]["userAssignedIdentities"]) == [IDENTITY.resource_id]
    made = service.resource(f"onlineEndpoints/{NAME}/deployments/{deployment.name}")
    properties = made["properties"]
    assert made["sku"]["capacity"] == 1
    assert properties["instanceType"] == "Standard_E4s_v3"
    assert not properties["appInsightsEnabled"]
    assert properties["model"].endswith(f"/models/{NAME}/versions/1")
    assert properties["environmentId"].endswith("/environments/stand-in/versions/1")
    assert properties["requestSettings"] == {
        "maxConcurrentRequestsPerInstance": 16,
        "requestTimeout": "PT3M",
        "maxQueueWait": "PT2M",
    }
    probe = {"failureThreshold": 30, "successThreshold": 1, "timeout": "PT5S"}
    assert properties["livenessProbe"] == {**probe, "period": "PT1M40S", "initialDelay": "PT8M20S"}
    variables = properties["environmentVariables"]
    assert variables["RESOURCE_GROUP_NAME"] == service.platform.workspace.config.resource_group
    assert variables["UAI_CLIENT_ID"] == IDENTITY.client_id
    assert (variables["PHIFLOW_MODEL_NAME"], variables["PHIFLOW_REQUEST_TIMEOUT_SECONDS"]) == (NAME, "180")
    assert variables["GREETING"] == "hello"
    assert made["tags"]["phiflow.version"] == "1"
    assert made["tags"]["phiflow.digest"] == "1" * 64


def test_traffic_changes_nothing_else(service: Service) -> None:
    """After traffic was shifted the endpoint has its identity, its tags and its description."""
    first, second = service.deploy("1"), service.deploy("2")
    service.settled(first), service.settled(second)
    before = service.resource(f"onlineEndpoints/{NAME}")
    service.platform.set_traffic(NAME, {first.name: 90, second.name: 10}, "a step")
    after = service.resource(f"onlineEndpoints/{NAME}")
    assert after["properties"]["traffic"] == {first.name: 90, second.name: 10}
    for key in ("identity", "tags", "location"):
        assert after[key] == before[key]
    for key in ("description", "authMode", "publicNetworkAccess", "mirrorTraffic"):
        assert after["properties"][key] == before["properties"][key]


@pytest.mark.parametrize("fault", [{"do": "lost"}, {"do": "status", "status": 409}, {"do": "status", "status": 500}])
def test_deployment_is_made_once_whatever_the_answer(service: Service, fault: dict[str, Any]) -> None:
    """A lost answer, a conflict or a fault of the service on the PUT makes one deployment."""
    service.process.add_scenario(match={"method": "PUT", "path": "/deployments/"}, **fault)
    assert service.settled(service.deploy()).state == "ready"
    assert not service.process.waiting_scenarios()
    made = service.process.exchanges(path="/deployments/[^/]+$", method="PUT")["exchanges"]
    assert sum(exchange["status"] not in (409, 500) for exchange in made) == 1, made


@pytest.mark.parametrize("fault", [{"do": "lost"}, {"do": "status", "status": 409}, {"do": "status", "status": 503}])
def test_traffic_goes_through_whatever_the_answer(service: Service, fault: dict[str, Any]) -> None:
    """A shift of traffic survives a lost answer, a conflict and a fault of the service."""
    deployment = service.deploy()
    service.settled(deployment)
    service.process.add_scenario(match={"method": "PUT", "path": f"/onlineEndpoints/{NAME}$"}, **fault)
    service.platform.set_traffic(NAME, {deployment.name: 100}, "all")
    assert not service.process.waiting_scenarios()
    assert service.resource(f"onlineEndpoints/{NAME}")["properties"]["traffic"] == {deployment.name: 100}


def test_deployment_in_creation_is_adopted(service: Service) -> None:
    """Who deploys the same while it is being created gets it, and says so."""
    service.process.add_scenario("creating", match={"kind": "deployment"}, seconds=1.5)
    first = service.deploy()
    again = service.deploy()
    assert again == first
    assert again.origin.reused
    assert "creating" in again.origin.reason
    assert service.settled(first).state == "ready"
    assert service.process.count(f"PUT {DEPLOYMENT}") == 1
    # We look at the deployment ourselves; the SDK does not poll beside us for as long as it is made.
    assert service.process.count(path="/mfeOperationsStatus/") <= 2


@pytest.mark.parametrize(
    ("trouble", "failure", "said"),
    [
        ("capacity", "capacity", "lack of Azure Machine Learning capacity"),
        ("image_build_failed", "image build", "Image build failed"),
        ("crashed", "scoring", "crashed"),
    ],
)
def test_failed_deployment_says_why_and_is_made_again(service: Service, trouble: str, failure: str, said: str) -> None:
    """A deployment that failed has a class, a reason and a fix; the next run deletes it and makes it again."""
    service.process.add_scenario(trouble, match={"kind": "deployment"})
    deployment = service.deploy()
    status = service.settled(deployment)
    assert (status.state, status.failure) == ("failed", failure)
    assert said in status.error
    assert status.fix
    again = service.deploy()
    assert again.name == deployment.name
    assert "failed" in again.origin.reason
    assert service.settled(again).state == "ready"


def test_refused_deployment_leaves_nothing(service: Service) -> None:
    """Without quota the service refuses, the error has its class, and there is no deployment."""
    service.process.add_scenario("quota", match={"kind": "deployment"})
    with pytest.raises(QuotaError, match="Not enough quota available for Standard_E4s_v3"):
        service.deploy()
    assert service.platform.read_endpoint(NAME).deployments == ()
    with pytest.raises(ConfigError, match="allow 180 at most"):
        service.deploy(serving=ServingConfig(request_timeout_seconds=181))


def test_deletion_waits_for_a_conflict_and_says_what_bills(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment that is busy is deleted once it is not; when it stays busy, the error has the command."""
    from tasks.platforms.azure import deployments

    deployment = service.deploy()
    service.settled(deployment)
    conflict = {"match": {"method": "DELETE", "path": "/deployments/", "times": 0}, "status": 409}
    service.process.add_scenario("status", **conflict)
    monkeypatch.setattr(deployments, "_BEGIN_DELETE_SECONDS", 0.3)
    with pytest.raises(ConflictError, match="It bills until it is deleted: az ml online-deployment delete") as caught:
        service.platform.delete_deployment(NAME, deployment.name)
    assert deployment.name in str(caught.value)
    service.process.reset()
    service.process.add_scenario("status", **{**conflict, "match": {**conflict["match"], "times": 2}})  # type: ignore[dict-item]
    monkeypatch.setattr(deployments, "_BEGIN_DELETE_SECONDS", 20.0)
    service.platform.delete_deployment(NAME, deployment.name)
    assert service.platform.read_endpoint(NAME).deployments == ()


def test_key_is_read_when_needed_and_again_when_it_changed(service: Service) -> None:
    """Many questions read the key once; after it was regenerated the next question reads it again."""
    deployment = service.deploy()
    service.settled(deployment)
    platform = service.platform
    for _ in range(3):
        platform.invoke(NAME, QUESTION, deployment=deployment.name)
    keys = f"POST {ENDPOINT}/listKeys"
    assert service.process.count(keys) == 1
    platform.workspace.ml.online_endpoints.begin_regenerate_keys(NAME, key_type="primary").wait()
    service.process.reset()
    assert platform.invoke(NAME, QUESTION, deployment=deployment.name).text == "I am 1"
    assert service.process.count(keys) == 1


def test_question_goes_where_it_is_addressed(service: Service) -> None:
    """After one deployment was addressed, a plain question goes by traffic again."""
    first, second = service.deploy("1"), service.deploy("2")
    service.settled(first), service.settled(second)
    service.platform.set_traffic(NAME, {first.name: 100}, "the first")
    answers = [service.platform.invoke(NAME, QUESTION, deployment=name) for name in (second.name, "")]
    assert [(answer.text, answer.deployment) for answer in answers] == [
        ("I am 2", second.name),
        ("I am 1", first.name),
    ]
    with pytest.raises(NotFoundError, match="v9-none"):
        service.platform.invoke(NAME, QUESTION, deployment="v9-none")
    service.platform.set_traffic(NAME, {}, "none")
    with pytest.raises(NotFoundError, match="no deployment with traffic"):
        service.platform.invoke(NAME, QUESTION)


def test_key_is_in_no_log_and_no_error(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    """At DEBUG, with every library's lines, and in the error of a failed question, the key is not to be found."""
    deployment = service.deploy()
    service.settled(deployment)
    caplog.set_level(logging.DEBUG)
    platform = connect(service.platform.workspace.config)
    platform.invoke(NAME, QUESTION, deployment=deployment.name)
    service.process.add_scenario("status", match={"path": "^/endpoints/"}, status=503)
    with pytest.raises(TransientPlatformError) as caught:
        platform.invoke(NAME, QUESTION, deployment=deployment.name)
    said = caplog.text + "".join(traceback.format_exception(caught.value))
    keys = platform.workspace.ml.online_endpoints.get_keys(NAME)
    assert "/endpoints/" in said  # the requests are logged
    assert keys.primary_key not in said
    assert keys.secondary_key not in said


@pytest.mark.parametrize(("status", "failure"), [(429, "throttling"), (503, "service fault"), (424, "scoring")])
def test_failed_question_has_its_class(service: Service, status: int, failure: str) -> None:
    """What the endpoint answers when it cannot is worth a retry, and says of which kind it is."""
    deployment = service.deploy()
    service.settled(deployment)
    service.process.add_scenario("status", match={"path": "^/endpoints/"}, status=status)
    with pytest.raises(TransientPlatformError) as caught:
        service.platform.invoke(NAME, QUESTION, deployment=deployment.name)
    assert str(caught.value.failure) == failure
    assert NAME in caught.value.message


def test_other_peoples_idle_deployments_are_not_ours(service: Service) -> None:
    """A deployment without phiflow's tag is not shown while it takes no traffic, so that no run retires it."""
    from azure.ai.ml.entities import ManagedOnlineDeployment

    service.place.model("3")
    foreign = ManagedOnlineDeployment(
        name="blue",
        endpoint_name=NAME,
        model=f"azureml:{NAME}:3",
        environment=service.place.environment.location,
        instance_type="Standard_E4s_v3",
        instance_count=1,
    )
    service.platform.workspace.ml.online_deployments.begin_create_or_update(foreign).result()
    try:
        assert service.platform.read_endpoint(NAME).deployments == ()
        service.platform.set_traffic(NAME, {"blue": 100}, "theirs")
        assert [one.name for one in service.platform.read_endpoint(NAME).deployments] == ["blue"]
    finally:
        service.platform.set_traffic(NAME, {}, "end")
        service.platform.delete_deployment(NAME, "blue")


def test_freeze_and_rollout_record_survive_each_other(service: Service) -> None:
    """Two that note something on an endpoint at once both have their note kept."""
    platform = service.platform

    def note(number: int) -> None:
        if number % 2:
            platform.set_traffic(NAME, {}, f"change {number}")
        else:
            platform.freeze_endpoint(NAME, f"freeze {number}")

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(note, range(6)))
    status = platform.read_endpoint(NAME)
    assert status.frozen.startswith("freeze")
    for number in (1, 3, 5):
        assert any(f"(change {number})" in line for line in status.history), status.history
    platform.freeze_endpoint(NAME, "")
