"""What a configuration needs of a region's vCPU quota, against what is free, and what would do instead.

Training takes the cluster's `max_instances`; serving one deployment now, and in a later rollout the old, the new and
the kept ones at once. The chat app runs where phiflow runs and takes none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tasks.platforms.azure.quota.sizes import Size, read_sizes
from tasks.platforms.azure.quota.usages import Pool, Usages, family_key, read_usages
from tasks.platforms.errors import ConfigError, Failure, QuotaError

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.azure.client import Workspace

LOW_PRIORITY_KEY = "TotalLowPriorityCores"
PARTS = ("training", "serving")


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """What of ours counts in the usage already: nodes of the cluster, and the sizes of the endpoint's deployments."""

    nodes: int = 0
    deployments: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """What a configuration wants of one limit, in vCPUs beyond what it uses already.

    Args:
        key: how Microsoft.Quota names the limit; empty where it cannot be asked for.
        now: for the next run, with one more deployment.
        later: for a rollout beside what serves and what is kept.
        least: for one job, or one deployment: with a lower limit it never starts.
        deployment: of these, what one deployment takes.
        why: what adds up to `later`.
        size, setting: of the larger part, and the configuration's key that chooses it; a total has none.
    """

    pool: Pool
    key: str
    now: int
    later: int
    least: int
    why: tuple[str, ...]
    deployment: int = 0
    size: Size | None = None
    setting: str = ""

    @property
    def missing_now(self) -> int:
        return _missing(self.now, self.pool)

    @property
    def missing_later(self) -> int:
        return _missing(self.later, self.pool)

    @property
    def limit_wanted(self) -> int:
        """The limit with which all of it fits."""
        return (self.pool.limit or 0) + self.missing_later if self.pool.used is not None else self.later


def needs_of(
    config: PipelineConfig, sizes: Mapping[str, Size], usages: Usages, running: Running, parts: tuple[str, ...] = PARTS
) -> tuple[Need, ...]:
    """The limits of one region that a configuration touches, each once: families, then the total.

    Args:
        parts: which of `PARTS` happen in the region.
    Raises:
        ConfigError: the region has no such size.
    """
    needs = []
    if "training" in parts:
        needs.append(_training(config, _find(sizes, config.compute.size, "compute.size"), usages, running))
    if "serving" in parts:
        size = _find(sizes, config.serving.instance_type, "serving.instance_type")
        needs.append(_serving(config, size, usages, running))
    families = _merged(needs)
    total = usages.total_dedicated
    dedicated = [need for need in families if need.key != LOW_PRIORITY_KEY]
    if total is None or not dedicated:
        return families
    whole = Need(
        pool=total,
        key="",
        now=sum(need.now for need in dedicated),
        later=sum(need.later for need in dedicated),
        least=max(need.least for need in dedicated),
        why=tuple(why for need in dedicated for why in need.why),
        deployment=max(need.deployment for need in dedicated),
    )
    return (*families, whole)


def read_needs(
    config: PipelineConfig, workspace: Workspace, location: str, parts: tuple[str, ...] = PARTS
) -> tuple[Need, ...]:
    """`needs_of` with what the service says of a region now, as if nothing of ours were there."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        usages = pool.submit(read_usages, workspace, location)
        sizes = read_sizes(workspace, location)
    return needs_of(config, sizes, usages.result(), Running(), parts)


def require_startable(needs: Iterable[Need], location: str) -> None:
    """Refuse what no wait can help: a limit too low for one job or one deployment, whatever else runs.

    Raises:
        QuotaError: names the limit, the number and what to do.
    """
    for need in needs:
        limit = 0 if need.pool.used is None else need.pool.limit
        if limit is not None and limit < need.least:
            raise QuotaError(
                f"{need.pool.name} in {location}: the limit is {limit}, and {need.least} vCPUs are needed at once, "
                "so that it would never start.",
                fix=f"Request a limit of {need.limit_wanted}; `phiflow doctor` tells where, and what would do instead.",
                failure=Failure.QUOTA,
            )


def sizes_that_would_do(need: Need, sizes: Mapping[str, Size], usages: Usages) -> tuple[str, ...]:
    """Sizes of the same region with quota left, with as much memory, GPU memory too; the smallest first."""
    wanted = need.size
    if wanted is None:
        return ()
    count = -(-need.now // wanted.vcpus)
    fitting = [
        size
        for size in sizes.values()
        if size.name != wanted.name
        and (size.gpus > 0) == (wanted.gpus > 0)
        and size.gpu_memory_gb >= wanted.gpu_memory_gb
        and size.memory_gb >= (0 if wanted.gpus else wanted.memory_gb)
        and _missing(size.vcpus * count, usages.family(size.family)) == 0
        and (usages.total_dedicated is None or _missing(size.vcpus * count, usages.total_dedicated) == 0)
    ]
    fitting.sort(key=lambda size: (size.gpus, size.vcpus, size.memory_gb, size.name))
    return tuple(size.name for size in fitting[:3])


def has_room(need: Need, usages: Usages) -> bool:
    """Whether the same need would fit another region's limits."""
    if need.size is None:
        return False
    pool = usages.total_low_priority if need.key == LOW_PRIORITY_KEY else usages.family(need.size.family)
    total = usages.total_dedicated if need.key != LOW_PRIORITY_KEY else None
    return all(one is None or _missing(need.now, one) == 0 for one in (pool, total))


def _training(config: PipelineConfig, size: Size, usages: Usages, running: Running) -> Need:
    compute = config.compute
    vcpus = max(0, compute.max_instances - running.nodes) * size.vcpus
    low = compute.tier == "low_priority"
    pool = usages.total_low_priority or Pool(name="Total Cluster LowPriority Regional vCPUs", limit=0, used=0)
    return Need(
        pool=pool if low else _pool(usages, size),
        key=LOW_PRIORITY_KEY if low else size.family,
        now=vcpus,
        later=vcpus,
        least=compute.num_nodes * size.vcpus,
        why=(f"training {compute.max_instances} x {size.vcpus}",),
        size=size,
        setting="compute.size",
    )


def _serving(config: PipelineConfig, size: Size, usages: Usages, running: Running) -> Need:
    count = config.serving.instance_count
    each = size.instances_reserved(count) * size.vcpus
    there = sum(1 for name in running.deployments if name.lower() == size.name.lower())
    at_once = 2 + config.rollout.keep_previous
    reserve = " with the service's reserve" if each > count * size.vcpus else ""
    return Need(
        pool=_pool(usages, size),
        key=size.family,
        now=each,
        later=max(1, at_once - there) * each,
        least=each,
        why=(f"serving {at_once} x {each}{reserve}",),
        deployment=each,
        size=size,
        setting="serving.instance_type",
    )


def _pool(usages: Usages, size: Size) -> Pool:
    """The family's limit, or the lower one that was given to our workspace."""
    pool, ours = usages.family(size.family), usages.in_workspace.get(family_key(size.family))
    if ours is None or ours.free is None or (pool.free is not None and pool.free <= ours.free):
        return pool
    return replace(ours, name=f"{pool.name} of this workspace")


def _merged(needs: list[Need]) -> tuple[Need, ...]:
    """One need where training and serving take from the same limit."""
    if len({need.key for need in needs}) == len(needs):
        return tuple(needs)
    training, serving = needs
    larger = training if training.now >= serving.now else serving
    both = replace(
        larger,
        now=training.now + serving.now,
        later=training.later + serving.later,
        least=max(training.least, serving.least),
        why=(*training.why, *serving.why),
        deployment=serving.deployment,
    )
    return (both,)


def _find(sizes: Mapping[str, Size], name: str, key: str) -> Size:
    if found := sizes.get(name.lower()):
        return found
    raise ConfigError(f"{key} {name} is not among the sizes of the region.", fix=f"Set {key}, or another region.")


def _missing(wanted: int, pool: Pool) -> int:
    return 0 if pool.free is None else max(0, wanted - pool.free)
