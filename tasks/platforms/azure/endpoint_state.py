"""What phiflow keeps of an endpoint that the service has no place for: its freeze, how to undo a rollout, its history.

One blob an endpoint, changed only if nobody else changed it meanwhile; the lease is a blob beside it.
"""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tasks.platforms.errors import NotFoundError
from tasks.platforms.refs import RolloutRecord

if TYPE_CHECKING:
    from collections.abc import Callable

    from tasks.platforms.azure.storage import Storage

_FOLDER = "phiflow/endpoints"
_HISTORY_LINES = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointNotes:
    """The content of the blob."""

    frozen: str = ""
    rollout: RolloutRecord | None = None
    history: tuple[str, ...] = ()

    def with_line(self, percents: dict[str, int], reason: str) -> EndpointNotes:
        """With one more change of traffic in the history."""
        shown = " ".join(f"{name}={percent}%" for name, percent in percents.items() if percent)
        line = f"{datetime.now(UTC).isoformat(timespec='seconds')} {shown or 'no traffic'} ({reason})"
        return replace(self, history=(*self.history, line)[-_HISTORY_LINES:])

    def to_json(self) -> bytes:
        """As it is stored."""
        record = self.rollout and {
            "run_id": self.rollout.run_id,
            "candidate": self.rollout.candidate,
            "traffic_before": dict(self.rollout.traffic_before),
        }
        return json.dumps({"frozen": self.frozen, "rollout": record, "history": list(self.history)}).encode()

    @classmethod
    def from_json(cls, content: bytes) -> EndpointNotes:
        """As it was stored."""
        stored: dict[str, Any] = json.loads(content)
        record = stored.get("rollout")
        return cls(
            frozen=stored.get("frozen", ""),
            rollout=record
            and RolloutRecord(
                run_id=record["run_id"],
                candidate=record["candidate"],
                traffic_before=tuple(record["traffic_before"].items()),
            ),
            history=tuple(stored.get("history", ())),
        )


class EndpointState:
    """The notes on the endpoints of one workspace."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    def read(self, endpoint: str) -> EndpointNotes | None:
        """None when nothing was noted."""
        try:
            return EndpointNotes.from_json(self._storage.read(_path(endpoint)))
        except NotFoundError:
            return None

    def change(self, endpoint: str, change: Callable[[EndpointNotes], EndpointNotes]) -> None:
        """Replace the notes by what `change` makes of them, however many change them at once."""

        def changed(content: bytes | None) -> bytes:
            return change(EndpointNotes() if content is None else EndpointNotes.from_json(content)).to_json()

        self._storage.change(_path(endpoint), changed)

    def forget(self, endpoint: str) -> None:
        """Delete the notes, which were on an earlier endpoint of that name."""
        self._storage.delete(_path(endpoint))

    def is_leased(self, endpoint: str) -> bool:
        """Whether somebody changes the endpoint now."""
        return self._storage.is_leased(f"{_FOLDER}/{endpoint}.lease")

    def lease(self, endpoint: str, owner: str, wait_seconds: float) -> AbstractContextManager[None]:
        """The exclusive right to change the endpoint."""
        return self._storage.lease(f"{_FOLDER}/{endpoint}.lease", owner, wait_seconds)


def _path(endpoint: str) -> str:
    return f"{_FOLDER}/{endpoint}.json"
