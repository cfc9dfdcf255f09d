"""How many cores there are and how many are taken, and the refusal of clusters and deployments that would take more.

    PUT /_emulator/quota/standardDSv2Family {"limit": 8, "location": "westeurope"}    every region without a location
    PUT /_emulator/quota/total {"limit": 100}                                         of all families together
    PUT /_emulator/quota/lowPriority {"limit": 0}

A family is named as in `sizes.py`, or as `family_name` makes of it. What the one workspace has is all that is counted.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from tests.azure_emulator import scripts, skus
from tests.azure_emulator.deployments import RefusedError
from tests.azure_emulator.sizes import SIZES, Size, family_name
from tests.azure_emulator.web import Answer, Request, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

DEFAULT_LIMIT = 500
TOTAL, LOW_PRIORITY = "total", "lowPriority"
FAMILIES = sorted({size.family for size in SIZES.values()})
_WITH_GPUS = {size.family for size in SIZES.values() if size.gpus}
# Offers without a way to pay for more, and so without GPUs.
_FREE = ("freetrial", "azureforstudents", "azurepass", "dreamspark", "lightweighttrial")
_SPELLED = {spelled.lower(): family for family in FAMILIES for spelled in (family, family_name(family))}
_SPELLED |= {TOTAL: TOTAL, LOW_PRIORITY.lower(): LOW_PRIORITY, "totallowprioritycores": LOW_PRIORITY}
# https://learn.microsoft.com/azure/machine-learning/how-to-manage-quotas: no reserve for upgrades with these.
_NO_RESERVE = re.compile(r"(?i)standard_(NC\d+ads_A100_v4|NC\d+\w*_H100_v5|ND\w+_v4|ND40rs_v2|ND\w+_H100_v5)")
_RESERVE = 1.2


def install(emulator: Emulator) -> None:
    """Register the routes."""
    quota = Quota(emulator)
    emulator.quota = quota
    emulator.register("GET", "L/usages", quota.list_usages)


def find_family(name: str) -> str:
    """The family of a name, or one of the two sums.

    Raises:
        ServiceError: 404.
    """
    if name.lower() not in _SPELLED:
        raise arm_error(404, "NotFound", f"There is no family of sizes '{name}': {', '.join(FAMILIES)}.")
    return _SPELLED[name.lower()]


def has_no_gpus(emulator: Emulator) -> bool:
    """Whether the subscription's offer gets no machines with GPUs, and may not ask for more."""
    return str(emulator.settings.get("subscription").get("quotaId", "")).lower().startswith(_FREE)


class Quota:
    """The limits of one subscription, and what its workspace takes of them.

    Attributes:
        is_running: whether a job has nodes; set by who runs jobs.
    """

    def __init__(self, emulator: Emulator) -> None:
        self._emulator = emulator
        self.is_running: Callable[[str], bool] = lambda _: False

    def limit(self, family: str, location: str) -> int:
        """How many cores of a family there may be in a region."""
        self._settle()
        for place in (location.lower(), "*"):
            known = self._emulator.settings.get(f"quota/{place}/{family.lower()}")
            if "limit" in known:
                return int(known["limit"])
        return 0 if family in _WITH_GPUS and has_no_gpus(self._emulator) else DEFAULT_LIMIT

    def set_limit(self, family: str, location: str, limit: int) -> None:
        """Have another limit; `*` is every region, whatever was said of one before."""
        if location == "*":
            for name in self._emulator.settings.all("quota"):
                if name.endswith(f"/{family.lower()}"):
                    self._emulator.settings.delete(f"quota/{name}")
        self._emulator.settings.put(f"quota/{location.lower()}/{family.lower()}", {"limit": limit})

    def _settle(self) -> None:
        """Have requests that were granted by now take effect."""
        for name, asked in self._emulator.settings.all("quota-asked").items():
            if not asked["settled"] and state_of(asked) == "Succeeded":
                self._emulator.settings.put(f"quota-asked/{name}", asked | {"settled": True})
                self.set_limit(asked["family"], asked["location"], asked["limit"])

    def used(self, location: str, *, without: str = "") -> dict[str, int]:
        """Cores in use by family and by the two sums.

        Args:
            without: the id of a cluster or deployment that does not count.
        """
        cores: dict[str, int] = {}
        if location.lower() != self._emulator.scope.location:
            return cores
        for resource_id, size, count, low_priority in [*self._clusters(), *self._deployments()]:
            if resource_id.lower() != without.lower():
                for name in (LOW_PRIORITY,) if low_priority else (size.family, TOTAL):
                    cores[name] = cores.get(name, 0) + size.cores * count
        return cores

    def cluster_error(self, resource: dict[str, Any]) -> dict[str, Any] | None:
        """The error with which the service ends the making of a cluster that not even one node of fits the quota.

        Where the nodes that it must always have do not fit, the cluster is told so in its own `errors`.
        """
        inner = resource["properties"]["properties"]
        size, low_priority = SIZES[inner["vmSize"].upper()], inner["vmPriority"] == "LowPriority"
        location = resource["properties"]["computeLocation"]
        used = self.used(location, without=resource["id"])
        wanted = size.cores * int(inner["scaleSettings"]["minNodeCount"])
        for name in (LOW_PRIORITY,) if low_priority else (size.family, TOTAL):
            limit, taken = self.limit(name, location), used.get(name, 0)
            if limit < size.cores:
                message = (
                    f"The specified subscription has a {_words(name)} vCPU quota of {limit} and cannot accomodate for "
                    f"at least 1 requested managed compute node which maps to {size.cores} vCPUs."
                )
                return {"code": "BadRequest", "message": message}
            if wanted and taken + wanted > limit:
                message = (
                    f"Operation results in exceeding quota limits of {_words(name)} vCPUs. Maximum allowed: {limit}, "
                    f"Current in use: {taken}, Additional requested: {wanted}."
                )
                error = {"code": "ClusterCoreQuotaReached", "message": message, "details": [], "additionalInfo": []}
                inner["errors"] = [{"error": error}]
        return None

    def require_deployment(self, resource_id: str, body: dict[str, Any]) -> None:
        """Refuse a deployment that the quota has no cores for, with the reserve that the service keeps for upgrades.

        Raises:
            RefusedError: OutOfQuota, as the service words it.
        """
        size = SIZES.get(str((body.get("properties") or {}).get("instanceType", "")).upper())
        count = (body.get("sku") or {}).get("capacity")
        if size is None or not isinstance(count, int):
            return  # refused for that
        scope = self._emulator.scope
        used = self.used(scope.location, without=resource_id)
        needed = size.cores * (count if _NO_RESERVE.fullmatch(size.name) else math.ceil(_RESERVE * count))
        for name in (size.family, TOTAL):
            limit, taken = self.limit(name, scope.location), used.get(name, 0)
            if taken + needed > limit:
                raise RefusedError(scripts.quota_refused(size.name, scope.subscription, (taken, limit, needed)))

    def list_usages(self, request: Request) -> Answer:
        """The region's limits, and what the workspace takes of them."""
        scope, location = self._emulator.scope, skus.known_location(request.parameters["location"])
        base = f"{scope.subscription_id}/providers/Microsoft.MachineLearningServices/locations/{location}/usages"
        used, clusters = self.used(location), self._emulator.store.list(f"{self._emulator.workspace_id}/computes")
        rows = [("totalClusters", "TotalClusters", "Clusters", len(clusters) if location == scope.location else 0, 200)]
        for name, kind, key in (
            ("Total Cluster Dedicated Regional vCPUs", "DedicatedCores", TOTAL),
            ("Total Cluster LowPriority Regional vCPUs", "LowPriorityCores", LOW_PRIORITY),
        ):
            rows.append((f"total{kind}", f"Total{kind}", name, used.get(key, 0), self.limit(key, location)))
        for family in FAMILIES:
            name, limit = family_name(family), self.limit(family, location)
            rows.append(("dedicatedCores", family, name, used.get(family, 0), limit))
            # Of low priority the total is all that limits.
            rows.append(("lowPriorityCores", family, name.replace("Dedicated", "LowPriority"), 0, -1))
        none = has_no_gpus(self._emulator)
        return self._emulator.page(request, [_usage(base, *row, unknown=none) for row in rows])

    def _clusters(self) -> list[tuple[str, Size, int, bool]]:
        """Clusters with the nodes that they have: those that must be, and those of jobs."""
        jobs = self._emulator.store.list(f"{self._emulator.workspace_id}/jobs")
        nodes: dict[str, int] = {}
        for job in jobs:
            cluster = str(job["properties"].get("computeId") or "").rsplit("/", 1)[-1].lower()
            if cluster and self.is_running(job["name"]):
                wanted = (job["properties"].get("resources") or {}).get("instanceCount") or 1
                nodes[cluster] = nodes.get(cluster, 0) + int(wanted)
        found = []
        for one in self._emulator.store.list(f"{self._emulator.workspace_id}/computes"):
            inner = one["properties"]["properties"]
            smallest = 0 if inner.get("errors") else int(inner["scaleSettings"]["minNodeCount"])
            count = max(smallest, nodes.get(one["name"].lower(), 0))
            if one["properties"]["provisioningState"] != "Failed":
                low_priority = inner["vmPriority"] == "LowPriority"
                found.append((one["id"], SIZES[inner["vmSize"].upper()], count, low_priority))
        return found

    def _deployments(self) -> list[tuple[str, Size, int, bool]]:
        found = []
        for one in self._emulator.store.walk(f"{self._emulator.workspace_id}/onlineEndpoints"):
            size = SIZES.get(str(one["properties"].get("instanceType", "")).upper()) if "id" in one else None
            if size and one["properties"].get("provisioningState") != "Failed":
                found.append((one["id"], size, int(one["sku"]["capacity"]), False))
        return found


def state_of(asked: dict[str, Any]) -> str:
    """How a request for more stands: what becomes of it shows after a moment."""
    return str(asked["result"]) if time.time() >= asked["until"] else "InProgress"


def checked_limit(document: dict[str, Any]) -> tuple[int, str]:
    """The limit and region of the document of `PUT /_emulator/quota/{family}`.

    Raises:
        ServiceError: 400, with what is wrong.
    """
    limit = document.get("limit")
    if isinstance(limit, bool) or not isinstance(limit, int) or limit < 0:
        raise arm_error(400, "InvalidQuota", f"{document} has no limit, a number of cores.")
    return limit, str(document.get("location") or "*")


def _words(name: str) -> str:
    if name in (TOTAL, LOW_PRIORITY):
        return "total" if name == TOTAL else "total LowPriority"
    return family_name(name).replace(" Family Cluster Dedicated vCPUs", " family")


def _usage(base: str, kind: str, value: str, name: str, used: int, limit: int, *, unknown: bool) -> dict[str, Any]:
    return {
        "id": f"{base}/{value}",
        "type": f"Microsoft.MachineLearningServices/{kind}/usages",
        "currentValue": None if unknown else used,
        "limit": limit,
        "name": {"localizedValue": name, "value": value},
        "unit": "Count",
    }
