"""Files and folders that lie in Azure already: `azureml://` and `abfss://` addresses, opened as blobs."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tasks.platforms.azure.storage import DATASTORE, Storage
from tasks.platforms.errors import ConfigError

if TYPE_CHECKING:
    from azure.storage.blob import ContainerClient

    from tasks.config import DataConfig, SourceConfig
    from tasks.platforms.azure.client import Workspace

_DATASTORE = re.compile(
    r"azureml://(?:subscriptions/(?P<subscription>[^/]+)/resource[gG]roups/(?P<group>[^/]+)/"
    r"(?:providers/Microsoft\.MachineLearningServices/)?workspaces/(?P<workspace>[^/]+)/)?"
    r"datastores/(?P<datastore>[^/]+)/paths/(?P<path>.+)"
)
_ABFSS = re.compile(
    r"abfss?://(?P<container>[^@/]+)@(?P<account>[a-z0-9]+)\.dfs\.(?P<suffix>[a-z0-9.:-]+)/(?P<path>.+)"
)
_REGISTRY = re.compile(r"azureml://registries/[^/]+/models/[^/]+/versions/[^/]+")
_WORKSPACE_MODEL = re.compile(r"azureml:(?P<name>[^:/@]+):(?P<version>[^:/@]+)")


@dataclass(frozen=True, slots=True)
class Remote:
    """A path in a container, and that container."""

    storage: Storage
    path: str

    def versions(self) -> dict[str, str]:
        """Each blob at the path or below it, with what changes when its content does."""
        found = self.storage.versions(self.path)
        return {name: v for name, v in found.items() if name == self.path or name.startswith(f"{self.path}/")}


def is_remote(address: str) -> bool:
    """Whether it lies in Azure: neither a file here nor an id on the hub."""
    return address.startswith(("azureml:", "abfss://", "abfs://"))


def is_elsewhere(source: SourceConfig) -> bool:
    """Whether a source of data lies in Azure."""
    return is_remote(source.source)


def data_here(data: DataConfig) -> DataConfig:
    """The data without the sources that lie in Azure."""
    return data.with_sources(lambda source: None if is_elsewhere(source) else source)


def data_elsewhere(data: DataConfig) -> list[tuple[str, str]]:
    """(key of the configuration, address) of each source that lies in Azure."""
    named = [("data.source", source) for source in data.sources]
    named += [("data.test_source", data.tests)] if data.tests else []
    return [(key, source.source) for key, source in named if is_elsewhere(source)]


def open_remote(workspace: Workspace, address: str, key: str) -> Remote:
    """Open what an address names; nothing is sent yet.

    Args:
        key: the configuration's key that holds the address, for the error.
    Raises:
        ConfigError: not an address of a file or folder, or one of another workspace.
    """
    if found := _DATASTORE.fullmatch(address):
        config = workspace.config
        here = (config.subscription_id, config.resource_group, config.workspace)
        there = (found["subscription"], found["group"], found["workspace"])
        if found["workspace"] and [part.lower() for part in there] != [part.lower() for part in here]:
            raise ConfigError(
                f"{key} '{address}' is in workspace {found['workspace']}, and this run is in {config.workspace}.",
                fix="Name it by its storage, as in abfss://container@account.dfs.core.windows.net/path.",
            )
        is_default = found["datastore"] == DATASTORE
        storage = workspace.storage if is_default else Storage(workspace, found["datastore"])
        return Remote(storage, found["path"].strip("/"))
    if found := _ABFSS.fullmatch(address):
        account, container = f"https://{found['account']}.blob.{found['suffix']}", found["container"]

        def open_container() -> ContainerClient:
            from azure.storage.blob import ContainerClient

            return ContainerClient(account, container, credential=workspace.credential)

        return Remote(Storage(workspace, f"{container} of {account}", open_container), found["path"].strip("/"))
    raise ConfigError(
        f"{key} '{address}' is no address of a file or folder in Azure.",
        fix="Write azureml://datastores/NAME/paths/PATH or abfss://CONTAINER@ACCOUNT.dfs.core.windows.net/PATH.",
    )


def registered_model(address: str) -> bool:
    """Whether it names one version of a registered model, of a registry or of the workspace.

    Raises:
        ConfigError: it names a registered model without a version, which would be another model tomorrow.
    """
    if _REGISTRY.fullmatch(address) or _WORKSPACE_MODEL.fullmatch(address):
        return True
    if address.startswith("azureml://registries/") or (address.startswith("azureml:") and "//" not in address):
        raise ConfigError(
            f"model.base '{address}' names no version, so it could be another model tomorrow.",
            fix="Write azureml://registries/REGISTRY/models/NAME/versions/VERSION, or azureml:NAME:VERSION.",
        )
    return False


def workspace_model(address: str) -> tuple[str, str] | None:
    """Name and version of a model that is registered in the workspace, or None for any other address."""
    found = _WORKSPACE_MODEL.fullmatch(address)
    return (found["name"], found["version"]) if found else None
