"""For tests against the emulator of Azure Machine Learning: one emulator for all, and its variables on request."""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("azure.ai.ml", reason="the packages for Azure are not installed")

from tests.azure.emptying import empty
from tests.azure_emulator.azurite import NoAzuriteError, find_azurite
from tests.azure_emulator.process import ROOT, EmulatorProcess

# Where environments are built already: the user's own, before a test gets a state folder of its own.
_HOME = os.environ.get("PHIFLOW_HOME") or str(ROOT / ".phiflow")


@pytest.fixture(scope="session")
def start_emulator() -> Iterator[Callable[..., EmulatorProcess]]:
    """Start an emulator with its state in a folder; ended with the tests. For tests that kill it, or need it empty."""
    try:
        find_azurite()
    except NoAzuriteError as error:
        pytest.skip(str(error))
    started: list[EmulatorProcess] = []

    def start(state: Path, *options: str) -> EmulatorProcess:
        started.append(EmulatorProcess(state, "--home", _HOME, *options).start())
        return started[-1]

    yield start
    for emulator in started:
        emulator.stop()
        if storage := emulator.storage_process():  # of one that was killed
            storage.kill()


@pytest.fixture(scope="session")
def shared_emulator(
    start_emulator: Callable[..., EmulatorProcess], tmp_path_factory: pytest.TempPathFactory
) -> EmulatorProcess:
    """One emulator for all tests, which name what they make so that it is theirs."""
    return start_emulator(tmp_path_factory.mktemp("emulator"))


@pytest.fixture
def emulator(shared_emulator: EmulatorProcess) -> EmulatorProcess:
    """The emulator, without scenarios and with counts at zero."""
    shared_emulator.reset()
    return shared_emulator


@pytest.fixture(scope="session")
def empty_emulator(
    start_emulator: Callable[..., EmulatorProcess], tmp_path_factory: pytest.TempPathFactory
) -> EmulatorProcess:
    """One emulator that began with nothing, for all tests that make their resources themselves."""
    return start_emulator(tmp_path_factory.mktemp("empty"), "--empty")


@pytest.fixture
def cloud(empty_emulator: EmulatorProcess) -> Iterator[EmulatorProcess]:
    """The empty emulator, without scenarios and with counts at zero; what the test makes is gone afterwards."""
    empty_emulator.reset()
    assert empty_emulator.inventory() == []
    yield empty_emulator
    empty_emulator.reset()
    empty(empty_emulator)


@pytest.fixture
def in_azure(emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> EmulatorProcess:
    """The emulator, reached from the test's own process."""
    return reach(emulator, monkeypatch)


def reach(emulator: EmulatorProcess, monkeypatch: pytest.MonkeyPatch) -> EmulatorProcess:
    """Have the test's own process reach an emulator: its variables set, its host names resolved, no others."""
    for name, value in emulator.env.items():
        monkeypatch.setenv(name, value)
    for name in ("getaddrinfo", "gethostbyname"):
        monkeypatch.setattr(socket, name, getattr(socket, name))  # put back at the end
    file = ROOT / "tests" / "azure_emulator" / "loopback" / "sitecustomize.py"
    spec = importlib.util.spec_from_file_location("loopback_sitecustomize", file)
    assert spec is not None and spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    return emulator
