"""What the checks of a configuration look at together: each thing is asked for once, when it is first needed."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tasks.platforms.azure.quota.sizes import Size, read_sizes
from tasks.platforms.errors import ConfigError, NotFoundError

if TYPE_CHECKING:
    from tasks.config import AzurePlatformConfig, PipelineConfig
    from tasks.platforms.azure.client import Workspace

Purpose = Literal["run", "up"]
Part = Literal["all", "owner", "engineer"]
SUBSCRIPTION_API = "2022-12-01"
_GROUP_API = "2021-04-01"


@dataclass(eq=False)
class Facts:
    """One examination of one configuration.

    Args:
        purpose: what shall be possible afterwards.
        part: of `phiflow up`, whose rights are looked at.
        tenant: the subscription's, once the network was looked at.
        claims: of the signed-in caller, once the login was looked at.
        permissions: of the caller by scope, as far as they were asked for.
    """

    config: PipelineConfig
    workspace: Workspace
    purpose: Purpose = "run"
    part: Part = "all"
    tenant: str = ""
    claims: dict[str, Any] = field(default_factory=dict)
    permissions: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    _sizes: dict[str, dict[str, Size]] = field(default_factory=dict)

    @property
    def place(self) -> AzurePlatformConfig:
        return self.workspace.config

    @property
    def subscription_id(self) -> str:
        """The subscription's resource id."""
        return f"/subscriptions/{self.place.subscription_id}"

    @property
    def group_id(self) -> str:
        return f"{self.subscription_id}/resourceGroups/{self.place.resource_group}"

    @functools.cached_property
    def subscription(self) -> dict[str, Any]:
        """Its state, tenant and offer."""
        what = f"Subscription {self.place.subscription_id}"
        return self.get(self.subscription_id, SUBSCRIPTION_API, what)

    @functools.cached_property
    def group(self) -> dict[str, Any] | None:
        """The resource group, or None."""
        return self.find(self.group_id, _GROUP_API, f"Resource group {self.place.resource_group}")

    @functools.cached_property
    def existing_workspace(self) -> dict[str, Any] | None:
        """The workspace, or None."""
        try:
            return self.workspace.properties
        except NotFoundError:
            return None

    @property
    def has_workspace(self) -> bool:
        return self.existing_workspace is not None

    @property
    def makes_workspace(self) -> bool:
        """Whether what is examined is, or has to be, `phiflow up`."""
        return self.purpose == "up" or not self.has_workspace

    @functools.cached_property
    def regions(self) -> dict[str, tuple[str, ...]]:
        """Where things happen: the region of the cluster, and that of the endpoint, which is the workspace's.

        Raises:
            ConfigError: neither the configuration nor anything that exists says where.
        """
        there = self.existing_workspace or self.group or {}
        serving = str(there.get("location") or self.place.location)
        training = self.place.location or serving
        if not training:
            message = f"platform.location is empty, and workspace {self.workspace.name} does not exist"
            raise ConfigError(f"{message}.", fix="--set platform.location=westeurope, or another region.")
        if not self.has_workspace:
            serving = training
        if training == serving:
            return {training: ("training", "serving")}
        return {training: ("training",), serving: ("serving",)}

    def sizes(self, location: str) -> dict[str, Size]:
        """The sizes of a region, by name in lower case."""
        if location not in self._sizes:
            self._sizes[location] = read_sizes(self.workspace, location)
        return self._sizes[location]

    def get(self, path: str, version: str, what: str, **params: str) -> dict[str, Any]:
        """What Resource Manager says of a path."""
        answer = self.workspace.send("GET", path, params={"api-version": version, **params}, what=what)
        found: dict[str, Any] = answer.json()
        return found

    def find(self, path: str, version: str, what: str) -> dict[str, Any] | None:
        """What Resource Manager says of a path, or None when there is nothing."""
        try:
            return self.get(path, version, what)
        except NotFoundError:
            return None

    def pages(self, path: str, version: str, what: str, **params: str) -> Iterator[dict[str, Any]]:
        """The entries of a list, page by page."""
        page = self.get(path, version, what, **params)
        yield from page.get("value") or ()
        while url := str(page.get("nextLink") or ""):
            page = self.workspace.send("GET", url, what=what).json()
            yield from page.get("value") or ()
