"""The cloud's metadata: what the SDK reads from ARM_CLOUD_METADATA_URL to find Resource Manager and storage."""

from __future__ import annotations

from typing import Any

from tests.azure_emulator.names import PORTAL, STORAGE_ENDPOINT, SUFFIX

PATH = "/metadata/endpoints"


def cloud_metadata(name: str, url: str, storage_port: int) -> list[dict[str, Any]]:
    """The document of Resource Manager's version 2022-09-01, as far as clients read it.

    Args:
        name: the cloud's.
        url: the emulator's address.
        storage_port: blobs are at `<account>.blob.<storage>`, and the port is part of that here.
    """
    return [
        {
            "name": name,
            "portal": PORTAL,
            "resourceManager": f"{url}/",
            "authentication": {
                "loginEndpoint": f"{url}/",
                "audiences": [url],
                "tenant": "common",
                "identityProvider": "AAD",
            },
            "suffixes": {
                "storage": f"{STORAGE_ENDPOINT}:{storage_port}",
                "keyVaultDns": "vault.azure.net",
                "acrLoginServer": f"acr.{SUFFIX}",
            },
        }
    ]
