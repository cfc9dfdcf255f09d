"""Blobs and leases, against a real blob store with Azure's protocol."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.platforms.errors import ConflictError, NotFoundError


def test_blob_is_written_read_and_deleted(storage: Any) -> None:
    """What was written is read; what is not there is named, and deleting it is no error."""
    assert not storage.exists("phiflow/a.json")
    storage.write("phiflow/a.json", b"one")
    storage.write("phiflow/a.json", b"two")
    assert storage.read("phiflow/a.json") == b"two"
    assert storage.exists("phiflow/a.json")
    storage.delete("phiflow/a.json")
    storage.delete("phiflow/a.json")
    with pytest.raises(NotFoundError, match=r"Blob phiflow/a\.json of workspace workspace"):
        storage.read("phiflow/a.json")


def test_blob_is_not_overwritten_when_it_may_not_be(storage: Any) -> None:
    """The second of two who each want to be the first is told so, and the first's content stays."""
    storage.write("phiflow/once", b"first", overwrite=False)
    with pytest.raises(ConflictError, match="phiflow/once exists already"):
        storage.write("phiflow/once", b"second", overwrite=False)
    assert storage.read("phiflow/once") == b"first"


def test_folder_goes_there_and_back(storage: Any, folder_of: Callable[..., Path], tmp_path: Path) -> None:
    """A folder's files, and no neighbour's, come back under the same relative paths."""
    files = {"a.txt": "A", "deep/er/b.txt": "B"}
    storage.upload_folder("phiflow/jobs/one", folder_of(files))
    storage.write("phiflow/jobs/one-more/c.txt", b"C")
    storage.download_folder("phiflow/jobs/one", tmp_path / "back")
    back = {p.relative_to(tmp_path / "back").as_posix(): p.read_text() for p in (tmp_path / "back").rglob("*.txt")}
    assert back == files
    with pytest.raises(NotFoundError, match="nothing under 'phiflow/none/'"):
        storage.download_folder("phiflow/none", tmp_path / "none")


def test_version_changes_with_the_content(storage: Any) -> None:
    """What stands for a blob's content changes when the blob is written again."""
    storage.write("phiflow/v", b"1")
    before = storage.versions("phiflow/v")
    assert before == storage.versions("phiflow/v")
    storage.write("phiflow/v", b"2")
    assert list(before) == list(storage.versions("phiflow/v"))
    assert before != storage.versions("phiflow/v")


def test_uri_names_a_path_and_back(storage: Any) -> None:
    """Short and long forms of a datastore's address give the path; another datastore's is refused."""
    uri = storage.uri("phiflow/jobs/j/model")
    assert uri == "azureml://datastores/workspaceblobstore/paths/phiflow/jobs/j/model"
    assert storage.path_of(uri) == "phiflow/jobs/j/model"
    long = "azureml://subscriptions/s/resourcegroups/g/workspaces/w/datastores/workspaceblobstore/paths/a/b/"
    assert storage.path_of(long) == "a/b"
    for other in ("azureml://datastores/other/paths/a", "/local/a", "https://x/datastores/workspaceblobstore/paths/a"):
        with pytest.raises(NotFoundError, match="is not in datastore"):
            storage.path_of(other)


def test_lease_names_its_holder_and_is_waited_for(storage: Any) -> None:
    """A second holder is refused with the first's name, or comes when the first has gone."""
    with (
        storage.lease("phiflow/endpoints/e.lease", "run first", 0),
        pytest.raises(ConflictError, match="e is being changed by run first"),
        storage.lease("phiflow/endpoints/e.lease", "run second", 0.1),
    ):
        pytest.fail("two hold the lease")
    order: list[str] = []

    def second() -> None:
        with storage.lease("phiflow/endpoints/e.lease", "run second", 20):
            order.append("second")

    thread = threading.Thread(target=second)
    with storage.lease("phiflow/endpoints/e.lease", "run first", 0):
        thread.start()
        order.append("first")
    thread.join(20)
    assert order == ["first", "second"]


def test_lease_is_kept_alive(storage: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder keeps the lease for longer than the service gives it at once."""
    from tasks.platforms.azure import storage as module

    renewed = threading.Event()
    renew = module._renew

    def noticed(lease: Any, released: threading.Event, path: str) -> None:
        original = lease.renew
        lease.renew = lambda: (original(), renewed.set())
        renew(lease, released, path)

    monkeypatch.setattr(module, "_renew", noticed)
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.05)
    with storage.lease("phiflow/endpoints/kept.lease", "run first", 0):
        assert renewed.wait(10)


def test_what_the_block_raises_passes_and_frees_the_lease(storage: Any) -> None:
    """An error inside the block is not replaced, and the next holder need not wait."""
    error = RuntimeError("inside")
    with pytest.raises(RuntimeError) as caught, storage.lease("phiflow/x.lease", "run first", 0):
        raise error
    assert caught.value is error
    with storage.lease("phiflow/x.lease", "run second", 0):
        pass
