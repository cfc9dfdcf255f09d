"""The smoke run's own arithmetic and its evidence; the run itself is rehearsed in tests/e2e/test_azure.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from flows import smoke
from flows.billing import what_bills
from flows.smoke import main
from tasks.config import PipelineConfig
from tasks.config_files import build_config
from tasks.estimate.prices import hourly_cost
from tasks.platforms.errors import ConfigError, PhiflowError

SUBSCRIPTION = "0a1b2c3d-0000-4444-8888-123456789abc"
PLACE = {"kind": "azure", "subscription_id": SUBSCRIPTION, "resource_group": "g", "workspace": "w"}


def configuration(**compute: Any) -> PipelineConfig:
    """A run on Azure."""
    values = {"name": "support", "data": {"source": "d.jsonl"}, "platform": PLACE, "compute": compute}
    return build_config(values, "test")


def test_price_is_of_every_machine_that_may_run() -> None:
    """The hourly price counts the cluster's nodes, at their tier, and the deployment's instance."""
    served = hourly_cost("Standard_E4s_v3") or 0
    for tier in ("dedicated", "low_priority"):
        config = configuration(size="Standard_E16s_v3", max_instances=2, tier=tier)
        trained = hourly_cost("Standard_E16s_v3", 2, config.compute.tier) or 0
        assert trained > 0
        assert smoke._price(config) == pytest.approx(trained + served)


def test_unknown_size_needs_a_price() -> None:
    """A size without a known price is named, with the option that says it."""
    with pytest.raises(ConfigError, match=r"Standard_X1.*--price-per-hour"):
        smoke._price(configuration(size="Standard_X1"))


def test_configuration_of_this_machine_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    """A smoke run of a local configuration is a mistake, told in one line, and leaves no evidence of a run."""
    local = Path(__file__).parents[2] / "deployments" / "local.yaml"
    assert main([str(local), "--max-cost", "1"]) == 2
    assert "does not run on Azure" in capsys.readouterr().err


def test_failed_steps_are_torn_down_and_told_without_the_subscription(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that fails in the middle is followed by the tear-down, and the evidence has the reason but no ids."""
    torn_down = []

    def fail(run: smoke.Smoke) -> None:
        with run.step("look") as seen:
            seen["workspace"] = f"/subscriptions/{SUBSCRIPTION.upper()}/resourceGroups/g"
            raise PhiflowError(f"No room in {SUBSCRIPTION}.")

    monkeypatch.setattr(smoke, "run_steps", fail)
    monkeypatch.setattr(smoke, "tear_down_everything", lambda run: torn_down.append(run.config.name))
    for key, name in (("subscription_id", "AZURE_SUBSCRIPTION_ID"), ("resource_group", "AZURE_RESOURCE_GROUP")):
        monkeypatch.setenv(name, PLACE[key])
    monkeypatch.setenv("AZURE_ML_WORKSPACE", "w")
    evidence = tmp_path / "evidence"
    shipped = Path(__file__).parents[2] / "deployments" / "azure-cpu.yaml"
    assert main([str(shipped), "--max-cost", "2", "--evidence", str(evidence)]) == 4
    assert len(torn_down) == 1
    assert torn_down[0].startswith("smoke-x")
    told = json.loads(evidence.with_suffix(".json").read_text())
    assert told["outcome"] == "failed"
    assert told["steps"][0]["outcome"] == "failed"
    assert "No room" in told["steps"][0]["seen"]["error"]
    for suffix in (".json", ".md"):
        assert SUBSCRIPTION not in evidence.with_suffix(suffix).read_text().lower()


def test_what_bills_is_said_with_how_to_end_it() -> None:
    """Endpoint and cluster are named with the command or the rule that ends the bill; nothing bills here."""
    endpoint, cluster = what_bills(configuration(size="Standard_E16s_v3"))
    assert "phiflow down --scope endpoint" in endpoint
    assert "300 s after the last job" in cluster
    assert "keeps 1 node" in what_bills(configuration(size="Standard_E16s_v3", min_instances=1))[1]
    assert what_bills(build_config({"name": "here", "data": {"source": "d.jsonl"}}, "test")) == []
