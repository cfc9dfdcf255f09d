"""What is in a workspace, read when it is first asked for: what phiflow made, by its tags, and what of others uses it.

Raw resources, since the SDK's entities leave out when a thing was made.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from tasks.platforms.azure.resources import list_all, state_of
from tasks.platforms.retention import parse_time

if TYPE_CHECKING:
    from tasks.platforms.azure.client import Workspace

_ENDED_JOBS = ("Completed", "Failed", "Canceled")
_JOBS_API = "2024-01-01-preview"
_RUN_LABEL = "phiflow.of."
_ASSET = re.compile(r"(?:^azureml:|/(?:models|environments)/)([\w.-]+)(?::|/versions/)([\w.-]+)$")
Asset = tuple[str, str]


class Inventory:
    """One look at a workspace; make another to look again."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    @functools.cached_property
    def endpoints(self) -> list[dict[str, Any]]:
        """All online endpoints, anybody's."""
        return list(list_all(self._workspace, "onlineEndpoints", "The workspace's endpoints"))

    @functools.cached_property
    def deployments(self) -> dict[str, list[dict[str, Any]]]:
        """All deployments by their endpoint, the oldest first; without those that are being deleted."""
        found = {}
        for endpoint in self.endpoints:
            path, what = f"onlineEndpoints/{endpoint['name']}/deployments", f"Endpoint {endpoint['name']}"
            there = [one for one in list_all(self._workspace, path, what) if state_of(one) != "Deleting"]
            found[str(endpoint["name"])] = sorted(there, key=made_at)
        return found

    @functools.cached_property
    def clusters(self) -> list[dict[str, Any]]:
        """All compute, anybody's."""
        return list(list_all(self._workspace, "computes", "The workspace's compute"))

    @functools.cached_property
    def jobs(self) -> list[dict[str, Any]]:
        """phiflow's jobs in any state, the newest first."""
        return [job for job in self.all_jobs if "phiflow.key" in tags_of(job)]

    @functools.cached_property
    def live_jobs(self) -> list[dict[str, Any]]:
        """Jobs that have not ended, anybody's."""
        return [job for job in self.all_jobs if is_live(job)]

    @functools.cached_property
    def all_jobs(self) -> list[dict[str, Any]]:
        """Jobs in any state, anybody's, the newest first."""
        found = list_all(self._workspace, "jobs", "The workspace's jobs", _JOBS_API, listViewType="All")
        return sorted(found, key=made_at, reverse=True)

    @functools.cached_property
    def models(self) -> list[dict[str, Any]]:
        """phiflow's model versions, the newest first; without the archived ones."""
        return [one for one in self._all_models if is_ours(one)]

    @functools.cached_property
    def environments(self) -> list[dict[str, Any]]:
        """phiflow's environment versions, the newest first; without the archived ones."""
        return [one for one in self._versions("environments", "phiflow-") if is_ours(one)]

    @functools.cached_property
    def strangers(self) -> list[str]:
        """What others made that would go with the workspace, as in "endpoint support"; job records do not count."""
        data = list_all(self._workspace, "data", "The workspace's data assets")
        return [
            *(f"endpoint {one['name']}" for one in self.endpoints if not is_ours(one)),
            *(f"compute {one['name']}" for one in self.clusters if not is_ours(one)),
            *sorted({f"model {asset_id(one)[0]}" for one in self._all_models if not is_ours(one)}),
            *(f"data {one['name']}" for one in data),
        ]

    @functools.cached_property
    def _all_models(self) -> list[dict[str, Any]]:
        return self._versions("models")

    def _versions(self, kind: str, prefix: str = "") -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for container in list_all(self._workspace, kind, f"The workspace's {kind}"):
            if str(container["name"]).startswith(prefix):
                path = f"{kind}/{container['name']}/versions"
                found += list_all(self._workspace, path, f"The workspace's {kind}")
        return sorted(found, key=made_at, reverse=True)

    def deployed(self, field: str) -> set[Asset]:
        """The models, or environments, of all deployments: field `model` or `environmentId`."""
        everything = (one for deployments in self.deployments.values() for one in deployments)
        return {asset for one in everything if (asset := asset_of(str(one["properties"].get(field) or "")))}

    def in_live_jobs(self) -> set[Asset]:
        """The models and environments that jobs use which have not ended."""
        used = set()
        for job in self.live_jobs:
            properties = job["properties"]
            inputs = (given.get("uri") for given in (properties.get("inputs") or {}).values())
            texts = (str(text or "") for text in (properties.get("environmentId"), *inputs))
            used |= {asset for text in texts if (asset := asset_of(text))}
        return used


def tags_of(resource: Mapping[str, Any]) -> dict[str, str]:
    """The tags, which jobs and assets have among their properties."""
    return resource.get("tags") or resource["properties"].get("tags") or {}


def is_ours(resource: Mapping[str, Any]) -> bool:
    """Whether phiflow made it."""
    return tags_of(resource).get("phiflow") == "1"


def is_live(job: Mapping[str, Any]) -> bool:
    """Whether a job has not ended."""
    return str(job["properties"].get("status") or "") not in _ENDED_JOBS


def made_at(resource: Mapping[str, Any]) -> datetime:
    """When it was made, as the service says; of compute it says so elsewhere."""
    created = (resource.get("systemData") or {}).get("createdAt") or resource["properties"].get("createdOn")
    return parse_time(str(created)) if created else datetime.now().astimezone()


def changed_at(resource: Mapping[str, Any]) -> datetime:
    """When it was last changed."""
    changed = (resource.get("systemData") or {}).get("lastModifiedAt") or resource["properties"].get("modifiedOn")
    return parse_time(str(changed)) if changed else made_at(resource)


def asset_of(reference: str) -> Asset | None:
    """Name and version that a reference names, as a resource id or in short; None for anything else."""
    found = _ASSET.search(reference)
    return (found[1], found[2]) if found else None


def asset_id(version: Mapping[str, Any]) -> Asset:
    """Name and version of a listed version."""
    name, _, number = str(version["id"]).rpartition("/versions/")
    return name.rpartition("/")[2], number


def run_ids(job: Mapping[str, Any]) -> tuple[str, ...]:
    """The runs that want a job; its configuration's name is labelled alike, and is no run."""
    labels = (key.removeprefix(_RUN_LABEL) for key in tags_of(job) if key.startswith(_RUN_LABEL))
    return tuple(sorted(label for label in labels if _is_uuid(label)))


def compute_of(job: Mapping[str, Any]) -> str:
    """The name of the compute that a job is sent to."""
    return str(job["properties"].get("computeId") or "").rpartition("/")[2]


def machines_of(deployment: Mapping[str, Any]) -> tuple[str, ...]:
    """The size of each machine of a deployment."""
    count = int((deployment.get("sku") or {}).get("capacity") or 1)
    return (str(deployment["properties"].get("instanceType") or ""),) * count


def traffic_of(endpoint: Mapping[str, Any]) -> dict[str, int]:
    """Percent by deployment, of those that take any."""
    return {name: int(percent) for name, percent in (endpoint["properties"].get("traffic") or {}).items() if percent}


def kept_nodes(cluster: dict[str, Any]) -> int:
    """The nodes that a cluster keeps when nothing runs; 0 of what is no cluster."""
    inner = cluster["properties"].get("properties") or {}
    return int((inner.get("scaleSettings") or {}).get("minNodeCount") or 0)


def size_of(cluster: dict[str, Any]) -> str:
    """The size of its machines."""
    return str((cluster["properties"].get("properties") or {}).get("vmSize") or "")


def job_machines(job: dict[str, Any], inventory: Inventory) -> tuple[str, ...]:
    """The size of each node that a job uses."""
    size = next((size_of(one) for one in inventory.clusters if one["name"] == compute_of(job)), "")
    return (size,) * int((job["properties"].get("resources") or {}).get("instanceCount") or 1)


def cluster_machines(cluster: dict[str, Any], inventory: Inventory) -> tuple[str, ...]:
    """The size of each node that a cluster has or keeps beside those that its jobs use."""
    now = int((cluster["properties"].get("properties") or {}).get("currentNodeCount") or 0)
    jobs = [job for job in inventory.live_jobs if compute_of(job) == cluster["name"]]
    busy = sum(len(job_machines(job, inventory)) for job in jobs)
    return (size_of(cluster),) * max(max(now, kept_nodes(cluster)) - busy, 0)


def cluster_in_use(cluster: dict[str, Any], inventory: Inventory) -> bool:
    """Whether a job, anybody's, runs on it or waits for it, or it is being changed."""
    counts = (cluster["properties"].get("properties") or {}).get("nodeStateCounts") or {}
    if counts.get("runningNodeCount") or cluster["properties"].get("provisioningState") != "Succeeded":
        return True
    return any(compute_of(job) == cluster["name"] for job in inventory.live_jobs)


def data_in_use(inventory: Inventory, leaving: Iterable[str] = ()) -> set[str]:
    """The digests of data that a registered model, or a live job, was made from.

    Args:
        leaving: `name:version` of models that do not count.
    """
    gone = set(leaving)
    models = [one for one in inventory.models if ":".join(asset_id(one)) not in gone]
    jobs = [job for job in inventory.jobs if is_live(job)]
    return {tags_of(one).get("phiflow.data", "") for one in (*models, *jobs)}


def _is_uuid(text: str) -> bool:
    try:
        return str(UUID(text)) == text.lower()
    except ValueError:
        return False
