"""Where a URI of an input, an output or a model points: a container and a path in the workspace's storage."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from tests.azure_emulator.job_files import Place

Read = Callable[[str], Mapping[str, Any] | None]
_DATASTORE = re.compile(r"azureml://(?:.*/)?datastores/(?P<datastore>[^/]+)/paths/(?P<path>.*)")
_JOB = re.compile(r"azureml://(?:.*/)?jobs/(?P<job>[^/]+)/outputs/(?P<output>[^/]+)(?:/paths/?(?P<path>.*)|/)?")
_ASSET = re.compile(r"(?:.*/)(?P<kind>data|models)/(?P<name>[^/]+)/versions/(?P<version>[^/]+)/?")
_SHORT = re.compile(r"azureml:(?P<name>[^:/]+):(?P<version>[^:/]+)")
_HTTPS = re.compile(r"https://(?P<account>[^./]+)\.blob\.[^/]+/(?P<container>[^/?]+)/(?P<path>[^?]*)")
ARTIFACT_CONTAINER = "azureml"
ARTIFACT_STORE = "workspaceartifactstore"


class NoSuchPlaceError(Exception):
    """A URI names something that is not in the workspace."""


class Uris:
    """Resolves URIs against the workspace's resources.

    Args:
        workspace: the workspace's resource id.
        read: gives a resource by its id, or None.
    """

    def __init__(self, workspace: str, read: Read) -> None:
        self._workspace = workspace
        self._read = read

    def place(self, uri: str) -> Place:
        """Where the content is.

        Raises:
            NoSuchPlaceError: says which part of the URI does not exist.
        """
        short = uri.removeprefix("azureml:") if uri.startswith("azureml:azureml://") else uri
        if match := _JOB.fullmatch(short):
            return self._of_job(match["job"], match["output"], match["path"] or "")
        if match := _DATASTORE.fullmatch(short):
            return Place(self._container(match["datastore"]), match["path"].rstrip("/"))
        if match := _SHORT.fullmatch(short):
            return self._of_asset("data", match["name"], match["version"])
        if match := _ASSET.fullmatch(short):
            return self._of_asset(match["kind"], match["name"], match["version"])
        if match := _HTTPS.fullmatch(short):
            return Place(match["container"], match["path"].rstrip("/"))
        raise NoSuchPlaceError(f"The URI '{uri}' is of no known form.")

    def _container(self, datastore: str) -> str:
        if datastore == ARTIFACT_STORE:
            return ARTIFACT_CONTAINER
        found = self._read(f"{self._workspace}/datastores/{datastore}")
        if found is None:
            raise NoSuchPlaceError(f"Could not find datastore: {datastore}.")
        return str(found["properties"]["containerName"])

    def _of_job(self, job: str, output: str, path: str) -> Place:
        found = self._read(f"{self._workspace}/jobs/{job}")
        if found is None:
            raise NoSuchPlaceError(f"Could not find job: {job}.")
        outputs = found["properties"].get("outputs") or {}
        if output not in outputs:
            raise NoSuchPlaceError(f"Job {job} has no output '{output}'.")
        place = self.place(outputs[output]["uri"])
        return Place(place.container, "/".join(filter(None, [place.path, path.strip("/")])))

    def _of_asset(self, kind: str, name: str, version: str) -> Place:
        found = self._read(f"{self._workspace}/{kind}/{name}/versions/{version}")
        if found is None:
            raise NoSuchPlaceError(f"Could not find {kind}: {name}, version: {version}.")
        properties = found["properties"]
        return self.place(properties["dataUri"] if kind == "data" else properties["modelUri"])
