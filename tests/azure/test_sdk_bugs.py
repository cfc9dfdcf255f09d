"""Faults of azure-ai-ml that phiflow goes around; when one of these tests fails, the way around can go."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.azure_emulator.process import EmulatorProcess
from tests.azure_emulator.server import SCOPE

_SCRIPT = """
import json, os, sys
from azure.ai.ml import MLClient
from azure.identity import DefaultAzureCredential
names = ("AZURE_SUBSCRIPTION_ID", "AZURE_RESOURCE_GROUP", "AZURE_ML_WORKSPACE")
ml = MLClient(DefaultAzureCredential(), *(os.environ[name] for name in names), enable_telemetry=False)
print(json.dumps([one.current_value for one in ml.compute.list_usage()]))
ml.online_endpoints.invoke("sdk-bug", deployment_name="green", request_file=sys.argv[1])
ml.online_endpoints.invoke("sdk-bug", request_file=sys.argv[1])
"""
_ENDPOINT = f"{SCOPE.workspace_id}/onlineEndpoints/sdk-bug"


@pytest.fixture(scope="module")
def printed(shared_emulator: EmulatorProcess, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the SDK said of usage, after which it called an endpoint for deployment green, and once more for none."""
    emulator, request = shared_emulator, tmp_path_factory.mktemp("sdk-bugs") / "request.json"
    emulator.reset()
    endpoint = {
        "location": SCOPE.location,
        "identity": {"type": "SystemAssigned"},
        "properties": {"authMode": "Key"},
    }
    made = emulator.send("PUT", f"{_ENDPOINT}?api-version=2022-02-01-preview", endpoint)
    assert made.status_code in (200, 201), made.text
    settings = {"endpointComputeType": "Managed", "scaleSettings": {"scaleType": "Default"}, "instanceType": "x"}
    deployment = {"id": f"{_ENDPOINT}/deployments/green", "name": "green", "location": SCOPE.location}
    listed = {"value": [{**deployment, "properties": settings, "sku": {"name": "Default", "capacity": 1}}]}
    emulator.add_scenario("status", match={"path": "/deployments$", "times": 0}, status=200, body=listed)
    emulator.add_scenario("status", match={"path": "/sdk-bug/score$", "times": 0}, status=200, body={"ok": 1})
    request.write_text("{}")
    ran = emulator.run(_SCRIPT, str(request))
    emulator.reset()
    assert ran.returncode == 0, ran.stderr
    return ran.stdout


def test_invoke_remembers_the_deployment_of_the_call_before(printed: str, shared_emulator: EmulatorProcess) -> None:
    """The second call names no deployment and goes to green all the same: phiflow sends its own requests."""
    asked = [one for one in _logged(shared_emulator.log) if one["path"].endswith("/sdk-bug/score")]
    headers = [one["request"]["headers"] for one in asked if one["method"] == "POST"]
    assert [one.get("azureml-model-deployment") for one in headers[-2:]] == ["green", "green"]


def test_usage_has_no_current_value(printed: str, shared_emulator: EmulatorProcess) -> None:
    """The number is in the response, and the SDK's object says None: phiflow reads the response."""
    values = json.loads(printed.splitlines()[0])
    assert values and set(values) == {None}
    told = [one for one in _logged(shared_emulator.log) if one["path"].endswith("/usages")][-1]["response"]["body"]
    assert all(isinstance(one["currentValue"], int) for one in told["value"])


def _logged(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
