"""Deletes what one configuration left in a workspace: the endpoint, the cluster, the files of its jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.infrastructure import cluster_name
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import NotFoundError, PhiflowError, TransientPlatformError

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.azure.client import Workspace

_WAIT_SECONDS = 1800.0
# An endpoint goes only when nothing is being created in it; the service says so with a conflict.
_ATTEMPTS = 60


def tear_down(config: PipelineConfig, workspace: Workspace) -> Iterator[str]:
    """Delete, wait until it is gone, and yield a line for each thing; what does not exist is passed over.

    Job records, registered models and environment versions stay: they cost nothing and say what happened.
    """
    endpoint, cluster = config.endpoint_name, cluster_name(config.compute)
    endpoints, computes = workspace.ml.online_endpoints, workspace.ml.compute
    begun = [
        (what, get)
        for what, get, delete in (
            (f"endpoint {endpoint}", lambda: endpoints.get(endpoint), lambda: endpoints.begin_delete(endpoint)),
            (f"cluster {cluster}", lambda: computes.get(cluster), lambda: computes.begin_delete(cluster)),
        )
        if _begin(what, get, delete, workspace.config.poll_seconds)
    ]
    for what, get in begun:
        _await_gone(what, get, workspace.config.poll_seconds)
        yield f"deleted {what}"
    storage = workspace.storage
    for prefix in (
        f"phiflow/jobs/{config.name}-",
        f"phiflow/checkpoints/{config.name}-",
        f"phiflow/endpoints/{endpoint}.",
    ):
        names = storage.names(prefix)
        for name in sorted(names, reverse=True):
            storage.delete(name)
        if names:
            yield f"deleted {len(names)} blobs below {prefix}"


def _exists(what: str, get: Any) -> bool:
    try:
        with translated(what):
            get()
    except NotFoundError:
        return False
    return True


def _begin(what: str, get: Any, delete: Any, poll_seconds: float) -> bool:
    """Ask for the deletion; False when there is nothing to delete."""
    what = what.capitalize()
    if not _exists(what, get):
        return False
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            with translated(what):
                delete()
            return True
        except NotFoundError:
            return True
        except PhiflowError:
            if attempt == _ATTEMPTS:
                raise
            time.sleep(poll_seconds)
    return True


def _await_gone(what: str, get: Any, poll_seconds: float) -> None:
    deadline = time.monotonic() + _WAIT_SECONDS
    while _exists(what.capitalize(), get):
        if time.monotonic() > deadline:
            raise TransientPlatformError(
                f"{what.capitalize()} is still there {_WAIT_SECONDS:.0f} s after its deletion began.",
                fix="It bills until it is gone: look in the studio.",
            )
        time.sleep(poll_seconds)
