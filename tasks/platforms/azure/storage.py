"""Blobs in the workspace's default datastore: everything phiflow keeps in a workspace is below `phiflow/`."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from azure.core.exceptions import (
    HttpResponseError,
    ResourceExistsError,
    ResourceModifiedError,
    ResourceNotFoundError,
)

from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import ConfigError, ConflictError, NotFoundError, PermissionDeniedError, PhiflowError

if TYPE_CHECKING:
    from azure.storage.blob import BlobClient, BlobLeaseClient, ContainerClient

    from tasks.platforms.azure.client import Workspace

_log = logging.getLogger(__name__)
DATASTORE = "workspaceblobstore"
_PREFIX = f"azureml://datastores/{DATASTORE}/paths/"
# The service's longest lease that ends by itself; renewed three times in each.
LEASE_SECONDS = 30
RENEW_SECONDS = LEASE_SECONDS / 3
_LEASE_POLL_SECONDS = 0.5
_CHANGE_ATTEMPTS = 20
_KEYS_REFUSED = "KeyBasedAuthenticationNotPermitted"


class StoredBlob(NamedTuple):
    """One blob as a listing tells it."""

    name: str
    num_bytes: int
    modified: datetime


class Storage:
    """One container: the default datastore's of the workspace, or another that data or a model is read from."""

    def __init__(
        self,
        workspace: Workspace,
        datastore: str = DATASTORE,
        open_container: Callable[[], ContainerClient] | None = None,
    ) -> None:
        self._workspace = workspace
        self._datastore = datastore
        self._open_container = open_container or self._open_datastore

    def exists(self, path: str) -> bool:
        """Whether there is a blob of exactly this path."""
        with self._about(path):
            return bool(self._blob(path).exists())

    def read(self, path: str) -> bytes:
        """The content of a blob; NotFoundError when there is none."""
        with self._about(path):
            content: bytes = self._blob(path).download_blob().readall()
            return content

    def write(self, path: str, content: bytes, overwrite: bool = True) -> None:
        """Write a blob, whole or not at all.

        Raises:
            ConflictError: there is one, and it may not be overwritten.
        """
        with self._about(path):
            try:
                self._blob(path).upload_blob(content, overwrite=overwrite)
            except ResourceExistsError as error:
                if not overwrite:
                    raise ConflictError(f"Blob {path} exists already.") from error
                raise

    def change(self, path: str, change: Callable[[bytes | None], bytes]) -> None:
        """Replace a blob's content by what `change` makes of it; again while somebody else does so at once.

        Args:
            change: gets None when there is no blob.
        """
        from azure.core import MatchConditions

        with self._about(path):
            for _ in range(_CHANGE_ATTEMPTS):
                try:
                    found = self._blob(path).download_blob()
                    content = change(found.readall())
                    condition: dict[str, Any] = {
                        "etag": found.properties.etag,
                        "match_condition": MatchConditions.IfNotModified,
                        "overwrite": True,
                    }
                except ResourceNotFoundError:
                    content, condition = change(None), {"overwrite": False}
                try:
                    self._blob(path).upload_blob(content, **condition)
                    return
                except (ResourceExistsError, ResourceModifiedError):
                    continue
        raise ConflictError(f"Blob {path} is changed by others all the time.", fix="Run the same command again.")

    def upload_file(self, path: str, local: Path | str) -> None:
        """Write a file's content, overwriting."""
        with self._about(path), Path(local).open("rb") as file:
            self._blob(path).upload_blob(file, overwrite=True, max_concurrency=4)

    def upload_folder(self, prefix: str, local: Path | str) -> None:
        """Write every file below a folder under the same relative path."""
        root = Path(local)
        for file in sorted(file for file in root.rglob("*") if file.is_file()):
            self.upload_file(f"{prefix.rstrip('/')}/{file.relative_to(root).as_posix()}", file)

    def download_folder(self, prefix: str, local: Path | str) -> None:
        """Write every blob below a prefix into a folder.

        Raises:
            NotFoundError: there is no such blob.
        """
        below = f"{prefix.rstrip('/')}/"
        names = self.names(below)
        if not names:
            raise NotFoundError(f"There is nothing under '{below}' in datastore {DATASTORE}.")
        for name in names:
            self.download_file(name, Path(local, name.removeprefix(below)))

    def download_file(self, path: str, local: Path | str) -> None:
        """Write a blob into a file, in one piece or not at all."""
        target = Path(local)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.{os.getpid()}.part")
        try:
            with self._about(path), part.open("wb") as file:
                self._blob(path).download_blob(max_concurrency=4).readinto(file)
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)

    def names(self, prefix: str) -> list[str]:
        """The paths of the blobs whose path begins with the prefix, sorted."""
        with self._about(prefix):
            return sorted(self._container.list_blob_names(name_starts_with=prefix))

    def versions(self, prefix: str) -> dict[str, str]:
        """The blobs whose path begins with the prefix, each with what changes when its content does."""
        with self._about(prefix):
            return {blob.name: str(blob.etag) for blob in self._container.list_blobs(name_starts_with=prefix)}

    def blobs(self, prefix: str) -> list[StoredBlob]:
        """The blobs whose path begins with the prefix, by path."""
        with self._about(prefix):
            found = self._container.list_blobs(name_starts_with=prefix)
            return [StoredBlob(blob.name, int(blob.size or 0), blob.last_modified) for blob in found]

    def is_leased(self, path: str) -> bool:
        """Whether somebody holds the lease of a blob now; False when there is no such blob."""
        try:
            with self._about(path):
                return bool(self._blob(path).get_blob_properties().lease.state == "leased")
        except NotFoundError:
            return False

    def delete(self, path: str) -> None:
        """Delete a blob; nothing when there is none."""
        with contextlib.suppress(NotFoundError), self._about(path):
            self._blob(path).delete_blob(delete_snapshots="include")

    def delete_all(self, prefix: str) -> int:
        """Delete the blobs whose path begins with the prefix, the last first; returns how many there were."""
        names = self.names(prefix)
        for name in reversed(names):  # with a hierarchical namespace a folder goes only when it is empty
            self.delete(name)
        return len(names)

    def uri(self, path: str) -> str:
        """How jobs and models name a blob, or a folder of blobs."""
        return f"{_PREFIX}{path}"

    def url(self, path: str) -> str:
        """The HTTPS address of a blob, or of a folder of blobs; it opens nothing by itself."""
        return f"{self._container.url.partition('?')[0]}/{path}"

    def path_of(self, uri: str) -> str:
        """The path in this container of a datastore URI, in its short form or with the workspace's id.

        Raises:
            NotFoundError: the URI is of another datastore.
        """
        _, found, path = uri.partition(f"/datastores/{DATASTORE}/paths/")
        if not uri.startswith("azureml://") or not found:
            raise NotFoundError(f"'{uri}' is not in datastore {DATASTORE}.")
        return path.rstrip("/")

    @contextlib.contextmanager
    def lease(self, path: str, owner: str, wait_seconds: float) -> Iterator[None]:
        """Hold a blob's lease for the length of a `with` block; it ends by itself when this process dies.

        Args:
            owner: who holds it, for whoever waits.
        Raises:
            ConflictError: another still held it after the wait; the message names the owner.
        """
        lease = self._acquire(path, owner, wait_seconds)
        released = threading.Event()
        renewal = threading.Thread(target=_renew, args=(lease, released, path), daemon=True, name=f"lease-{path}")
        renewal.start()
        try:
            yield
        finally:
            released.set()
            renewal.join()
            try:
                with self._about(path):
                    lease.release()
            except PhiflowError:  # it ends by itself, and what the block raised matters more
                _log.warning("Lost the lease before it was released path=%s owner=%s", path, owner)

    def _acquire(self, path: str, owner: str, wait_seconds: float) -> BlobLeaseClient:
        blob = self._blob(path)
        deadline = time.monotonic() + wait_seconds
        while True:
            try:
                with self._about(path):
                    lease = blob.acquire_lease(lease_duration=LEASE_SECONDS)
                    blob.upload_blob(owner.encode(), overwrite=True, lease=lease)
                    return lease
            except NotFoundError:
                with contextlib.suppress(ConflictError):
                    self.write(path, b"", overwrite=False)
            except ConflictError as error:
                if time.monotonic() >= deadline:
                    holder = self.read(path).decode(errors="replace") or "somebody"
                    raise ConflictError(
                        f"{Path(path).stem} is being changed by {holder} (waited {wait_seconds:g} s).",
                        fix="Wait until that run has ended, and run the same command again.",
                    ) from error
                time.sleep(min(_LEASE_POLL_SECONDS, max(deadline - time.monotonic(), 0.01)))

    def _blob(self, path: str) -> BlobClient:
        return self._container.get_blob_client(path)

    def _about(self, path: str) -> contextlib.AbstractContextManager[Any]:
        return translated(f"Blob {path} of workspace {self._workspace.name}")

    @functools.cached_property
    def _container(self) -> ContainerClient:
        return self._open_container()

    def _open_datastore(self) -> ContainerClient:
        """Open the container with the datastore's key; with the signed-in identity where keys are off."""
        from azure.storage.blob import ContainerClient

        datastore, secret = self._read_datastore()
        name = getattr(datastore, "container_name", None) or getattr(datastore, "filesystem", None)
        if not name:
            raise ConfigError(
                f"Datastore {self._datastore} is of type {datastore.type}, which holds no blobs.",
                fix="Name a path in a blob container or a data lake.",
            )
        account = f"{datastore.protocol}://{datastore.account_name}.blob.{datastore.endpoint}"
        if secret:
            container = ContainerClient(account, name, credential=secret, logging_enable=False)
            try:
                with translated(f"Container {name} of {account}"):
                    container.get_container_properties()
                return container
            except PermissionDeniedError as error:
                if _KEYS_REFUSED not in error.message:
                    raise
                _log.info("Storage account refuses keys, so the signed-in identity is used account=%s", account)
        return ContainerClient(account, name, credential=self._workspace.credential)

    def _read_datastore(self) -> tuple[Any, Any]:
        """The datastore, and what opens it where that is a key or signature that the caller may see, else None."""
        datastores = self._workspace.ml.datastores
        with translated(f"Datastore {self._datastore} of workspace {self._workspace.name}"):
            try:
                datastore: Any = datastores.get(self._datastore, include_secrets=True)
            except HttpResponseError as error:
                if error.status_code not in (401, 403):
                    raise
                return datastores.get(self._datastore), None  # may be seen, but not its key
        if key := getattr(datastore.credentials, "account_key", None):
            return datastore, {"account_name": datastore.account_name, "account_key": key}
        return datastore, getattr(datastore.credentials, "sas_token", None)


def _renew(lease: BlobLeaseClient, released: threading.Event, path: str) -> None:
    """Renew until released; a lease that cannot be renewed is said once and left."""
    last = time.monotonic()
    while not released.wait(RENEW_SECONDS):
        try:
            lease.renew()
            last = time.monotonic()
        except Exception as error:  # a thread has nobody to raise to
            if time.monotonic() - last > LEASE_SECONDS:
                _log.warning("Could not renew the lease, another run may take it path=%s error=%s", path, type(error))
                return
