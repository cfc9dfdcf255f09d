"""Quota arithmetic: what the service lists, what a configuration needs of it, and how what is missing is told."""

from __future__ import annotations

import re
from typing import Any

import pytest

from tasks.config import PipelineConfig
from tasks.platforms.azure.checks.quota import quota_check
from tasks.platforms.azure.quota.need import (
    Need,
    Running,
    has_room,
    needs_of,
    require_startable,
    sizes_that_would_do,
)
from tasks.platforms.azure.quota.sizes import Size
from tasks.platforms.azure.quota.usages import Usages, family_key, usages_of
from tasks.platforms.errors import ConfigError, QuotaError

WORKSPACE = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w"
PAGE = "https://ml.azure.com/quota"
SIZES = {
    size.name.lower(): size
    for size in (
        Size(name="Standard_E4s_v3", family="standardESv3Family", vcpus=4, gpus=0, memory_gb=32),
        Size(name="Standard_E8s_v3", family="standardESv3Family", vcpus=8, gpus=0, memory_gb=64),
        Size(name="Standard_E16s_v3", family="standardESv3Family", vcpus=16, gpus=0, memory_gb=128),
        Size(name="Standard_D16s_v3", family="standardDSv3Family", vcpus=16, gpus=0, memory_gb=64),
        Size(name="Standard_NC4as_T4_v3", family="Standard NCASv3_T4 Family", vcpus=4, gpus=1, memory_gb=28),
        Size(name="Standard_NC24ads_A100_v4", family="StandardNCADSA100v4Family", vcpus=24, gpus=1, memory_gb=220),
        Size(name="Standard_NC40ads_H100_v5", family="StandardNCadsH100v5Family", vcpus=40, gpus=1, memory_gb=320),
    )
}


def entry(name: str, limit: int, used: int | None, kind: str = "dedicatedCores", **more: Any) -> dict[str, Any]:
    """An entry as the service answers today."""
    return {
        "id": more.get("id", "/subscriptions/s/usages"),
        "type": f"Microsoft.MachineLearningServices/{kind}/usages",
        "currentValue": used,
        "limit": limit,
        "name": {"value": name, "localizedValue": more.get("shown", name)},
        "unit": "Count",
    }


def region(a100: int = 0, e: int = 100, total: int = 200, used: int | None = 0, low: int = 50) -> Usages:
    """The limits of a region."""
    return usages_of(
        [
            entry("TotalClusters", 200, 1, "totalClusters"),
            entry("TotalDedicatedCores", total, used, "totalDedicatedCores"),
            entry("standardNCADSA100v4Family", a100, used, shown="Standard NCADSA100v4 Family Cluster Dedicated vCPUs"),
            entry("standardESv3Family", e, used, shown="Standard ESv3 Family Cluster Dedicated vCPUs"),
            entry("standardDSv3Family", 0, used),
            entry("standardNCASv3_T4Family", 100, used),
            entry("standardNCADSH100v5Family", 0, used),
            entry("TotalLowPriorityCores", low, used, "totalLowPriorityCores"),
            entry("standardNCADSA100v4Family", -1, used, "lowPriorityCores"),
        ],
        WORKSPACE,
    )


def configured(size: str = "Standard_NC24ads_A100_v4", serving: str = "Standard_E4s_v3", **more: Any) -> PipelineConfig:
    """A configuration with sizes."""
    return PipelineConfig.model_validate(
        {
            "name": "support",
            "platform": {"kind": "azure", "subscription_id": "s", "resource_group": "g", "workspace": "w"},
            "data": {"source": "/chats.jsonl"},
            "compute": {"size": size, **more.pop("compute", {})},
            "serving": {"instance_type": serving, **more.pop("serving", {})},
            "rollout": more.pop("rollout", {}),
        }
    )


def by_key(needs: tuple[Need, ...]) -> dict[str, Need]:
    """Needs by how Microsoft.Quota calls them; the total is the empty one."""
    return {need.key: need for need in needs}


def test_both_spellings_of_a_family_are_one() -> None:
    """What Microsoft describes, what the service answers and what sizes say name the same family."""
    for spelled in (
        "standardNCADSA100v4Family",
        "StandardNCADSA100v4Family",
        "Standard NCADSA100v4 Family Cluster Dedicated vCPUs",
    ):
        assert family_key(spelled) == "ncadsa100v4"
    assert family_key("Standard NCASv3_T4 Family") == family_key("standardNCASv3_T4Family")


def test_described_answer_is_read_like_the_one_of_today() -> None:
    """Totals and families are found by the names of Microsoft's description, too; those of other workspaces are not."""
    there = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces"
    name = "Standard ESv3 Family Cluster Dedicated vCPUs"
    usages = usages_of(
        [
            entry("Clusters", 100, 7, "totalCores"),
            entry("Total Cluster Dedicated Regional vCPUs", 24, 14),
            entry("Total Cluster LowPriority Regional vCPUs", 50, 18, "lowPriorityCores"),
            entry(name, 48, 2, "vmFamily"),
            entry("Standard ESv3 Family Cluster LowPriority vCPUs", -1, 0, "vmFamily"),
            entry(name, 10, 2, "workspaces", id=f"{WORKSPACE}/usages/E"),
            entry(name, 1, 1, "workspaces", id=f"{there}/other/usages/E"),
            entry(name, 1, 1, "workspaces/computes", id=f"{WORKSPACE}/computes/c/usages/E"),
        ],
        WORKSPACE,
    )
    assert usages.total_dedicated and usages.total_dedicated.free == 10
    assert usages.total_low_priority and usages.total_low_priority.free == 32
    assert usages.family("standardESv3Family").free == 46
    assert usages.in_workspace["esv3"].free == 8


def test_training_and_serving_of_different_families_are_added_in_the_total() -> None:
    """Each family has its own need, and the region's total has both."""
    needs = by_key(needs_of(configured(), SIZES, region(a100=24), Running()))
    assert (needs["StandardNCADSA100v4Family"].now, needs["StandardNCADSA100v4Family"].later) == (24, 24)
    # One instance of 4 vCPUs takes two with the reserve; old, new and one kept are there in a rollout.
    assert (needs["standardESv3Family"].now, needs["standardESv3Family"].later) == (8, 24)
    assert (needs[""].now, needs[""].later) == (32, 48)


def test_training_and_serving_of_one_family_are_one_need() -> None:
    """Where both take from the same limit, it is told once, with the sum."""
    needs = by_key(needs_of(configured("Standard_E16s_v3"), SIZES, region(), Running()))
    assert set(needs) == {"standardESv3Family", ""}
    assert (needs["standardESv3Family"].now, needs["standardESv3Family"].later) == (24, 40)


@pytest.mark.parametrize(
    ("size", "count", "reserved"),
    [
        ("Standard_E4s_v3", 1, 2),
        ("Standard_E4s_v3", 5, 6),
        ("Standard_E4s_v3", 10, 12),
        ("Standard_NC4as_T4_v3", 1, 2),
        ("Standard_NC24ads_A100_v4", 1, 1),
        ("Standard_NC40ads_H100_v5", 3, 3),
    ],
)
def test_reserve_of_online_endpoints(size: str, count: int, reserved: int) -> None:
    """A fifth more instances, rounded up, and none for the sizes that the service exempts."""
    assert SIZES[size.lower()].instances_reserved(count) == reserved


def test_what_runs_already_is_not_counted_twice() -> None:
    """Nodes and deployments of ours are in the usage; what is needed beyond them is one more deployment."""
    running = Running(nodes=1, deployments=("Standard_E4s_v3", "STANDARD_E4S_V3"))
    needs = by_key(needs_of(configured(), SIZES, region(a100=24), running))
    assert needs["StandardNCADSA100v4Family"].now == 0
    assert (needs["standardESv3Family"].now, needs["standardESv3Family"].later) == (8, 8)


def test_low_priority_counts_against_the_one_total() -> None:
    """-1 for a family is no limit of its own: the region's total of low priority is what counts."""
    needs = by_key(needs_of(configured(compute={"tier": "low_priority"}), SIZES, region(low=8), Running()))
    assert needs["TotalLowPriorityCores"].missing_now == 16
    assert needs[""].now == 8  # of dedicated vCPUs the deployment alone


def test_limit_of_the_workspace_counts_where_it_is_lower() -> None:
    """A share of the family's limit that was given to this workspace bounds it."""
    usages = usages_of(
        [
            entry("standardESv3Family", 100, 0),
            entry("standardESv3Family", 10, 4, "workspaces", id=f"{WORKSPACE}/usages/standardESv3Family"),
        ],
        WORKSPACE,
    )
    need = needs_of(configured("Standard_E4s_v3"), SIZES, usages, Running())[0]
    assert (need.pool.free, need.missing_now) == (6, 6)
    assert "of this workspace" in need.pool.name


def told(need: Need, config: PipelineConfig | None = None, offer: str = "") -> tuple[str, str, str]:
    """Outcome, line and fix of a need."""
    check = quota_check(need, config or configured(), "westeurope", offer=offer, page=PAGE)
    assert "\n" not in check.found + check.fix
    return str(check.outcome), check.found, check.fix


def test_missing_quota_is_told_with_name_region_numbers_and_page() -> None:
    """One line says what is needed, what is free, and how much to ask for and where."""
    need = by_key(needs_of(configured(), SIZES, region(a100=0), Running()))["StandardNCADSA100v4Family"]
    outcome, found, fix = told(need)
    assert outcome == "fail"
    assert found == (
        "Standard NCADSA100v4 Family Cluster Dedicated vCPUs in westeurope: 24 needed (training 1 x 24), 0 of 0 free"
    )
    assert fix == (
        "phiflow up CONFIG --request-quota, or ask for a limit of 24 for Standard NCADSA100v4 Family Cluster Dedicated "
        f"vCPUs (StandardNCADSA100v4Family) in westeurope on {PAGE}"
    )


def test_total_cannot_be_asked_for_by_its_name() -> None:
    """The region's total is no quota that Microsoft.Quota takes requests for, so that only the page is told."""
    need = by_key(needs_of(configured(), SIZES, region(a100=24, total=30), Running()))[""]
    _, found, fix = told(need)
    assert found.startswith("TotalDedicatedCores in westeurope: 32 needed, 48 in a later rollout")
    assert "--request-quota" not in fix and "a limit of 48" in fix


@pytest.mark.parametrize(
    ("offer", "used", "words"),
    [
        ("free trial", 0, "of the offer free trial gets no GPU quota"),
        ("", None, "the subscription's offer has no vCPUs of Azure Machine Learning"),
    ],
)
def test_offer_without_quota_is_told_so(offer: str, used: int | None, words: str) -> None:
    """Who cannot ask for quota is not told to ask, but how to leave the offer."""
    usages = region(a100=0 if used == 0 else 24, used=used)
    need = by_key(needs_of(configured(), SIZES, usages, Running()))["StandardNCADSA100v4Family"]
    outcome, found, fix = told(need, offer=offer)
    assert outcome == "fail" and words in found
    assert "pay-as-you-go" in fix and "--request-quota" not in fix


def test_rollout_that_does_not_fit_is_a_warning_with_the_fallback() -> None:
    """One deployment fits, three do not: without the kept one two would, and a run works until then."""
    config = configured()
    need = by_key(needs_of(config, SIZES, region(a100=24, e=16), Running()))["standardESv3Family"]
    outcome, found, fix = told(need, config)
    assert outcome == "warn"
    assert "24 needed in a rollout" in found and "16 of 16 free" in found and "old version serving" in found
    assert fix.startswith("--set rollout.keep_previous=0 ")


def test_room_for_one_deployment_alone_costs_an_interruption() -> None:
    """Without room for two no setting of the rollout helps: smaller, or the endpoint goes first."""
    config = configured(rollout={"keep_previous": 0})
    need = by_key(needs_of(config, SIZES, region(a100=24, e=8), Running()))["standardESv3Family"]
    outcome, _, fix = told(need, config)
    assert outcome == "warn"
    assert "keep_previous" not in fix and "phiflow down CONFIG --scope endpoint" in fix


def test_all_that_fits_passes() -> None:
    """Enough for training and three deployments."""
    for need in needs_of(configured(), SIZES, region(a100=24, e=24), Running()):
        assert told(need)[0] == "pass"


def test_sizes_instead_are_of_the_same_kind_and_have_room() -> None:
    """For a GPU another GPU with as much memory; for a CPU as much memory; and quota for it."""
    needs = by_key(needs_of(configured(), SIZES, region(), Running()))
    assert sizes_that_would_do(needs["StandardNCADSA100v4Family"], SIZES, region()) == ()
    entries = [entry("standardNCASv3_T4Family", 100, 0)]  # room, but too little memory
    assert sizes_that_would_do(needs["StandardNCADSA100v4Family"], SIZES, usages_of(entries, WORKSPACE)) == ()
    entries.append(entry("standardNCADSH100v5Family", 40, 0))
    found = sizes_that_would_do(needs["StandardNCADSA100v4Family"], SIZES, usages_of(entries, WORKSPACE))
    assert found == ("Standard_NC40ads_H100_v5",)
    need = needs_of(configured("Standard_D16s_v3"), SIZES, region(), Running())[0]
    assert sizes_that_would_do(need, SIZES, region()) == ("Standard_E8s_v3", "Standard_E16s_v3")


def test_regions_have_room_when_family_and_total_have() -> None:
    """A region's total bounds its families."""
    need = by_key(needs_of(configured(), SIZES, region(), Running()))["StandardNCADSA100v4Family"]
    assert has_room(need, region(a100=24))
    assert not has_room(need, region(a100=24, total=20))
    assert not has_room(need, region(a100=23))


def test_run_that_could_never_start_is_refused() -> None:
    """A limit below one job stops the run; one that is only in use now does not, since that passes."""
    with pytest.raises(QuotaError, match=re.escape("the limit is 0, and 24 vCPUs are needed at once")):
        require_startable(needs_of(configured(), SIZES, region(a100=0), Running()), "westeurope")
    with pytest.raises(QuotaError, match="the limit is 0"):
        require_startable(needs_of(configured(), SIZES, region(a100=24, used=None), Running()), "westeurope")
    require_startable(needs_of(configured(), SIZES, region(a100=24, used=20), Running()), "westeurope")


def test_unknown_size_is_named_with_its_key() -> None:
    """A size that the region has not is a mistake of the configuration."""
    with pytest.raises(ConfigError, match=re.escape("compute.size Standard_X is not among the sizes")):
        needs_of(configured("Standard_X"), SIZES, region(), Running())
