"""`platform.credential` -> the azure-identity credential that signs in."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from azure.core.credentials import TokenCredential

if TYPE_CHECKING:
    from tasks.config import AzurePlatformConfig


def open_credential(config: AzurePlatformConfig, authority: str) -> TokenCredential:
    """Return the credential; nothing is sent and nobody is asked until a token is needed.

    Args:
        authority: the address that signs in, of the cloud in use.
    """
    import azure.identity as identity

    tenant: dict[str, Any] = {"tenant_id": config.tenant_id} if config.tenant_id else {}
    client: dict[str, Any] = {"client_id": config.identity.client_id} if config.identity.client_id else {}
    match config.credential:
        case "cli":
            return identity.AzureCliCredential(process_timeout=30, **tenant)
        case "device-code":
            return identity.DeviceCodeCredential(authority=authority, prompt_callback=_show_code, **tenant)
        case "managed-identity":
            return identity.ManagedIdentityCredential(**client)
        case "environment":
            return identity.EnvironmentCredential(authority=authority)
        case "workload-identity":
            return identity.WorkloadIdentityCredential(authority=authority, **client, **tenant)
        case _:
            return identity.DefaultAzureCredential(
                authority=authority,
                process_timeout=30,
                **({"managed_identity_client_id": config.identity.client_id} if client else {}),
                # The default chain knows no tenant as a whole; its parts that ask one do.
                **(
                    {"interactive_browser_tenant_id": config.tenant_id, "workload_identity_tenant_id": config.tenant_id}
                    if tenant
                    else {}
                ),
                additionally_allowed_tenants=[config.tenant_id] if tenant else [],
            )


def _show_code(address: str, code: str, expires_on: Any) -> None:
    """Ask the person; on stderr, since stdout may be a document."""
    print(f"To sign in, open {address} and enter {code}", file=sys.stderr, flush=True)
