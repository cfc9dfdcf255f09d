"""The chat app in front of an endpoint of the workspace gets its key and this process's way to the network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tasks.config import AzurePlatformConfig, ChatConfig
from tasks.platforms.azure.chat import Chat
from tasks.platforms.azure.client import Workspace
from tasks.platforms.errors import PermissionDeniedError
from tasks.platforms.refs import ChatService, EndpointRef, EnvironmentRef, Origin

MADE = Origin(reused=False, reason="made in a test")
KEY = "canary-endpoint-key"
ENVIRONMENT = EnvironmentRef(name="promptflow", version="p", location="/env", origin=MADE)
ENDPOINT = EndpointRef(name="support", url="https://support.westeurope.inference.ml.azure.com", origin=MADE)


class Served:
    """The local platform's chat apps, which remember what they were started with."""

    def __init__(self) -> None:
        self.started: dict[str, Any] = {}

    def ensure(self, connection: Any, chat: Any, environment: Any, **more: Any) -> ChatService:
        self.started = {"connection": connection, **more}
        return ChatService(url="http://127.0.0.1:8080", endpoint=connection.endpoint, origin=MADE)


def chat_of(config: AzurePlatformConfig, key: str) -> tuple[Chat, Served]:
    """The chat apps of a workspace whose endpoint has a key."""
    workspace, served = Workspace(config), Served()
    keys = SimpleNamespace(get_keys=lambda name: SimpleNamespace(primary_key=key))
    workspace.__dict__["ml"] = SimpleNamespace(online_endpoints=keys)
    this_machine: Any = SimpleNamespace(chat=served)
    return Chat(workspace, this_machine), served


def test_app_gets_the_key_and_the_way_to_the_network(
    config: AzurePlatformConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key goes to the app alone, never into the connection; proxies and a company's CA go along."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", "/ca.pem")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    chat, served = chat_of(config, KEY)
    connection = chat.connection(ENDPOINT)
    assert (connection.endpoint, connection.url) == (ENDPOINT.name, ENDPOINT.url)
    assert KEY not in repr(connection)
    service = chat.ensure(connection, ChatConfig(), ENVIRONMENT, "mlflow")
    assert KEY not in repr(service)
    assert served.started["key"] == KEY
    assert served.started["variables"]["REQUESTS_CA_BUNDLE"] == "/ca.pem"
    assert served.started["variables"]["HTTPS_PROXY"] == "http://proxy:3128"
    assert served.started["variables"]["PHIFLOW_ENDPOINT_SERVER"] == "mlflow"
    assert KEY not in str(served.started["variables"])


def test_endpoint_without_a_key_is_told(config: AzurePlatformConfig) -> None:
    """An endpoint that takes no key cannot be asked by the app."""
    chat, _ = chat_of(config, "")
    with pytest.raises(PermissionDeniedError, match="support has no key"):
        chat.ensure(chat.connection(ENDPOINT), ChatConfig(), ENVIRONMENT, "openai")
