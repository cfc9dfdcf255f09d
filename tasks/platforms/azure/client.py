"""One workspace: who signs in, the SDK's client, our own HTTP, and where people look.

Proxies and a company's CA come from the variables that requests and the SDK read alike: HTTPS_PROXY,
NO_PROXY, REQUESTS_CA_BUNDLE. Other clouds, private ones too, come from the SDK's own variables:
AZUREML_CURRENT_CLOUD and ARM_CLOUD_METADATA_URL.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import requests
from azure.core.credentials import TokenCredential

from tasks.platforms.azure import quiet
from tasks.platforms.azure.credentials import open_credential
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import NotFoundError, PhiflowError

if TYPE_CHECKING:
    from azure.ai.ml import MLClient

    from tasks.config import AzurePlatformConfig
    from tasks.platforms.azure.storage import Storage

Scope = Literal["arm", "ml", "vault", "none"]
WORKSPACE_API = "2024-10-01-preview"
_ATTEMPTS = 5
_LONGEST_WAIT_SECONDS = 60.0
_WORTH_A_RETRY = (408, 429, 500, 502, 503, 504)
_VAULTS = {
    "AzureCloud": "vault.azure.net",
    "AzureChinaCloud": "vault.azure.cn",
    "AzureUSGovernment": "vault.usgovcloudapi.net",
}


class Workspace:
    """An Azure Machine Learning workspace; opening one sends nothing, and what is read is read once."""

    def __init__(self, config: AzurePlatformConfig) -> None:
        quiet.hush()
        self.config = config
        self.name = config.workspace
        self.resource_id = (
            f"/subscriptions/{config.subscription_id}/resourceGroups/{config.resource_group}"
            f"/providers/Microsoft.MachineLearningServices/workspaces/{config.workspace}"
        )

    @functools.cached_property
    def ml(self) -> MLClient:
        """The SDK's client of this workspace; without its progress bars and telemetry."""
        from azure.ai.ml import MLClient

        self._cloud  # noqa: B018  (known to the SDK before it looks it up, many times, over the network)
        with translated(f"Workspace {self.name}"):
            client = MLClient(
                self.credential,
                self.config.subscription_id,
                self.config.resource_group,
                self.config.workspace,
                show_progress=False,
                enable_telemetry=False,
            )
        quiet.hush()  # importing the SDK's parts gave their loggers levels and handlers again
        return client

    @functools.cached_property
    def credential(self) -> TokenCredential:
        """Who signs in, as `platform.credential` says."""
        return open_credential(self.config, self._cloud["active_directory"])

    @functools.cached_property
    def storage(self) -> Storage:
        """The workspace's default datastore."""
        from tasks.platforms.azure.storage import Storage

        return Storage(self)

    @functools.cached_property
    def resource_manager(self) -> str:
        """Azure Resource Manager of the cloud in use, without a slash at the end."""
        return self._cloud["resource_manager"].rstrip("/")

    @functools.cached_property
    def properties(self) -> dict[str, Any]:
        """The workspace resource as the service tells it, with `location` and `properties`."""
        what = f"Workspace {self.name} in resource group {self.config.resource_group}"
        try:
            response = self.send("GET", self.resource_id, params={"api-version": WORKSPACE_API}, what=what)
        except NotFoundError as error:
            raise NotFoundError(error.message, fix="Make it with phiflow up, or name another.") from error
        details: dict[str, Any] = response.json()
        return details

    @property
    def location(self) -> str:
        """The region that compute is made in."""
        return self.config.location or str(self.properties["location"])

    @property
    def mlflow_tracking_uri(self) -> str:
        """Where MLflow of this workspace listens; `azureml://...`, for azureml-mlflow."""
        return str(self.properties["properties"].get("mlFlowTrackingUri", ""))

    @property
    def vault_url(self) -> str:
        """The workspace's key vault."""
        name = str(self.properties["properties"]["keyVault"]).rpartition("/")[2]
        return f"https://{name}.{self._vaults}"

    @functools.cached_property
    def _vaults(self) -> str:
        """The domain of the cloud's key vaults; the SDK leaves it out of what it reads from a cloud's metadata."""
        name = self._cloud["name"]
        if name in _VAULTS:
            return _VAULTS[name]
        with translated("The cloud's metadata"):
            response = self._session.get(os.environ["ARM_CLOUD_METADATA_URL"], timeout=30)
            response.raise_for_status()
        found = response.json()
        clouds = found if isinstance(found, list) else [found]
        return str(next(cloud["suffixes"]["keyVaultDns"] for cloud in clouds if cloud["name"] == name))

    def studio_url(self, path: str = "") -> str:
        """A page of the studio about this workspace, as in `runs/<job>`."""
        tenant = f"&tid={self.config.tenant_id}" if self.config.tenant_id else ""
        return f"{self._cloud['aml_resource_id'].rstrip('/')}/{path.strip('/')}?wsid={self.resource_id}{tenant}"

    def token(self, scope: Scope) -> str:
        """A bearer token for Resource Manager, the workspace's data plane, or a key vault."""
        resources = {
            "arm": self.resource_manager,
            "ml": self._cloud["aml_resource_id"].rstrip("/"),
        }
        if scope == "vault":
            resources["vault"] = f"https://{self._vaults.partition(':')[0]}"
        with translated(f"Workspace {self.name}"):
            return self.credential.get_token(f"{resources[scope]}/.default").token

    def send(
        self,
        method: str,
        url: str,
        *,
        params: Mapping[str, Any] | None = None,
        json: Any = None,
        scope: Scope = "arm",
        headers: Mapping[str, str] | None = None,
        timeout: float = 60,
        what: str = "The workspace",
        idempotent: bool | None = None,
    ) -> requests.Response:
        """Send one request of our own, and return the answer when it is a success.

        Args:
            url: absolute, or a path below Resource Manager.
            scope: whose bearer token goes along.
            what: names the thing in errors, as in "Job phi-123".
            idempotent: whether it may be sent again after a fault; by the method when not given.
        Raises:
            PhiflowError: as `translate` makes of it.
        """
        absolute = url if "://" in url else f"{self.resource_manager}/{url.lstrip('/')}"
        again = method.upper() != "POST" if idempotent is None else idempotent
        for attempt in range(_ATTEMPTS):
            sent = dict(headers or {})
            if scope != "none":
                sent["Authorization"] = f"Bearer {self.token(scope)}"
            last = attempt == _ATTEMPTS - 1 or not again
            with translated(what):
                try:
                    response = self._session.request(
                        method, absolute, params=params, json=json, headers=sent, timeout=timeout
                    )
                except (requests.ConnectionError, requests.Timeout):
                    if last:
                        raise
                    time.sleep(_wait_seconds(None, attempt))
                    continue
                if response.status_code not in _WORTH_A_RETRY or last:
                    response.raise_for_status()
                    return response
            time.sleep(_wait_seconds(response, attempt))
        raise AssertionError("the last attempt returns or raises")

    @functools.cached_property
    def _session(self) -> requests.Session:
        return requests.Session()

    @functools.cached_property
    def _cloud(self) -> dict[str, str]:
        """The addresses of the cloud in use, with its `name`."""
        try:
            with translated("The cloud's metadata"):
                from azure.ai.ml import _azure_environments as clouds  # reads the cloud already when it is imported

                name = clouds._get_default_cloud_name()
                if name not in _VAULTS:  # a private cloud: as it is now, not as an earlier client found it
                    clouds._environments.pop(name, None)
                details = dict(clouds._get_cloud_details(name))
        except PhiflowError as error:
            error.fix = error.fix or "Check the variables AZUREML_CURRENT_CLOUD and ARM_CLOUD_METADATA_URL."
            raise
        # The SDK forgets a cloud it read from ARM_CLOUD_METADATA_URL and reads it again for every client.
        clouds._environments[name] = details
        return {
            **details,
            "name": name,
            "active_directory": os.environ.get("AZURE_AUTHORITY_HOST", "") or details["active_directory"],
        }


def _wait_seconds(response: requests.Response | None, attempt: int) -> float:
    """As long as the service asks for; else longer each time."""
    if response is not None:
        for header, unit in (("retry-after-ms", 0.001), ("x-ms-retry-after-ms", 0.001), ("Retry-After", 1.0)):
            value = response.headers.get(header, "")
            if value.isdigit():
                return min(int(value) * unit, _LONGEST_WAIT_SECONDS)
    return float(0.5 * 2**attempt)
