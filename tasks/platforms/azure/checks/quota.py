"""Quota as checks: what is missing in vCPUs, what would do instead, and the page that asks for more."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from tasks.platforms.azure.checks import offers
from tasks.platforms.azure.infrastructure import cluster_name
from tasks.platforms.azure.quota.need import Need, Running, has_room, needs_of, sizes_that_would_do
from tasks.platforms.azure.quota.usages import Usages, read_usages
from tasks.platforms.azure.resources import Resource
from tasks.platforms.errors import Failure, NotFoundError, PhiflowError
from tasks.platforms.local.checking import failed, passed, warned
from tasks.platforms.upkeep import Check

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.azure.checks.facts import Facts
    from tasks.platforms.azure.client import Workspace

# Large regions with GPUs, asked only when something is missing.
_REGIONS = ("eastus", "eastus2", "southcentralus", "westus3", "swedencentral", "westeurope", "northeurope", "uksouth")
_CPU_PATH = "phiflow run deployments/azure-cpu.yaml"
# `phiflow doctor` puts the file's path here.
CONFIGURATION = "CONFIG"


def check_quota(facts: Facts) -> Iterator[Check]:
    """One check a limit, then one for what would do instead of what is missing."""
    if not facts.config.compute.size:  # told before anything was asked
        return
    running = read_running(facts.config, facts.workspace) if facts.has_workspace else Running()
    offer = offers.free_credit(offers.offer_of(facts.subscription))
    for location, parts in facts.regions.items():
        sizes, usages = facts.sizes(location), read_usages(facts.workspace, location)
        wanted = {"training": facts.config.compute.size, "serving": facts.config.serving.instance_type}
        known = tuple(part for part in parts if wanted[part].lower() in sizes)  # the others are told as sizes
        needs = needs_of(facts.config, sizes, usages, running, known)
        for need in needs:
            yield quota_check(need, facts.config, location, offer=offer, page=quota_page(facts.workspace))
        for need in needs:
            if need.missing_now and need.size is not None:
                others = sizes_that_would_do(need, sizes, usages)
                yield _instead(need, others, location, _regions_with_room(need, facts.workspace, location))


def quota_check(need: Need, config: PipelineConfig, location: str, *, offer: str, page: str) -> Check:
    """Pass when all fits, warn when a later rollout does not, fail when the next run does not.

    Args:
        offer: what people call the subscription's offer where that gets no GPU quota, else empty.
        page: where a person asks for quota.
    """
    told = _told(need, location)
    if not need.missing_later:
        return passed("quota", told)
    ask = f"ask for {_asked(need, location)} on {page}"
    if need.key:
        ask = f"phiflow up {CONFIGURATION} --request-quota, or {ask}"
    if not need.missing_now:
        return warned("quota", told, _fallback(need, config, ask))
    if offer and need.size is not None and need.size.gpus:
        told = f"{told}; a subscription of the offer {offer} gets no GPU quota"
        ask = f"Make the subscription pay-as-you-go ({offers.UPGRADE}), or without a GPU: {_CPU_PATH}"
    elif need.pool.used is None:
        told = f"{told}; the subscription's offer has no vCPUs of Azure Machine Learning"
        ask = f"Make the subscription pay-as-you-go: {offers.UPGRADE}"
    return failed("quota", told, ask, Failure.QUOTA)


def read_running(config: PipelineConfig, workspace: Workspace) -> Running:
    """Our cluster's nodes and our endpoint's deployments, which the usage counts already."""
    cluster = Resource(workspace, f"computes/{cluster_name(config.compute)}", "The cluster").read() or {}
    properties = (cluster.get("properties") or {}).get("properties") or {}
    endpoint = Resource(workspace, f"onlineEndpoints/{config.endpoint_name}", f"Endpoint {config.endpoint_name}")
    try:
        deployments = tuple(
            str(one["properties"].get("instanceType") or "") for one in endpoint.list_below("deployments")
        )
    except NotFoundError:
        deployments = ()
    return Running(nodes=int(properties.get("currentNodeCount") or 0), deployments=deployments)


def quota_page(workspace: Workspace) -> str:
    """The studio's page, where a person chooses subscription and region and asks for quota."""
    return workspace.studio_url("quota").partition("?")[0]


def _told(need: Need, location: str) -> str:
    pool = need.pool
    room = "no limit of its own" if pool.free is None else f"{pool.free} of {pool.limit} free"
    if need.missing_later and not need.missing_now:
        later = "the next run fits, but a later one with a new model would end with the old version serving"
        return f"{pool.name} in {location}: {need.later} needed in a rollout ({', '.join(need.why)}), {room}: {later}"
    wanted = f"{need.now} needed" + (f", {need.later} in a later rollout" if need.later > need.now else "")
    return f"{pool.name} in {location}: {wanted} ({', '.join(need.why)}), {room}"


def _asked(need: Need, location: str) -> str:
    key = f" ({need.key})" if need.key else ""
    return f"a limit of {need.limit_wanted} for {need.pool.name}{key} in {location}"


def _fallback(need: Need, config: PipelineConfig, ask: str) -> str:
    """What lets the old and the new deployment fit beside each other, else what a rollout costs."""
    kept = config.rollout.keep_previous
    if kept and need.missing_later <= kept * need.deployment:
        return f"--set rollout.keep_previous=0 (no instant roll-back), a smaller serving.instance_type, or {ask}"
    return (
        f"A smaller serving.instance_type; or before such a run phiflow down {CONFIGURATION} --scope endpoint, and "
        f"nothing answers meanwhile; or {ask}"
    )


def _instead(need: Need, sizes: tuple[str, ...], location: str, regions: tuple[str, ...]) -> Check:
    """Sizes and regions where the quota would do."""
    assert need.size is not None
    found = f"sizes with room in {location}: {', '.join(sizes) or 'none'}"
    found += f"; regions with room for {need.size.name}: {', '.join(regions) or 'none of those asked'}"
    ways = [f"--set {need.setting}={sizes[0]}"] if sizes else []
    if regions and need.setting == "compute.size":
        ways.append(f"--set platform.location={regions[0]}")
    if need.size.gpus:
        ways.append(f"without a GPU: {_CPU_PATH}")
    return warned("instead", found, ", or ".join(ways))


def _regions_with_room(need: Need, workspace: Workspace, location: str) -> tuple[str, ...]:
    regions = [region for region in _REGIONS if region != location]
    with ThreadPoolExecutor(max_workers=len(regions)) as pool:
        asked = list(pool.map(lambda region: _usages_or_none(workspace, region), regions))
    return tuple(region for region, found in zip(regions, asked, strict=True) if found and has_room(need, found))


def _usages_or_none(workspace: Workspace, location: str) -> Usages | None:
    """Of a region that may not exist in this cloud or for this subscription."""
    try:
        return read_usages(workspace, location)
    except PhiflowError:
        return None
