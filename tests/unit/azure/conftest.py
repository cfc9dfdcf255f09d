"""For tests of the Azure adapter without the service: a real blob store, and a workspace's settings."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks.config import AzurePlatformConfig

pytest.importorskip("azure.storage.blob", reason="the packages for Azure are not installed")
# The account that every Azurite has; its key is published.
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


@pytest.fixture
def config() -> AzurePlatformConfig:
    """A workspace that nobody has."""
    return AzurePlatformConfig(
        subscription_id="00000000-0000-0000-0000-000000000001", resource_group="group", workspace="workspace"
    )


@pytest.fixture(scope="session")
def azurite(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a real blob store with Azure's protocol, empty."""
    emulator = shutil.which("azurite-blob")
    if emulator is None:
        pytest.skip("azurite-blob is not on PATH (npm install -g azurite)")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("azurite-blob")
    options = ("--inMemoryPersistence", "--skipApiVersionCheck", "--disableTelemetry", "--silent")
    command = [emulator, "--blobHost", "127.0.0.1", "--blobPort", str(port), *options]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 20
        while True:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert time.monotonic() < deadline, "azurite did not listen within 20 s"
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}/{ACCOUNT}"
    finally:
        process.terminate()
        process.wait(10)


@pytest.fixture
def storage(azurite: str, config: AzurePlatformConfig, request: pytest.FixtureRequest) -> Any:
    """The storage of a workspace whose container is new."""
    return new_storage(azurite, config, f"c{abs(hash(request.node.name)):x}-{time.monotonic_ns()}")


def new_storage(azurite: str, config: AzurePlatformConfig, container: str) -> Any:
    """A container of its own, opened as the adapter opens the workspace's."""
    from azure.storage.blob import ContainerClient

    from tasks.platforms.azure.client import Workspace
    from tasks.platforms.azure.storage import Storage

    client = ContainerClient(azurite, container, credential={"account_name": ACCOUNT, "account_key": KEY})
    client.create_container()
    return Storage(Workspace(config), open_container=lambda: client)


@pytest.fixture
def folder_of(tmp_path: Path) -> Callable[[dict[str, str]], Path]:
    """Return a function that writes files into a new folder."""

    def write(files: dict[str, str]) -> Path:
        root = tmp_path / f"folder-{time.monotonic_ns()}"
        for name, content in files.items():
            path = root / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content, encoding="utf-8")
        return root

    return write
