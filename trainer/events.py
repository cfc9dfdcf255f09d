"""The trainer's live record: one JSON line an event for programs, a short log line for people."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from trainer.errors import TrainerError
from trainer.files import write_atomic

log = logging.getLogger(__name__)


class EventLog:
    """Appends to events.jsonl in a folder, and leaves result.json or error.json there at the end."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("result.json", "error.json"):  # what an earlier attempt said about itself
            (folder / name).unlink(missing_ok=True)
        self._file = open(folder / "events.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - open as long as the run

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event; it is on its way to the disk when this returns."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def stage(self, name: str) -> None:
        """Say that the run has come to another stage."""
        self.emit("stage", name=name)
        log.info("%s", name.capitalize())

    def finish(self, result: dict[str, Any]) -> None:
        """Leave the result of a run that went through."""
        write_atomic(self.folder / "result.json", json.dumps(result, ensure_ascii=False, indent=1) + "\n")
        self.emit("finished", metrics=result["metrics"]["candidate"], model_dir=result["model_dir"])

    def fail(self, error: TrainerError) -> None:
        """Leave the reason of a run that did not."""
        reason = {
            "kind": error.kind,
            "message": error.message,
            "fix": error.fix,
            "retryable": error.retryable,
        }
        write_atomic(self.folder / "error.json", json.dumps(reason, ensure_ascii=False, indent=1) + "\n")
        self.emit("failed", **reason)
