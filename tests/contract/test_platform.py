"""What every platform promises about endpoints, deployments, traffic and leases: one suite, all platforms.

Not covered here, because it needs environments that take minutes to build: `prepare_data`, jobs that train,
the model registry, answers of a real model, and the chat app. The gateway and the supervisor are real; the
model server is a stand-in that answers health checks and says its name. Azure is the emulator of the service,
reached through the real SDK.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tasks.config import ComputeConfig, ServingConfig
from tasks.config_files import build_config
from tasks.platforms.errors import ConflictError, NotFoundError
from tasks.platforms.port import Platform
from tasks.platforms.refs import DeploymentRef, RolloutRecord
from tasks.platforms.upkeep import Leftover, LeftoverKind
from tests.contract.places import NAME, Place

SERVING = ServingConfig()
COMPUTE = ComputeConfig(size="Standard_E4s_v3", max_instances=3)


def wait_for(condition: Callable[[], object], seconds: float = 30.0) -> None:
    """Poll until the condition holds; fail when it never does."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"did not happen within {seconds:g} s")
        time.sleep(0.1)


@pytest.fixture(scope="module", params=["local", "azure"])
def place(request: pytest.FixtureRequest) -> Place:
    """Each platform in turn, with a serving environment and models that are there."""
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def platform(place: Place) -> Platform:
    """The platform of the place."""
    return place.platform


@pytest.fixture
def endpoint(platform: Platform) -> Iterator[str]:
    """An endpoint that every test finds thawed and without traffic; what others deployed costs no test its time."""
    platform.ensure_endpoint(NAME)
    yield NAME
    platform.freeze_endpoint(NAME, "")
    platform.record_rollout(NAME, None)
    platform.set_traffic(NAME, {}, "end of a test")


@pytest.fixture
def deploy(place: Place, endpoint: str) -> Callable[..., DeploymentRef]:
    """Return a function that deploys a version and waits until it is ready."""
    platform = place.platform

    def deployed(number: str, serving: ServingConfig = SERVING) -> DeploymentRef:
        deployment = platform.deploy(endpoint, place.model(number), serving, place.environment)
        wait_for(lambda: platform.read_deployment(endpoint, deployment.name).state == "ready")
        return deployment

    return deployed


def ask(platform: Platform, deployment: str = "") -> str:
    """Who answers."""
    return platform.invoke(NAME, [{"role": "user", "content": "Who are you?"}], deployment=deployment).text


def test_endpoint_is_made_once(platform: Platform) -> None:
    """Before it is made there is no endpoint; making it twice makes one, and says so."""
    assert platform.read_endpoint("none-yet") is None
    first = platform.ensure_endpoint("none-yet")
    second = platform.ensure_endpoint("none-yet")
    assert not first.origin.reused
    assert second.origin.reused
    assert second.origin.reason
    assert first == second
    status = platform.read_endpoint("none-yet")
    assert status is not None
    assert (status.name, status.url, status.deployments) == ("none-yet", first.url, ())
    assert status.traffic.main == ""


def test_compute_is_named_and_free(platform: Platform) -> None:
    """Compute has a name and the size that jobs are named by, and the same when asked again."""
    compute = platform.ensure_compute(COMPUTE)
    assert compute.name
    assert compute.size
    assert compute.max_instances == 3
    assert platform.ensure_compute(COMPUTE) == compute


def test_deployment_begins_without_traffic(platform: Platform, deploy: Callable[..., DeploymentRef]) -> None:
    """A new deployment becomes ready at 0 %, can be asked directly, and carries its model's version."""
    deployment = deploy("3")
    assert not deployment.origin.reused
    assert (deployment.endpoint, deployment.model_name, deployment.model_version) == (NAME, NAME, "3")
    status = platform.read_deployment(NAME, deployment.name)
    assert (status.percent, status.model_version, status.error) == (0, "3", "")
    answer = platform.invoke(NAME, [{"role": "user", "content": "?"}], deployment=deployment.name)
    assert (answer.text, answer.deployment, answer.model_version) == ("I am 3", deployment.name, "3")
    assert answer.seconds > 0


def test_plan_finds_the_deployment_by_its_name(
    place: Place, endpoint: str, deploy: Callable[..., DeploymentRef]
) -> None:
    """A plan names the deployment that a run would make, and then adopt, and makes none itself."""
    model, other = place.model("3"), SERVING.model_copy(update={"max_concurrent_requests": 7})
    made = deploy("3")
    found = place.platform.find_deployment(endpoint, model, SERVING, place.environment)
    assert (found.name, found.origin.reused) == (made.name, True)
    new = place.platform.find_deployment(endpoint, model, other, place.environment)
    assert (new.name != made.name, new.origin.reused) == (True, False)
    with pytest.raises(NotFoundError):
        place.platform.read_deployment(endpoint, new.name)


def test_same_deployment_is_adopted_and_another_model_gets_its_own(
    platform: Platform, deploy: Callable[..., DeploymentRef]
) -> None:
    """The same version with the same serving is adopted; another version, or other serving, is beside it."""
    first = deploy("1")
    again = deploy("1")
    assert again == first
    assert again.origin.reused
    names = {
        first.name,
        deploy("2").name,
        deploy("1", SERVING.model_copy(update={"max_concurrent_requests": 3})).name,
    }
    assert len(names) == 3
    status = platform.read_endpoint(NAME)
    assert status is not None
    assert {deployment.name for deployment in status.deployments} >= names


def test_time_outs_of_the_rollout_do_not_deploy_again(platform: Platform, deploy: Callable[..., DeploymentRef]) -> None:
    """How long a run waits for a deployment is no part of its name."""
    assert deploy("1") == deploy("1", SERVING.model_copy(update={"start_timeout_seconds": 33}))


def test_traffic_goes_where_it_is_sent(platform: Platform, deploy: Callable[..., DeploymentRef]) -> None:
    """From the next request on answers come from where traffic was sent, and the change is kept with its reason."""
    first, second = deploy("1"), deploy("2")
    split = platform.set_traffic(NAME, {first.name: 100}, "the first")
    assert split.main == first.name
    assert {ask(platform) for _ in range(5)} == {"I am 1"}
    platform.set_traffic(NAME, {second.name: 100}, "the second")
    assert {ask(platform) for _ in range(5)} == {"I am 2"}
    assert ask(platform, first.name) == "I am 1"
    platform.set_traffic(NAME, {first.name: 50, second.name: 50}, "both")
    assert {ask(platform) for _ in range(40)} == {"I am 1", "I am 2"}
    status = platform.read_endpoint(NAME)
    assert status is not None
    assert {name: p for name, p in status.traffic.percents if p} == {first.name: 50, second.name: 50}
    assert {d.name: d.percent for d in status.deployments if d.percent} == {first.name: 50, second.name: 50}
    assert "the second" in status.history[-2]


def test_requests_are_counted_by_deployment(platform: Platform, deploy: Callable[..., DeploymentRef]) -> None:
    """What was asked of a deployment is counted for it and no other, once the platform's counters tell."""
    first, second = deploy("1"), deploy("2")
    platform.set_traffic(NAME, {first.name: 100}, "the first")
    for _ in range(3):
        ask(platform)
    ask(platform, second.name)

    def counted() -> dict[str, int]:
        return {metrics.deployment: metrics.num_requests for metrics in platform.read_metrics(NAME, 600)}

    wait_for(lambda: counted().get(first.name, 0) >= 3 and counted().get(second.name, 0) >= 1, 90)
    assert {metrics.num_errors for metrics in platform.read_metrics(NAME, 600)} == {0}


@pytest.mark.parametrize("percents", [{"v1": 60, "v2": 60}, {"v1": 99}, {"v1": -50, "v2": 150}])
def test_impossible_traffic_changes_nothing(
    platform: Platform, deploy: Callable[..., DeploymentRef], percents: dict[str, int]
) -> None:
    """Percentages that do not add up are refused, and traffic stays as it was."""
    names = {"v1": deploy("1").name, "v2": deploy("2").name}
    platform.set_traffic(NAME, {names["v1"]: 100}, "before")
    with pytest.raises(ValueError, match="percent"):
        platform.set_traffic(NAME, {names[name]: percent for name, percent in percents.items()}, "wrong")
    status = platform.read_endpoint(NAME)
    assert status is not None
    assert status.traffic.main == names["v1"]
    assert dict(status.traffic.percents)[names["v1"]] == 100


def test_unknown_deployment_is_not_found(platform: Platform, endpoint: str) -> None:
    """Reading, or sending traffic to, a deployment that is not there names it; deleting it is no error."""
    with pytest.raises(NotFoundError, match="v9-none"):
        platform.read_deployment(endpoint, "v9-none")
    with pytest.raises(NotFoundError, match="v9-none"):
        platform.set_traffic(endpoint, {"v9-none": 100}, "wrong")
    platform.delete_deployment(endpoint, "v9-none")


def test_unknown_endpoint_is_not_found(platform: Platform) -> None:
    """Everything that needs an endpoint names the one that is not there, and makes none by the way."""
    for attempt in (
        lambda: platform.read_deployment("nowhere", "v1"),
        lambda: platform.set_traffic("nowhere", {}, "wrong"),
        lambda: platform.freeze_endpoint("nowhere", "wrong"),
        lambda: platform.record_rollout("nowhere", None),
    ):
        with pytest.raises(NotFoundError, match="nowhere"):
            attempt()
    platform.delete_deployment("nowhere", "v1")
    assert platform.read_endpoint("nowhere") is None


def test_invoking_an_unknown_endpoint_is_one_clear_error(platform: Platform) -> None:
    """Asking an endpoint that is not there names it, and is not worth a retry."""
    with pytest.raises(NotFoundError, match="nowhere"):
        platform.invoke("nowhere", [{"role": "user", "content": "?"}])


def test_deployment_with_traffic_is_not_deleted(platform: Platform, deploy: Callable[..., DeploymentRef]) -> None:
    """A deployment is deleted only without traffic; deleting it twice is no error."""
    deployment = deploy("4")
    platform.set_traffic(NAME, {deployment.name: 100}, "all")
    with pytest.raises(ConflictError, match=f"{deployment.name} takes 100 %"):
        platform.delete_deployment(NAME, deployment.name)
    assert ask(platform) == "I am 4"
    platform.set_traffic(NAME, {}, "none")
    platform.delete_deployment(NAME, deployment.name)
    platform.delete_deployment(NAME, deployment.name)
    status = platform.read_endpoint(NAME)
    assert status is not None
    assert deployment.name not in {left.name for left in status.deployments}
    with pytest.raises(NotFoundError):
        platform.read_deployment(NAME, deployment.name)


def test_server_that_does_not_start_has_failed_with_its_reason(place: Place, endpoint: str) -> None:
    """A deployment whose server keeps ending is failed, with the server's last words."""
    platform = place.platform
    name = platform.deploy(endpoint, place.broken, SERVING, place.environment).name
    wait_for(lambda: platform.read_deployment(endpoint, name).state == "failed", 60)
    assert "There is no model in" in platform.read_deployment(endpoint, name).error


def test_rollout_record_is_kept_and_cleared(platform: Platform, endpoint: str) -> None:
    """The way back is kept with the endpoint, whoever reads it, until it is cleared."""
    record = RolloutRecord(run_id="run-1", candidate="v2-b", traffic_before=(("v1-a", 100), ("v0-z", 0)))
    platform.record_rollout(endpoint, record)
    status = platform.read_endpoint(endpoint)
    assert status is not None
    assert status.rollout is not None
    assert replace(status.rollout, traffic_before=()) == replace(record, traffic_before=())
    assert dict(status.rollout.traffic_before) == dict(record.traffic_before)
    platform.record_rollout(endpoint, None)
    status = platform.read_endpoint(endpoint)
    assert status is not None
    assert status.rollout is None


def test_freeze_and_thaw(platform: Platform, endpoint: str) -> None:
    """A freeze is kept with its reason until an empty one thaws the endpoint."""

    def frozen() -> str:
        status = platform.read_endpoint(endpoint)
        assert status is not None
        return status.frozen

    assert frozen() == ""
    platform.freeze_endpoint(endpoint, "holiday")
    assert frozen() == "holiday"
    platform.ensure_endpoint(endpoint)
    assert frozen() == "holiday"
    platform.freeze_endpoint(endpoint, "")
    assert frozen() == ""


def test_lease_is_exclusive_and_names_its_holder(platform: Platform, endpoint: str) -> None:
    """While one holds the lease a second is refused with the holder's name; afterwards it is free."""
    with (
        platform.lease_endpoint(endpoint, "run first", 1),
        pytest.raises(ConflictError, match="run first"),
        platform.lease_endpoint(endpoint, "run second", 0.2),
    ):
        pytest.fail("two hold the lease")
    with platform.lease_endpoint(endpoint, "run second", 0.2):
        pass


def test_lease_is_waited_for(platform: Platform, endpoint: str) -> None:
    """Who comes second gets the lease when the first gives it back within the wait."""
    order: list[str] = []
    waiting = threading.Event()

    def second() -> None:
        waiting.set()
        with platform.lease_endpoint(endpoint, "run second", 20):
            order.append("second")

    thread = threading.Thread(target=second)
    with platform.lease_endpoint(endpoint, "run first", 1):
        thread.start()
        waiting.wait(10)
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_lease_ends_with_an_error_inside(platform: Platform, endpoint: str) -> None:
    """An error inside the block passes as it is, a conflict too, and gives the lease back."""
    for error in (RuntimeError("inside"), ConflictError("Deployment v1 has traffic.")):
        with pytest.raises(type(error)) as caught, platform.lease_endpoint(endpoint, "run first", 1):
            raise error
        assert str(caught.value) == str(error)
    with platform.lease_endpoint(endpoint, "run second", 0.2):
        pass


def test_leases_of_two_endpoints_are_apart(platform: Platform, endpoint: str) -> None:
    """The lease on one endpoint does not hold up another."""
    platform.ensure_endpoint("none-yet")
    with (
        platform.lease_endpoint(endpoint, "run first", 1),
        platform.lease_endpoint("none-yet", "run second", 1),
    ):
        pass


def test_connection_carries_no_key(platform: Platform, endpoint: str) -> None:
    """What the chat app gets names the endpoint and its address, and no secret."""
    made = platform.ensure_endpoint(endpoint)
    connection = platform.ensure_connection(made)
    assert (connection.endpoint, connection.url) == (endpoint, made.url)
    key_files = list(Path(platform.home.root).rglob("key")) if hasattr(platform, "home") else []
    for key_file in key_files:
        assert key_file.read_text().strip() not in repr(connection)
        assert key_file.stat().st_mode & 0o077 == 0


def test_nothing_is_found_in_an_empty_place(platform: Platform) -> None:
    """Where nothing was submitted there is no job to find."""
    assert platform.find_jobs("support") == ()
    assert platform.latest_job("support-0123456789abcdef") is None
    assert platform.read_chat(NAME) is None


def test_leftovers_are_what_nobody_uses(platform: Platform, deploy: Callable[..., DeploymentRef]) -> None:
    """What has had no traffic for the soak is found and deleted; what serves, or may be rolled back to, is not."""
    unused, before, serving = (deploy(number).name for number in ("11", "12", "13"))
    platform.set_traffic(NAME, {before: 100}, "test")
    platform.set_traffic(NAME, {serving: 100}, "test")
    values = {"name": NAME, "data": {"source": "chats.jsonl"}, "retention": {"soak_hours": 0}}
    config = build_config(values, "test")

    def found() -> dict[str, Leftover]:
        leftovers = platform.find_leftovers(config)
        return {one.location: one for one in leftovers if one.kind == LeftoverKind.DEPLOYMENT}

    leftovers = found()
    assert f"{NAME}/{unused}" in leftovers
    assert not {f"{NAME}/{before}", f"{NAME}/{serving}"} & set(leftovers)
    with platform.lease_endpoint(NAME, "a run", 1):
        assert not [location for location in found() if location.startswith(f"{NAME}/")]
    leftover = leftovers[f"{NAME}/{unused}"]
    with pytest.raises(ConflictError, match=f"{serving}.* takes 100 %"):
        platform.remove_leftover(replace(leftover, location=f"{NAME}/{serving}"))
    platform.remove_leftover(leftover)
    platform.remove_leftover(leftover)
    status = platform.read_endpoint(NAME)
    assert status is not None
    names = {deployment.name for deployment in status.deployments}
    assert unused not in names
    assert {before, serving} <= names
