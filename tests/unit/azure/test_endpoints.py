"""What is asked of the service for a deployment, its name, and the notes kept beside an endpoint."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.config import AzureIdentityConfig, AzurePlatformConfig, ServingConfig
from tasks.platforms.azure import resources
from tasks.platforms.azure.deployments import deployment_entity, deployment_name
from tasks.platforms.azure.endpoint_state import EndpointNotes, EndpointState
from tasks.platforms.azure.resources import Resource
from tasks.platforms.azure.scoring import base_url
from tasks.platforms.errors import ConflictError, NotFoundError, TransientPlatformError
from tasks.platforms.refs import EnvironmentRef, ModelVersion, Origin, RolloutRecord

MADE = Origin(reused=False, reason="made in a test")
ENVIRONMENT = EnvironmentRef(name="serving-cpu", version="e1", location="azureml:serving-cpu:e1", origin=MADE)
MODEL = ModelVersion(
    name="support", version="3", digest="d" * 64, job="job", data_digest="x", location="azureml://x", origin=MADE
)
SERVING = ServingConfig()


@pytest.mark.parametrize(
    ("serving", "environment", "model", "same"),
    [
        ({"start_timeout_seconds": 33.0}, {}, {}, True),
        ({"max_concurrent_requests": 3}, {}, {}, False),
        ({"instance_type": "Standard_E8s_v3"}, {}, {}, False),
        ({"environment_variables": {"A": "1"}}, {}, {}, False),
        ({}, {"version": "e2"}, {}, False),
        ({}, {}, {"digest": "f" * 64}, False),
        ({}, {}, {"job": "another"}, True),
    ],
)
def test_a_deployment_is_named_by_what_it_serves(
    config: AzurePlatformConfig, serving: Any, environment: Any, model: Any, same: bool
) -> None:
    """What changes the answers or the machine is in the name; what does not, is not."""
    first = deployment_name(MODEL, SERVING, ENVIRONMENT, config)
    second = deployment_name(
        replace(MODEL, **model), SERVING.model_copy(update=serving), replace(ENVIRONMENT, **environment), config
    )
    assert first.startswith("v3-")
    assert (first == second) is same


def test_a_model_without_code_brings_its_environment(config: AzurePlatformConfig) -> None:
    """With serving.server mlflow no environment is sent, and none is in the name."""
    pytest.importorskip("azure.ai.ml")
    serving = SERVING.model_copy(update={"server": "mlflow"})
    entity = deployment_entity("support", "v3-x", MODEL, serving, ENVIRONMENT, config)
    assert entity.environment is None
    assert entity.tags["phiflow.server"] == "mlflow"
    assert "PHIFLOW_MODEL_NAME" not in entity.environment_variables
    other = replace(ENVIRONMENT, version="e2")
    assert deployment_name(MODEL, serving, ENVIRONMENT, config) == deployment_name(MODEL, serving, other, config)


def test_identity_is_told_where_there_is_one(config: AzurePlatformConfig) -> None:
    """UAI_CLIENT_ID is set when an identity is configured, and what the configuration adds wins."""
    pytest.importorskip("azure.ai.ml")
    assigned = config.model_copy(update={"identity": AzureIdentityConfig(client_id="client")})
    serving = SERVING.model_copy(update={"environment_variables": {"RESOURCE_GROUP_NAME": "other"}})
    variables = [
        deployment_entity("support", "v3-x", MODEL, serving, ENVIRONMENT, one).environment_variables
        for one in (config, assigned)
    ]
    assert "UAI_CLIENT_ID" not in variables[0]
    assert variables[1]["UAI_CLIENT_ID"] == "client"
    assert variables[1]["RESOURCE_GROUP_NAME"] == "other"


@pytest.mark.parametrize("route", ["", "/", "/score", "/v1/chat/completions"])
def test_address_of_an_endpoint_is_without_its_route(route: str) -> None:
    """Whatever route the service shows with the address, routes are added below the same base."""
    url = "https://support.westeurope.inference.ml.azure.com"
    assert base_url({"properties": {"scoringUri": url + route}}) == url


def test_notes_survive_their_storage() -> None:
    """Freeze, record and history are read as they were written, and the history does not grow for ever."""
    record = RolloutRecord(run_id="run", candidate="v2-b", traffic_before=(("v1-a", 100), ("v0-z", 0)))
    notes = EndpointNotes(frozen="holiday", rollout=record)
    for number in range(60):
        notes = notes.with_line({"v1-a": 100, "v2-b": 0}, f"change {number}")
    stored = EndpointNotes.from_json(notes.to_json())
    assert stored == notes
    assert len(stored.history) == 50
    assert stored.history[-1].endswith("v1-a=100% (change 59)")


def test_notes_changed_at_once_are_all_kept(storage: Any) -> None:
    """However many change an endpoint's notes at once, no change is lost."""
    state = EndpointState(storage)
    assert state.read("support") is None

    def note(number: int) -> None:
        state.change("support", lambda notes: notes.with_line({}, f"change {number}"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(note, range(8)))
    notes = state.read("support")
    assert notes is not None
    assert sorted(line[-10:] for line in notes.history) == [f"(change {n})"[-10:] for n in range(8)]
    state.forget("support")
    assert state.read("support") is None


class Scripted:
    """A workspace that answers with the resources given, one after the other, the last for ever."""

    def __init__(self, config: AzurePlatformConfig, *states: str | Exception | None) -> None:
        self.config = config.model_copy(update={"poll_seconds": 0.01})
        self.resource_id = "/workspace"
        self.states = list(states)

    def studio_url(self, path: str) -> str:
        return path

    def send(self, *_: Any, **__: Any) -> Any:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        if isinstance(state, Exception):
            raise state
        if state is None:
            raise NotFoundError("gone")
        return SimpleNamespace(json=lambda: {"properties": {"provisioningState": state}})


@pytest.fixture
def resource(config: AzurePlatformConfig) -> Callable[..., Resource]:
    """Return a function that gives a resource in the states given."""

    def made(*states: str | Exception | None) -> Resource:
        workspace: Any = Scripted(config, *states)
        return Resource(workspace, "onlineEndpoints/support", "Endpoint support")

    return made


def test_a_state_is_awaited_through_faults(resource: Callable[..., Resource]) -> None:
    """A look that fails is not the end of the wait; a resource that is gone is."""
    fault = TransientPlatformError("503")
    settled = resource("Creating", fault, "Updating", "Succeeded").await_settled(10)
    assert settled is not None
    assert settled["properties"]["provisioningState"] == "Succeeded"
    assert resource("Deleting", None).await_settled(10) is None
    with pytest.raises(TransientPlatformError, match="Endpoint support was still creating"):
        resource("Creating").await_settled(0.05)


def test_a_change_is_begun_again_until_it_is_seen(resource: Callable[..., Resource]) -> None:
    """A conflict is waited out; a lost answer is not asked for again when the change is seen; time ends it."""
    calls: list[int] = []

    method = SimpleNamespace(finished=lambda: False)

    def refused_twice() -> Any:
        calls.append(1)
        if len(calls) < 3:
            raise ConflictError("busy")
        return SimpleNamespace(polling_method=lambda: method)

    resource("Succeeded").begin(refused_twice, lambda: False, 10)
    assert len(calls) == 3
    assert method.finished()  # so that the SDK asks no longer
    calls.clear()
    resource("Succeeded").begin(refused_twice, lambda: True, 10)
    assert len(calls) == 1
    with pytest.raises(ConflictError, match="busy"):
        calls.clear()
        resource("Succeeded").begin(refused_twice, lambda: False, 0.0)
    assert resources.state_of({"properties": {}}) == ""
