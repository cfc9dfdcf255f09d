"""The hub's token on Azure: read from the key vault as the job's managed identity, kept in this process alone."""

from __future__ import annotations

import logging
import os
import re
from typing import Any

from trainer.errors import TrainerError

log = logging.getLogger(__name__)

SECRET_VARIABLE = "PHIFLOW_HUB_TOKEN_SECRET"
# Which identity the job has: as the deployment or the cluster says it.
_CLIENT_ID_VARIABLES = ("UAI_CLIENT_ID", "DEFAULT_IDENTITY_CLIENT_ID", "AZURE_CLIENT_ID")
_SECRET = re.compile(r"https://(?P<vault>[a-z0-9-]+)\.(?P<cloud>[a-z0-9.-]+)(?P<port>:\d+)?/secrets/(?P<name>[\w-]+)")
_SECONDS = 30


def provide_hub_token() -> None:
    """Set HF_TOKEN from the secret that PHIFLOW_HUB_TOKEN_SECRET names; nothing when it names none.

    Raises:
        TrainerError: the secret cannot be read; says as whom, and what to give them.
    """
    url = os.environ.get(SECRET_VARIABLE, "").strip()
    if not url:
        return
    known = _SECRET.match(url)
    if known is None:
        raise TrainerError(
            f"{SECRET_VARIABLE} is {url!r}, which is not the address of a key vault's secret.",
            "It looks like https://VAULT.vault.azure.net/secrets/NAME.",
            "configuration",
        )
    what = f"secret {known['name']} of key vault {known['vault']}"
    token = _read(url, f"https://{known['cloud']}/.default", what)
    os.environ["HF_TOKEN"] = token
    log.info("Read the hub's token from %s", what)


def _read(url: str, scope: str, what: str) -> str:
    import requests

    client_id = next((os.environ[name] for name in _CLIENT_ID_VARIABLES if os.environ.get(name)), None)
    headers = {"Authorization": f"Bearer {_bearer(scope, client_id, what)}"}
    try:
        # A redirect would take the bearer token elsewhere.
        response = requests.get(
            url, params={"api-version": "7.4"}, headers=headers, timeout=_SECONDS, allow_redirects=False
        )
        value = response.json().get("value") if response.ok else None
    except (requests.RequestException, ValueError) as error:
        raise _failed(f"The {what} was not read: {type(error).__name__}.", "Check the network to the vault.") from error
    if response.status_code in (401, 403):
        raise _failed(
            f"The job's managed identity{f' {client_id}' if client_id else ''} may not read {what}.",
            "Give it the role Key Vault Secrets User on the vault.",
        )
    if response.status_code == 404:
        raise _failed(f"There is no {what}.", "Check platform.hub_token_secret.")
    if not isinstance(value, str) or not value:
        raise _failed(f"The {what} was not read: the vault answered {response.status_code}.", "Try again later.")
    return value


def _bearer(scope: str, client_id: str | None, what: str) -> str:
    try:
        from azure.core.exceptions import AzureError
        from azure.identity import DefaultAzureCredential
    except ImportError as error:
        raise _failed(
            f"The {what} cannot be read: azure-identity is not installed.",
            "Run in the environment of environments/training/azure.txt, or set HF_TOKEN.",
        ) from error
    credential: Any = DefaultAzureCredential(managed_identity_client_id=client_id)
    try:
        return str(credential.get_token(scope).token)
    except AzureError as error:
        raise _failed(
            f"The {what} cannot be read: this job has no identity that Azure accepts.",
            "Give the cluster a managed identity, or run `az login`.",
        ) from error


def _failed(message: str, fix: str) -> TrainerError:
    return TrainerError(message, fix, "configuration")
