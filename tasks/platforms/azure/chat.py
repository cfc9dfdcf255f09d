"""The chat app on this machine, in front of the workspace's endpoint; its key is read now and kept for it alone."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import PermissionDeniedError
from tasks.platforms.refs import ChatService, ConnectionRef, EndpointRef, EnvironmentRef, Origin

if TYPE_CHECKING:
    from tasks.config import ChatConfig
    from tasks.platforms.azure.client import Workspace
    from tasks.platforms.local.local_platform import LocalPlatform

# How this process reaches the network; the app must reach the endpoint the same way.
_NETWORK = (
    *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"),
    "PYTHONPATH",
)


class Chat:
    """The chat apps on this machine, one an endpoint of the workspace."""

    def __init__(self, workspace: Workspace, this_machine: LocalPlatform) -> None:
        self._workspace = workspace
        self._this_machine = this_machine

    def connection(self, endpoint: EndpointRef) -> ConnectionRef:
        """What the app needs to reach the endpoint, but for the key."""
        origin = Origin(reused=True, reason="the endpoint's key stays with the workspace until the app starts")
        return ConnectionRef(name="phiflow_endpoint", endpoint=endpoint.name, url=endpoint.url, origin=origin)

    def ensure(
        self, connection: ConnectionRef, chat: ChatConfig, environment: EnvironmentRef, server: str
    ) -> ChatService:
        """Start the app with the endpoint's key of now, or leave alone the one that runs with it.

        Args:
            server: the kind that answers, `openai` or `mlflow`.
        """
        network = {name: os.environ[name] for name in _NETWORK if os.environ.get(name)}
        variables = {**network, "PHIFLOW_ENDPOINT_SERVER": server}
        return self._this_machine.chat.ensure(
            connection, chat, environment, key=self._key(connection.endpoint), variables=variables
        )

    def _key(self, endpoint: str) -> str:
        with translated(f"The key of endpoint {endpoint}"):
            keys = self._workspace.ml.online_endpoints.get_keys(endpoint)
        key = getattr(keys, "primary_key", "")
        if not key:
            raise PermissionDeniedError(
                f"Endpoint {endpoint} has no key.", fix="Its authentication must be by key; phiflow makes it so."
            )
        return str(key)
