"""Stage: the chat app in front of the endpoint."""

from __future__ import annotations

from prefect.cache_policies import NO_CACHE

from tasks.config import ChatConfig, PlatformConfig
from tasks.platforms.connect import connect
from tasks.platforms.refs import ChatService, ConnectionRef, EndpointRef, EnvironmentRef
from tasks.step import step


@step(cache_policy=NO_CACHE)
def publish_connection(place: PlatformConfig, endpoint: EndpointRef) -> ConnectionRef:
    """Make the endpoint reachable for the chat app; the key stays with the platform."""
    return connect(place).ensure_connection(endpoint)


@step(cache_policy=NO_CACHE)
def serve_chat(
    place: PlatformConfig, connection: ConnectionRef, chat: ChatConfig, environment: EnvironmentRef
) -> ChatService:
    """Serve the chat app, or adopt the one that runs; it answers when this returns."""
    return connect(place).ensure_chat(connection, chat, environment)
