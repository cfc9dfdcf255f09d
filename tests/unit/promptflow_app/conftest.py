"""The chat app before a small endpoint. Runs in the environment of environments/promptflow."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

MISSING = [name for name in ("promptflow", "requests", "azure.data.tables") if find_spec(name.split(".")[0]) is None]
collect_ignore_glob = ["test_*.py"] if MISSING else []
sys.path.insert(0, str(Path(__file__).parents[3] / "promptflow_app"))


def pytest_terminal_summary(terminalreporter) -> None:
    """Say why these tests did not run."""
    if MISSING:
        terminalreporter.write_line(f"tests/unit/promptflow_app not run: {', '.join(MISSING)} not installed here")


@pytest.fixture(scope="session")
def endpoint():
    """An endpoint that speaks the OpenAI API over real HTTP."""
    from chat_parts import ScriptedEndpoint

    with ScriptedEndpoint() as running:
        yield running


@pytest.fixture(scope="session")
def mlflow_endpoint():
    """An endpoint with an MLflow model that is served without code."""
    from chat_parts import ScriptedEndpoint

    with ScriptedEndpoint("/score") as running:
        yield running


@pytest.fixture(scope="session")
def app(endpoint, tmp_path_factory: pytest.TempPathFactory):
    """The served chat app, ready."""
    from chat_parts import RunningApp

    running = RunningApp(tmp_path_factory.mktemp("app"), endpoint.url)
    yield running.wait_ready()
    running.stop()
