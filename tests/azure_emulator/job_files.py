"""A job's files between a node and the workspace's blobs: fetched before it runs, and kept in step while it does.

A node outlives the emulator, so every transfer is tried again until the storage answers.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from azure.core.exceptions import HttpResponseError, ResourceNotFoundError, ServiceRequestError, ServiceResponseError
from azure.storage.blob import BlobServiceClient

T = TypeVar("T")
_PATIENCE_SECONDS = 300.0
_PAUSE_SECONDS = 0.5
# A mount sends a file when it is closed; one that still changes is taken for open.
_SETTLED_SECONDS = 0.7


@dataclass(frozen=True, slots=True)
class Place:
    """A blob, or all blobs below a prefix."""

    container: str
    path: str

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Place:
        """Rebuild a place; further keys are ignored."""
        return cls(value["container"], value["path"])


class Transfers:
    """Reads and writes blobs for one node.

    Args:
        connect: gives the storage as it can be reached now; asked again after each failure.
    """

    def __init__(self, connect: Callable[[], BlobServiceClient]) -> None:
        self._connect = connect
        self._client: BlobServiceClient | None = None

    def fetch_file(self, place: Place, target: Path) -> None:
        """Write one blob to a file; FileNotFoundError when there is none."""
        target.parent.mkdir(parents=True, exist_ok=True)

        def fetch(client: BlobServiceClient) -> None:
            with target.open("wb") as file:
                client.get_blob_client(place.container, place.path).download_blob().readinto(file)

        self._persist(fetch, str(place.path))

    def fetch_folder(self, place: Place, target: Path) -> int:
        """Write every blob below a prefix into a folder and say how many there were."""
        prefix = f"{place.path.rstrip('/')}/" if place.path.strip("/") else ""
        names = self.names(Place(place.container, prefix))
        for name in names:
            self.fetch_file(Place(place.container, name), target / name.removeprefix(prefix))
        return len(names)

    def names(self, place: Place) -> list[str]:
        """The names of the blobs that begin with the path; folders' own entries left out."""

        def listed(client: BlobServiceClient) -> list[str]:
            container = client.get_container_client(place.container)
            found = container.list_blobs(name_starts_with=place.path, include=["metadata"])
            return [blob.name for blob in found if (blob.metadata or {}).get("hdi_isfolder") != "true"]

        return self._persist(listed, place.path)

    def send_file(self, place: Place, source: Path) -> None:
        """Write a file to a blob, overwriting."""

        def send(client: BlobServiceClient) -> None:
            with source.open("rb") as file:
                # Its length now: what is appended meanwhile goes with the next round.
                size = source.stat().st_size
                client.get_blob_client(place.container, place.path).upload_blob(
                    file.read(size) if size < 2**20 else file, overwrite=True
                )

        self._persist(send, place.path)

    def remove(self, place: Place) -> None:
        """Delete a blob; nothing when there is none."""

        def delete(client: BlobServiceClient) -> None:
            with contextlib.suppress(ResourceNotFoundError):
                client.get_blob_client(place.container, place.path).delete_blob()

        self._persist(delete, place.path)

    def _persist(self, call: Callable[[BlobServiceClient], T], what: str) -> T:
        """Call until the storage answers; its refusals are final."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while True:
            try:
                if self._client is None:
                    self._client = self._connect()
                return call(self._client)
            except ResourceNotFoundError as error:
                raise FileNotFoundError(what) from error
            except (ServiceRequestError, ServiceResponseError, HttpResponseError, OSError) as error:
                self._client = None
                refused = isinstance(error, HttpResponseError) and error.status_code not in (403, 408, 429, 500, 503)
                if refused or isinstance(error, FileNotFoundError) or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)


@dataclass(slots=True)
class Mirror:
    """A folder (or one file) of the node whose content appears as blobs.

    Attributes:
        removes: whether a file that went takes its blob with it, as on a mount.
        settles: whether a file is sent only when it no longer changes.
    """

    transfers: Transfers
    place: Place
    root: Path
    removes: bool = False
    settles: bool = False
    _sent: dict[str, tuple[int, int]] = field(default_factory=dict)
    _restored: frozenset[str] = frozenset()

    def restore(self) -> int:
        """Fetch what is there already, which then counts as sent."""
        count = self.transfers.fetch_folder(self.place, self.root)
        self._sent = {name: _stamp(path) for name, path in self._files()}
        self._restored = frozenset(self._sent)
        return count

    def send(self, *, final: bool = False) -> bool:
        """Send what changed since the last time, and say whether anything was sent."""
        sent, now = False, time.time()
        present = dict(self._files())
        for name, path in present.items():
            try:
                stamp = _stamp(path)
                fresh = self.settles and not final and now - stamp[0] / 1e9 < _SETTLED_SECONDS
                if fresh or self._sent.get(name) == stamp:
                    continue
                self.transfers.send_file(self._blob(name), path)
            except FileNotFoundError:  # it went while it was looked at
                continue
            self._sent[name] = stamp
            sent = True
        for name in [name for name in self._sent if name not in present]:
            if self.removes:
                self.transfers.remove(self._blob(name))
            del self._sent[name]
        return sent

    def sent_names(self) -> list[str]:
        """The relative paths of what is new here and has been sent."""
        return [name for name in self._sent if name not in self._restored]

    def _blob(self, name: str) -> Place:
        prefix = self.place.path.rstrip("/")
        return Place(self.place.container, f"{prefix}/{name}" if name else prefix)

    def _files(self) -> Iterator[tuple[str, Path]]:
        if self.root.is_file():
            yield "", self.root
            return
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and not path.is_symlink():
                yield path.relative_to(self.root).as_posix(), path


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_mtime_ns, status.st_size
