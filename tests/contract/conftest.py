"""The platforms that the port's suite runs on: this machine, and Azure through the emulator."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.config import AzurePlatformConfig, LocalPlatformConfig
from tasks.platforms.connect import connect
from tasks.platforms.refs import EnvironmentRef, ModelVersion
from tests.contract.azure_service import IDENTITY, Service
from tests.contract.places import MADE, NAME, NAME_FILE, Place, server_source, version

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """This machine, with a state folder of its own and the stand-in for the model server."""
    from tasks.platforms.connect import local_services
    from tasks.platforms.local import endpoints

    folder = tmp_path_factory.mktemp("local")
    source, home = server_source(folder), str(folder / "home")
    python = folder / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.symlink_to(sys.executable)
    environment = EnvironmentRef(name="serving", version="e" * 16, location=str(folder / "environment"), origin=MADE)

    def model(number: str) -> ModelVersion:
        (folder / number / "model").mkdir(parents=True, exist_ok=True)
        (folder / number / "model" / NAME_FILE).write_text(number)
        return version(number, str(folder / number))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(endpoints, "project_folder", lambda *parts: source.joinpath(*parts))
        platform = connect(LocalPlatformConfig(home=home))
        yield Place(platform, environment, model, version("7", "/nonexistent"))
    local_services(home).supervisor.stop_all()


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A workspace of the emulator, reached by the real SDK; its model servers are the stand-in."""
    pytest.importorskip("azure.ai.ml", reason="the packages for Azure are not installed")
    folder = tmp_path_factory.mktemp("azure")
    with emulator(folder, server_source(folder)) as environment, reached(environment):
        config = AzurePlatformConfig(
            subscription_id=os.environ["AZURE_SUBSCRIPTION_ID"],
            resource_group=os.environ["AZURE_RESOURCE_GROUP"],
            workspace=os.environ["AZURE_ML_WORKSPACE"],
            poll_seconds=0.2,
            home=str(folder / "home"),
        )
        yield azure_place(connect(config))


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """One emulator for all tests of a module."""
    pytest.importorskip("azure.ai.ml", reason="the packages for Azure are not installed")
    folder = tmp_path_factory.mktemp("azure-endpoints")
    with emulator_process(folder, "--server-source", str(server_source(folder))) as process, reached(process.env):
        config = AzurePlatformConfig(
            subscription_id=process.env["AZURE_SUBSCRIPTION_ID"],
            resource_group=process.env["AZURE_RESOURCE_GROUP"],
            workspace=process.env["AZURE_ML_WORKSPACE"],
            poll_seconds=0.1,
            home=str(folder / "home"),
            identity=IDENTITY,
        )
        platform = connect(config)
        yield Service(process, azure_place(platform), platform)


def azure_place(platform: Any) -> Place:
    """The stand-in's environment, and models that are registered when they are asked for."""
    from azure.ai.ml.entities import Environment, Model

    workspace = platform.workspace
    registered: dict[str, ModelVersion] = {}

    def model(number: str, file: str = NAME_FILE) -> ModelVersion:
        if number not in registered:
            path = f"phiflow/jobs/{NAME}-{number}/model"
            workspace.storage.write(f"{path}/{file}", number.encode())
            asset = Model(name=NAME, version=number, path=workspace.storage.uri(path), type="custom_model")
            workspace.ml.models.create_or_update(asset)
            registered[number] = version(number, workspace.storage.uri(path))
        return registered[number]

    route = {"port": 5001, "path": "/"}
    routes = {"liveness_route": route, "readiness_route": route, "scoring_route": route}
    image = "mcr.microsoft.com/azureml/openmpi5.0-ubuntu24.04:20260901.v1"
    stand_in = Environment(name="stand-in", version="1", image=image, inference_config=routes)
    workspace.ml.environments.create_or_update(stand_in)
    environment = EnvironmentRef(name="stand-in", version="1", location="azureml:stand-in:1", origin=MADE)
    return Place(platform, environment, model, model("7", "other.txt"))


@contextlib.contextmanager
def emulator(folder: Path, source: Path) -> Iterator[dict[str, str]]:
    """Run the emulator, whose model servers are those of `source`; gives the variables that reach it."""
    with emulator_process(folder, "--server-source", str(source)) as process:
        yield process.env


@contextlib.contextmanager
def emulator_process(folder: Path, *options: str) -> Iterator[Any]:
    """Run the emulator; gives it as tests have it."""
    from tests.azure_emulator.azurite import NoAzuriteError, find_azurite
    from tests.azure_emulator.process import EmulatorProcess

    try:
        find_azurite()
    except NoAzuriteError as error:
        pytest.skip(str(error))
    process = EmulatorProcess(folder, *options).start()
    try:
        yield process
    finally:
        process.stop()


@contextlib.contextmanager
def reached(environment: dict[str, str]) -> Iterator[None]:
    """Let this process reach the emulator, and resolve no name outside this machine."""
    from tasks.platforms import connect as composition

    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            if name != "PYTHONPATH":
                patch.setenv(name, value)
        for name in ("getaddrinfo", "gethostbyname"):
            patch.setattr(socket, name, getattr(socket, name))  # so that they are put back
        file = ROOT / "tests" / "azure_emulator" / "loopback" / "sitecustomize.py"
        spec = importlib.util.spec_from_file_location("loopback", file)
        assert spec is not None and spec.loader is not None
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
        yield
        composition._workspace.cache_clear()
