"""Environments, clusters and the hub's token against the emulator, through the real SDK, and what is sent for them."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.config import AzurePlatformConfig, ComputeConfig
from tasks.platforms import connect as composition
from tasks.platforms.errors import ConflictError, NotFoundError
from tasks.platforms.port import Platform
from tests.azure_emulator.process import EmulatorProcess

COMPUTE = ComputeConfig(name="infrastructure", size="Standard_E16s_v3", max_instances=2, public_ip=False)


@pytest.fixture
def connected(in_azure: EmulatorProcess, tmp_path: Path) -> Iterator[Callable[..., Platform]]:
    """Return a function that connects to the emulator's workspace as a process that starts does."""

    def connect(**settings: str) -> Platform:
        composition._workspace.cache_clear()
        values = {
            "subscription_id": in_azure.env["AZURE_SUBSCRIPTION_ID"],
            "resource_group": in_azure.env["AZURE_RESOURCE_GROUP"],
            "workspace": in_azure.env["AZURE_ML_WORKSPACE"],
            "home": str(tmp_path / "home"),
        }
        return composition.connect(AzurePlatformConfig.model_validate({**values, **settings}))

    yield connect
    composition._workspace.cache_clear()


def test_environment_and_cluster_are_made_once(
    in_azure: EmulatorProcess, connected: Callable[..., Platform], caplog: pytest.LogCaptureFixture
) -> None:
    """A second run adopts both by one look each; the SDK says nothing on the way, not even at DEBUG."""
    caplog.set_level(logging.DEBUG)
    platform = connected()
    environment, compute = platform.ensure_environment("serving-cpu"), platform.ensure_compute(COMPUTE)
    assert (environment.origin.reused, compute.origin.reused) == (False, False)
    assert environment.location == f"azureml:phiflow-serving-cpu:{environment.version}"
    assert {record.name.partition(".")[0] for record in caplog.records} <= {"tasks"}
    in_azure.reset()
    platform = connected()
    assert (platform.ensure_environment("serving-cpu"), platform.ensure_compute(COMPUTE)) == (environment, compute)
    assert platform.ensure_compute(COMPUTE).origin.reused
    sent = [one for one in in_azure.exchanges()["exchanges"] if "/workspaces/" in one["path"]]
    assert {one["method"] for one in sent} == {"GET"}
    assert len([one for one in sent if "/environments/" in one["path"]]) == 1


def test_other_cluster_under_the_name_is_refused(connected: Callable[..., Platform]) -> None:
    """The service's own cluster, read back, is compared setting by setting."""
    connected().ensure_compute(COMPUTE)
    with pytest.raises(ConflictError, match=r"compute\.max_instances 2, but the configuration says 3"):
        connected().ensure_compute(COMPUTE.model_copy(update={"max_instances": 3}))


def test_wrong_workspace_is_one_line(connected: Callable[..., Platform]) -> None:
    """A workspace that is not there is named, with its resource group."""
    with pytest.raises(NotFoundError, match=r"^Workspace no-such-workspace in resource group") as caught:
        connected(workspace="no-such-workspace").ensure_compute(COMPUTE)
    assert "\n" not in str(caught.value)


def test_hub_token_comes_from_the_key_vault(
    in_azure: EmulatorProcess,
    connected: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The token is read with this caller's own sign-in, is there while the hub is asked, and is logged nowhere."""
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    in_azure.set_secret("hub", "hf_canary")
    preparation = connected(hub_token_secret="hub")._preparation
    with preparation._hub_token():
        assert os.environ["HF_TOKEN"] == "hf_canary"
    assert "HF_TOKEN" not in os.environ
    assert "hf_canary" not in caplog.text
    with connected(hub_token_secret="none-such")._preparation._hub_token():
        assert "HF_TOKEN" not in os.environ
    assert "Looking at the hub without a token: Secret none-such" in caplog.text
