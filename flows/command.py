"""What every command needs: its configuration, and how an error is told."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.errors import EXIT_BUG, PhiflowError

if TYPE_CHECKING:
    from tasks.config import PipelineConfig

LAST_RUN = "last-run"


def open_configuration(path: Path | None, overrides: list[str] | None = None) -> tuple[PipelineConfig, dict[str, str]]:
    """Resolve the configuration named, else the one last run, else the default, with each value's origin."""
    from tasks.config_files import resolve_config

    if path is None:
        overrides = [*(last_run()[1] if not overrides else []), *(overrides or [])]
    return resolve_config(path or last_run()[0], overrides)


def default_configuration() -> Path:
    """The configuration that ships as the default."""
    from tasks.platforms.connect import project_folder

    return project_folder("deployments", "local.yaml")


def remember_run(path: Path, overrides: list[str]) -> None:
    """Make this the configuration of commands that name none."""
    from tasks.platforms.connect import home_folder
    from trainer.files import write_atomic

    write_atomic(home_folder() / f"{LAST_RUN}.json", json.dumps({"config": str(path.absolute()), "set": overrides}))


def last_run() -> tuple[Path, list[str]]:
    """The configuration last run here, with its overrides."""
    from tasks.platforms.connect import home_folder

    try:
        record = json.loads((home_folder() / f"{LAST_RUN}.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return default_configuration(), []
    path = Path(record["config"])
    return (path, list(record["set"])) if path.exists() else (default_configuration(), [])


def as_json_text(document: Any) -> str:
    """One JSON document; what is not a finite number becomes null, since JSON has no word for it."""

    def finite(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: finite(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return [finite(entry) for entry in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return json.dumps(finite(document), indent=2, ensure_ascii=False)


def error_document(error: BaseException) -> dict[str, Any]:
    """What `--json` says of an error."""
    if not isinstance(error, PhiflowError):
        return {"kind": type(error).__name__, "message": str(error), "fix": "", "detail": [], "exit_code": EXIT_BUG}
    told: dict[str, Any] = {
        "kind": type(error).__name__,
        "message": error.message,
        "fix": error.fix,
        "detail": error.detail,
    }
    told |= {"failure": str(error.failure or ""), "retryable": error.may_go_through}
    return told | {"exit_code": error.exit_code}


def report_error(error: PhiflowError, *, as_json: bool) -> int:
    """Print one line, what belongs below it, and return the exit code."""
    print(f"error: {error}", file=sys.stderr)
    for line in error.detail:
        print(f"  {line}", file=sys.stderr)
    if as_json:
        print(as_json_text({"error": error_document(error)}))
    return error.exit_code
