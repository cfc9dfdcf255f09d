"""The trainer's live record: one JSON line an event for programs, a short log line for people."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

from trainer.errors import TrainerError
from trainer.files import write_atomic, write_in_place
from trainer.ranks import is_first

log = logging.getLogger(__name__)


class Verdict:
    """How a run ended, as `result.json` or `error.json` in a folder that may be a mounted blob container."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if is_first():
            for name in ("result.json", "error.json"):  # what an earlier attempt said about itself
                (folder / name).unlink(missing_ok=True)

    def finish(self, result: dict[str, Any]) -> None:
        """Leave the result of a run that went through."""
        write_in_place(self.folder / "result.json", _shown(result))

    def fail(self, error: TrainerError) -> None:
        """Leave the reason of a run that did not.

        Of several processes the first to fail says why; the others are then told to stop.
        """
        path = self.folder / "error.json"
        if not (path.exists() and error.kind == "preempted"):
            write_in_place(path, _shown(_reason(error)))


class EventLog:
    """Appends to events.jsonl in a folder, and leaves result.json or error.json there at the end.

    Args:
        folder: events, and the end of the run.
        result_folder: the end of the run once more, where it outlives the machine.
    """

    def __init__(self, folder: Path, result_folder: Path | None = None) -> None:
        self.folder = folder
        self._verdict = Verdict(result_folder) if result_folder else None
        # Of several processes only the first tells what happens.
        self._file = _open_events(folder) if is_first() else None

    def emit(self, event: str, **fields: Any) -> None:
        """Append one event; it is on its way to the disk when this returns."""
        if self._file is None:
            return
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": event, **fields}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def stage(self, name: str) -> None:
        """Say that the run has come to another stage."""
        self.emit("stage", name=name)
        log.info("%s", name.capitalize())

    def finish(self, result: dict[str, Any]) -> None:
        """Leave the result of a run that went through."""
        write_atomic(self.folder / "result.json", _shown(result))
        if self._verdict:
            self._verdict.finish(result)
        self.emit("finished", metrics=result["metrics"]["candidate"], model_dir=result["model_dir"])

    def fail(self, error: TrainerError) -> None:
        """Leave the reason of a run that did not."""
        path = self.folder / "error.json"
        if not (path.exists() and error.kind == "preempted"):  # it says what stopped the others
            write_atomic(path, _shown(_reason(error)))
        if self._verdict:
            self._verdict.fail(error)
        self.emit("failed", **_reason(error))


def _open_events(folder: Path) -> TextIO:
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("result.json", "error.json"):  # what an earlier attempt said about itself
        (folder / name).unlink(missing_ok=True)
    return open(folder / "events.jsonl", "a", encoding="utf-8")


def _reason(error: TrainerError) -> dict[str, Any]:
    return {"kind": error.kind, "message": error.message, "fix": error.fix, "retryable": error.retryable}


def _shown(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"
