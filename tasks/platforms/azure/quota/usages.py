"""vCPU limits and usage of Azure Machine Learning in a region, from the service's raw answer.

The SDK's `list_usage` loses the numbers (`current_value` is None), so the answer is read here. Its entries are named in
two ways, and both are read: `Standard DSv2 Family Cluster Dedicated vCPUs` of type `vmFamily` as in Microsoft's
description, `standardDSv2Family` of type `dedicatedCores` or `lowPriorityCores` as the service answers today.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.quota.sizes import ML, ML_API

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """One limit of vCPUs.

    Args:
        name: what people read, as in "Standard DSv2 Family Cluster Dedicated vCPUs".
        limit: None where there is none of its own.
        used: None where the subscription's offer has no such vCPUs at all.
    """

    name: str
    limit: int | None
    used: int | None

    @property
    def free(self) -> int | None:
        """vCPUs that may still be taken; None: no limit of its own."""
        if self.used is None:
            return 0
        return None if self.limit is None else max(0, self.limit - self.used)


@dataclass(frozen=True, slots=True, kw_only=True)
class Usages:
    """The limits of a region: families by `family_key`, and the totals over all families."""

    dedicated: Mapping[str, Pool] = field(default_factory=dict)
    total_dedicated: Pool | None = None
    total_low_priority: Pool | None = None
    in_workspace: Mapping[str, Pool] = field(default_factory=dict)

    def family(self, family: str) -> Pool:
        """The dedicated vCPUs of a family of sizes; a family that the service does not list has none."""
        absent = Pool(name=f"Standard {_short(family)} Family Cluster Dedicated vCPUs", limit=0, used=0)
        return self.dedicated.get(family_key(family), absent)


def read_usages(workspace: Workspace, location: str) -> Usages:
    """The limits of a region and what is used of them."""
    url: str = f"/subscriptions/{workspace.config.subscription_id}/{ML}/locations/{location}/usages"
    params: dict[str, str] | None = {"api-version": ML_API}
    entries: list[dict[str, Any]] = []
    while url:
        page = workspace.send("GET", url, params=params, what=f"The quota of region {location}").json()
        entries += page.get("value") or ()
        url, params = str(page.get("nextLink") or ""), None
    return usages_of(entries, workspace.resource_id)


def usages_of(entries: Iterable[dict[str, Any]], workspace_id: str) -> Usages:
    """Sort the service's entries; of those of workspaces, the limits that were given to ours."""
    dedicated: dict[str, Pool] = {}
    in_workspace: dict[str, Pool] = {}
    totals: dict[str, Pool] = {}
    for entry in entries:
        pool, resource = _pool(entry), str(entry.get("id") or "").lower()
        kind = str(entry.get("type") or "").split("/")[-2:][0].lower()
        name = str(entry["name"].get("value") or "").lower()
        if "/workspaces/" in resource:
            if resource.startswith(f"{workspace_id.lower()}/usages/") and "lowpriority" not in f"{kind}{name}":
                in_workspace[family_key(name)] = pool
        elif name.startswith("total") and name != "totalclusters":
            totals["low" if "lowpriority" in name else "dedicated"] = pool
        elif "lowpriority" not in f"{kind}{name}" and kind in ("vmfamily", "dedicatedcores"):
            dedicated[family_key(name)] = pool
    return Usages(
        dedicated=dedicated,
        total_dedicated=totals.get("dedicated"),
        total_low_priority=totals.get("low"),
        in_workspace=in_workspace,
    )


def family_key(name: str) -> str:
    """A family's name without what its spellings differ in: ncadsa100v4, for each of them."""
    plain = re.sub(r"[\s_]", "", name.lower())
    return plain.removeprefix("standard").partition("family")[0]


def _pool(entry: dict[str, Any]) -> Pool:
    value = str(entry["name"].get("value") or "")
    limit, used = entry.get("limit"), entry.get("currentValue")
    return Pool(
        name=str(entry["name"].get("localizedValue") or value),
        limit=None if limit is None or int(limit) < 0 else int(limit),
        used=None if used is None else int(used),
    )


def _short(family: str) -> str:
    return re.sub(r"(?i)^standard\s*|\s*family$", "", family)
