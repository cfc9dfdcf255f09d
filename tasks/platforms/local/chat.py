"""The chat app: a snapshot of promptflow_app/ served by `pf flow serve` in its own environment."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.platforms.local.files import read_json, write_atomic, write_json, write_secret
from tasks.platforms.local.services import CHAT_PORT, HOST, Services
from tasks.platforms.local.state import Home, project_folder
from tasks.platforms.refs import ChatService, ConnectionRef, EnvironmentRef, Origin

if TYPE_CHECKING:
    from tasks.config import ChatConfig


class Chat:
    """The chat apps of one state folder, one an endpoint."""

    def __init__(self, home: Home, services: Services) -> None:
        self._home = home
        self._services = services

    def ensure(
        self,
        connection: ConnectionRef,
        chat: ChatConfig,
        environment: EnvironmentRef,
        *,
        key: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> ChatService:
        """Start the app, or leave alone the one that runs with the same content; wait until it answers.

        Args:
            key: the endpoint's key; that of this machine's own endpoint when not given.
            variables: more of the app's environment, as for an endpoint that is elsewhere.
        """
        name = program_name(connection.endpoint)
        app = self._home.snapshot(project_folder("promptflow_app"), "chat") / "promptflow_app"
        port = self._services.port(name, chat.port or CHAT_PORT, setting="chat.port" if chat.port else "")
        folder = self._home.folder("chat", connection.endpoint)
        key_file = folder / "secrets.json"
        secrets = {"PHIFLOW_ENDPOINT_KEY": key or self._home.endpoint_key(connection.endpoint)}
        if read_json(key_file, None) != secrets:
            write_secret(key_file, json.dumps(secrets))
        settings = {
            "PHIFLOW_ENDPOINT_URL": f"{connection.url}/v1",
            "PHIFLOW_SYSTEM_PROMPT": chat.system_prompt,
            "PHIFLOW_TEMPERATURE": str(chat.temperature),
            "PHIFLOW_REQUEST_TIMEOUT_SECONDS": str(chat.request_timeout_seconds),
            "PHIFLOW_HISTORY": f"sqlite:///{folder / 'history.sqlite'}",
            "PF_HOME_DIRECTORY": str(_promptflow_home(self._home)),
            "PF_TRACING_SKIP_LOCAL_SETUP": "true",
            "PF_DISABLE_TRACING": "true",
            "APPLICATIONINSIGHTS_CONTROLPLANE_DISABLED": "true",
            "PF_LOGGING_LEVEL": "CRITICAL",
            **(variables or {}),
        }
        if chat.max_tokens:
            settings["PHIFLOW_MAX_TOKENS"] = str(chat.max_tokens)
        command = [
            *(str(Path(environment.location) / "bin" / "pf"), "flow", "serve", "--source", str(app)),
            # Prompt flow's own page demands a typed conversation id and loads fonts from elsewhere.
            *("--static_folder", str(app / "page")),
            *("--host", HOST, "--port", str(port), "--engine", "fastapi", "--skip-open-browser"),
        ]
        changed = self._services.start(name, command, environment=settings, env_file=key_file)
        url = f"http://{HOST}:{port}"
        self._services.wait_until_answers(name, f"{url}/health")
        write_json(folder / "chat.json", {"url": url})
        reason = "started" if changed else "it runs with the same content and answers"
        return ChatService(url=url, endpoint=connection.endpoint, origin=Origin(reused=not changed, reason=reason))

    def read(self, endpoint: str) -> ChatService | None:
        """The app that was last served for the endpoint."""
        record = read_json(self._home.path("chat", endpoint, "chat.json"), None)
        if record is None:
            return None
        return ChatService(url=record["url"], endpoint=endpoint, origin=Origin(reused=True, reason="read"))

    def remove(self, endpoint: str) -> None:
        """End the app and forget the endpoint's key; what people asked stays in its history."""
        self._services.remove(program_name(endpoint))
        for name in ("chat.json", "secrets.json"):
            self._home.path("chat", endpoint, name).unlink(missing_ok=True)


def program_name(endpoint: str) -> str:
    """The chat app's name among the supervised programs."""
    return f"chat-{endpoint}"


def _promptflow_home(home: Home) -> Path:
    """Prompt flow's own folder, with the one switch for its telemetry that no variable reaches."""
    folder = home.folder("chat", "promptflow")
    settings = folder / "pf.yaml"
    if not settings.exists():
        write_atomic(settings, "telemetry:\n  enabled: false\n")
    return folder
