"""`platform.credential` -> the azure-identity credential that signs in."""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING, Any

from azure.core.credentials import AccessToken, TokenCredential

if TYPE_CHECKING:
    from tasks.config import AzurePlatformConfig

_CLI_SECONDS = 30
# A token that ends sooner is asked for anew.
_LEAST_SECONDS_LEFT = 300


class RememberedCredential:
    """A credential in one tenant, whose tokens are used until they end.

    The Azure CLI starts a process for each token, and each of the SDK's fifteen clients asks for its own.
    """

    def __init__(self, credential: TokenCredential, tenant_id: str = "") -> None:
        self.inner = credential
        self._tenant: dict[str, Any] = {"tenant_id": tenant_id} if tenant_id else {}
        self._tokens: dict[tuple[str, ...], AccessToken] = {}
        self._lock = threading.Lock()

    def get_token(self, *scopes: str, **options: Any) -> AccessToken:
        """A token for the scopes; one that was refused, and so is asked for with claims, is always new."""
        options = {**self._tenant, **{name: value for name, value in options.items() if value}}
        with self._lock:
            known = self._tokens.get(scopes)
            if known is None or options.get("claims") or known.expires_on - time.time() < _LEAST_SECONDS_LEFT:
                known = self._tokens[scopes] = self.inner.get_token(*scopes, **options)
            return known


def open_credential(config: AzurePlatformConfig, authority: str) -> RememberedCredential:
    """Return the credential; nothing is sent and nobody is asked until a token is needed.

    Args:
        authority: the address that signs in, of the cloud in use.
    """
    return RememberedCredential(_choose(config, authority), config.tenant_id)


def _choose(config: AzurePlatformConfig, authority: str) -> TokenCredential:
    import azure.identity as identity

    tenant: dict[str, Any] = {"tenant_id": config.tenant_id} if config.tenant_id else {}
    client: dict[str, Any] = {"client_id": config.identity.client_id} if config.identity.client_id else {}
    allowed: dict[str, Any] = {"additionally_allowed_tenants": [config.tenant_id]} if tenant else {}
    match config.credential:
        case "cli":
            return identity.AzureCliCredential(process_timeout=_CLI_SECONDS, **tenant)
        case "device-code":
            return identity.DeviceCodeCredential(authority=authority, prompt_callback=_show_code, **tenant)
        case "managed-identity":
            return identity.ManagedIdentityCredential(**client)
        case "environment":
            return identity.EnvironmentCredential(authority=authority, **allowed)
        case "workload-identity":
            return identity.WorkloadIdentityCredential(authority=authority, **client, **tenant)
        case _:
            managed = {"managed_identity_client_id": config.identity.client_id} if client else {}
            return identity.DefaultAzureCredential(
                authority=authority, process_timeout=_CLI_SECONDS, **managed, **allowed
            )


def _show_code(address: str, code: str, expires_on: Any) -> None:
    """Ask the person; on stderr, since stdout may be a document."""
    print(f"To sign in, open {address} and enter {code}", file=sys.stderr, flush=True)
