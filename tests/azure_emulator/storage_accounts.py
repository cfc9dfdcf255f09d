"""The storage accounts of one emulator: all are served by one Azurite, and have the same key."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.azurite import Account, Azurite, open_client
from tests.azure_emulator.resource_types import STORAGE

if TYPE_CHECKING:
    from azure.storage.blob import BlobServiceClient

    from tests.azure_emulator.server import Emulator


class StorageAccounts:
    """Reaches the accounts that there are; where none is named, the workspace's.

    Attributes:
        port: where blobs are.
    """

    def __init__(self, emulator: Emulator, port: int, key: str) -> None:
        self.port = port
        self._emulator = emulator
        self._key = key
        self._azurite = Azurite(emulator.state / "azurite", port, key, emulator.certificates)
        self._clients: dict[str, BlobServiceClient] = {}

    def serve(self) -> None:
        """Have the accounts reached that are resources now, and no others."""
        found = self._emulator.groups.resources()
        self._azurite.serve([one["name"] for one in found if one["type"] == STORAGE])

    def stop(self) -> None:
        """End what serves them, in order."""
        self._azurite.stop()

    def account(self, name: str = "") -> Account:
        """An account.

        Raises:
            ServiceError: 404, none is named, and there is no workspace.
        """
        name = name or self._emulator.workspace_property("storageAccount").rsplit("/", 1)[-1]
        return Account(name, self._key, self.port, str(self._emulator.certificates.authorities))

    def client(self, name: str = "") -> BlobServiceClient:
        """An account, opened with its key."""
        account = self.account(name)
        if account.name not in self._clients:
            self._clients[account.name] = open_client(account.to_json())
        return self._clients[account.name]

    def empty(self, name: str) -> None:
        """Delete what is in an account."""
        for container in self.client(name).list_containers():
            self.client(name).delete_container(container.name)

    def ensure_container(self, container: str, name: str = "") -> None:
        """Have a container in an account."""
        client = self.client(name).get_container_client(container)
        if not client.exists():
            client.create_container()

    def open_upload(self) -> dict[str, Any]:
        """A new container of the workspace's account, and a URL with which it can be written."""
        account, container = self.account(), f"{uuid.uuid4().hex[:8]}-{uuid.uuid4()}"
        self.ensure_container(container)
        return {
            "pendingUploadId": str(uuid.uuid4()),
            "pendingUploadType": "TemporaryBlobReference",
            "blobReferenceForConsumption": {
                "blobUri": f"{account.url}/{container}",
                "storageAccountArmId": self._emulator.workspace_property("storageAccount"),
                "credential": {"credentialType": "SAS", "sasUri": account.sign_container(container)},
            },
        }
