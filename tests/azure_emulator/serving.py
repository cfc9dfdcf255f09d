"""Runs deployments for real: the model's blobs are fetched and served by the local platform's model servers."""

from __future__ import annotations

import hashlib
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.config import ServingConfig
from tasks.platforms.errors import PhiflowError
from tasks.platforms.refs import EnvironmentRef, ModelVersion, Origin
from tests.azure_emulator.job_files import Place, Transfers

if TYPE_CHECKING:
    from tasks.platforms.local.local_platform import LocalPlatform

_POLL_SECONDS = 0.2
_MADE = Origin(reused=False, reason="deployed by the emulator")


class ServingError(Exception):
    """A deployment that did not get well, with the service's code and words."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Serving:
    """The model servers of one emulator.

    Args:
        local: the emulator's own local platform.
        folder: where models are fetched to.
        transfers: reads the workspace's blobs.
        server_source: a folder whose `deployments/server` is served with instead of the project's.
    """

    def __init__(
        self, local: LocalPlatform, folder: Path, transfers: Transfers, server_source: Path | None = None
    ) -> None:
        self._local = local
        self._folder = folder
        self._transfers = transfers
        self._lock = threading.Lock()
        self._addresses: dict[str, tuple[str, str]] = {}
        if server_source:
            _serve_from(server_source)

    def start(self, endpoint: str, name: str, image: Mapping[str, Any], model: Mapping[str, Any]) -> str:
        """Have a model server for a deployment, and return its name on the local platform.

        Args:
            image: the folder that the environment is built from, or an empty one for the running Python.
            model: `name`, `version`, `place`, and the deployment's `settings`.
        """
        location = self._fetch(model["place"])
        if model["settings"]["server"] == "mlflow":  # the local platform wants the folder with MLmodel itself
            location = location / "model"
        environment = self._environment(image)
        version = ModelVersion(
            name=model["name"],
            version=model["version"],
            digest=hashlib.sha256(str(model["place"]).encode()).hexdigest(),
            job="",
            data_digest="",
            location=str(location),
            origin=_MADE,
        )
        # The name goes in, so that two deployments of the same content are two.
        variables = {**model["settings"].get("environment_variables", {}), "AZUREML_DEPLOYMENT_NAME": name}
        serving = ServingConfig(**{**model["settings"], "environment_variables": variables})
        with self._lock:
            self._local.ensure_endpoint(endpoint)
            return self._local.deploy(endpoint, version, serving, environment).name

    def await_ready(self, endpoint: str, local_name: str, seconds: float, wanted: Callable[[], bool]) -> None:
        """Wait until the server is well.

        Raises:
            ServingError: it ended, or was not well in time.
        """
        deadline = time.monotonic() + seconds
        while wanted():
            status = self._local.read_deployment(endpoint, local_name)
            if status.state == "ready":
                return
            if status.state == "failed":
                raise crashed()
            if time.monotonic() > deadline:
                raise unready()
            time.sleep(_POLL_SECONDS)

    def is_ready(self, endpoint: str, local_name: str) -> bool:
        """Whether the server answers now."""
        try:
            return self._local.read_deployment(endpoint, local_name).state == "ready"
        except PhiflowError:
            return False

    def stop(self, endpoint: str, local_name: str) -> None:
        """End a model server; nothing when there is none."""
        with self._lock:
            self._local.delete_deployment(endpoint, local_name)

    def log(self, endpoint: str, local_name: str, lines: int) -> str:
        """The last lines that a model server wrote."""
        path = self._local.services.log_file(f"server-{endpoint}-{local_name}")
        if not path.exists():
            return ""
        text = path.read_text(encoding="utf-8", errors="replace").splitlines()
        said = [line for line in text if not line.startswith("launch: ")]
        return "\n".join(said[-lines:])

    def address(self, endpoint: str) -> tuple[str, str]:
        """The gateway's URL of an endpoint, and the key it takes."""
        if endpoint not in self._addresses:
            self._addresses[endpoint] = (
                self._local.ensure_endpoint(endpoint).url,
                self._local.home.endpoint_key(endpoint),
            )
        return self._addresses[endpoint]

    def forget_addresses(self) -> None:
        """Look anew where the gateway is."""
        self._addresses.clear()

    def _fetch(self, place: Place) -> Path:
        """The folder that holds the model as `model`, fetched once."""
        digest = hashlib.sha256(f"{place.container}/{place.path}".encode()).hexdigest()[:16]
        target = self._folder / digest
        with self._lock:
            if not (target / ".complete").exists():
                if not self._transfers.fetch_folder(place, target / "model"):
                    raise ServingError("BadArgument", f"The model has no files at {place.container}/{place.path}.")
                (target / ".complete").touch()
        return target

    def _environment(self, image: Mapping[str, Any]) -> EnvironmentRef:
        if image["folder"]:
            try:
                return self._local.ensure_environment(image["name"])
            except PhiflowError as error:
                raise image_build_failed(str(error)) from error
        location = self._folder / "running-python"
        program = location / "bin" / "python"
        if not program.exists():
            program.parent.mkdir(parents=True, exist_ok=True)
            program.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n', encoding="utf-8")
            program.chmod(0o755)
        return EnvironmentRef(name="running-python", version="0" * 16, location=str(location), origin=_MADE)


def _serve_from(source: Path) -> None:
    from tasks.platforms.local import endpoints

    original = endpoints.project_folder

    def project_folder(*parts: str) -> Path:
        replaced = source.joinpath(*parts)
        return replaced if replaced.exists() else original(*parts)

    endpoints.project_folder = project_folder


def crashed() -> ServingError:
    """The container ended by itself."""
    return ServingError(
        "ResourceNotReady",
        "User container has crashed or terminated. Please see troubleshooting guide, available here: "
        "https://aka.ms/oe-tsg#error-resourcenotready",
    )


def unready() -> ServingError:
    """The container runs and does not answer its probes."""
    return ServingError(
        "ResourceNotReady",
        "User container did not become ready: the readiness probe failed too often. Please see troubleshooting "
        "guide, available here: https://aka.ms/oe-tsg#error-resourcenotready",
    )


def out_of_capacity(size: str) -> ServingError:
    """The region has no machine of this size to give."""
    return ServingError(
        "OutOfCapacity",
        f"The specified VM Size {size} failed to provision due to a lack of Azure Machine Learning capacity. Retry "
        "later or try deploying to a different region. Please see troubleshooting guide, available here: "
        "https://aka.ms/oe-tsg#error-outofcapacity",
    )


def image_build_failed(reason: str) -> ServingError:
    """The environment's image could not be built."""
    return ServingError(
        "ImageBuildFailure",
        f"Image build failed: {reason} Please see troubleshooting guide, available here: "
        "https://aka.ms/oe-tsg#error-imagebuildfailure",
    )
