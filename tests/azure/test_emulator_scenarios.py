"""The emulator's scripted faults: each does what it says, once, to the request it is for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.azure.bodies import COMPUTE, PREVIEW, W, cluster_body, environment_body
from tests.azure_emulator.process import EmulatorProcess


def test_a_scenario_refuses_the_nth_request(emulator: EmulatorProcess) -> None:
    """With status, header and code; the others go through, and it is done once."""
    match = {"method": "GET", "path": "/datastores$", "nth": 2}
    emulator.add_scenario("status", match=match, status=429, headers={"Retry-After": "7"})
    path = f"{W}/datastores{PREVIEW}"
    answers = [emulator.send("GET", path) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200, 429, 200]
    assert answers[1].headers["Retry-After"] == "7"
    assert answers[1].json()["error"]["code"] == "TooManyRequests"
    assert emulator.waiting_scenarios() == []
    assert [one["scenario"] for one in emulator.exchanges(path="/datastores$")["exchanges"]] == ["", "status", ""]


def test_a_lost_answer_has_done_its_work(emulator: EmulatorProcess) -> None:
    """The client cannot know whether it has: asking first tells."""
    import requests

    emulator.add_scenario("lost", match={"method": "PUT", "path": "/environments/lost/"})
    path = f"{W}/environments/lost/versions/1{PREVIEW}"
    with pytest.raises(requests.ConnectionError):
        emulator.send("PUT", path, environment_body())
    assert emulator.send("GET", path).status_code == 200


def test_a_dropped_request_did_nothing(emulator: EmulatorProcess) -> None:
    """The other way to get no answer."""
    import requests

    emulator.add_scenario("drop", match={"method": "PUT", "path": "/environments/dropped/"})
    path = f"{W}/environments/dropped/versions/1{PREVIEW}"
    with pytest.raises(requests.ConnectionError):
        emulator.send("PUT", path, environment_body())
    assert emulator.send("GET", path).status_code == 404


def test_an_operation_can_get_stuck_or_fail(emulator: EmulatorProcess) -> None:
    """Its status URL says so."""
    emulator.add_scenario("stuck", match={"path": "/computes/stuck"})
    error = {"code": "ClusterCoreQuotaReached", "message": "No cores."}
    emulator.add_scenario("fault", match={"path": "/computes/fault"}, **error)
    states = {}
    for name in ("stuck", "fault"):
        begun = emulator.send("PUT", f"{W}/computes/{name}{COMPUTE}", cluster_body())
        status_path = begun.headers["Azure-AsyncOperation"].removeprefix(emulator.url)
        states[name] = _ended(emulator, status_path) if name == "fault" else emulator.send("GET", status_path).json()
    assert states["stuck"] == {"status": "InProgress"}
    assert states["fault"]["status"] == "Failed"
    assert states["fault"]["error"]["code"] == "ClusterCoreQuotaReached"
    properties = emulator.send("GET", f"{W}/computes/fault{COMPUTE}").json()["properties"]
    assert properties["provisioningState"] == "Failed"
    assert properties["provisioningErrors"][0]["error"]["message"] == "No cores."


def _ended(emulator: EmulatorProcess, path: str) -> dict[str, Any]:
    import time

    deadline = time.monotonic() + 10
    while (state := emulator.send("GET", path).json())["status"] == "InProgress":
        assert time.monotonic() < deadline
        time.sleep(0.05)
    result: dict[str, Any] = state
    return result


def test_a_header_scripts_one_request_by_hand(emulator: EmulatorProcess) -> None:
    """For people with curl."""
    script = json.dumps({"do": "status", "status": 403})
    answer = emulator.send("GET", f"{W}{PREVIEW}", **{"x-emulator-scenario": script})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "AuthorizationFailed")
