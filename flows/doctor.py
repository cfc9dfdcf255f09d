"""`phiflow doctor`: each check as it is known, one line and the command that mends it below."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

from flows.command import as_json_text, default_configuration, open_configuration
from flows.show import show_check
from tasks.config import PipelineConfig
from tasks.platforms.connect import run_checks
from tasks.platforms.errors import EXIT_PLATFORM, PhiflowError
from tasks.platforms.upkeep import Check, Outcome


def examine(path: Path | None, overrides: list[str] | None, as_json: bool) -> int:
    """Check a configuration and return the exit code: 0 when nothing failed, else 4.

    Raises:
        ConfigError: the configuration itself is wrong.
    """
    path = path or default_configuration()
    config, _ = open_configuration(path, overrides)
    checks = []
    for check in _checks(config):
        checks.append(naming(check, path))
        if not as_json:
            show_check(checks[-1])
    num_failed = sum(check.outcome == Outcome.FAIL for check in checks)
    if as_json:
        print(as_json_text({"checks": [asdict(check) for check in checks], "failed": num_failed}))
    elif num_failed:
        print(f"{num_failed} of {len(checks)} checks failed.")
    else:
        print("Nothing failed.")
    return EXIT_PLATFORM if num_failed else 0


def naming(check: Check, path: Path) -> Check:
    """The check with the configuration's path in its command, which knows it as CONFIG."""
    return replace(check, fix=check.fix.replace("CONFIG", str(path)))


def _checks(config: PipelineConfig) -> Iterator[Check]:
    """The platform's checks; what keeps them from beginning is told as one."""
    try:
        yield from run_checks(config)
    except PhiflowError as error:
        failure = str(error.failure or "")
        yield Check(name="platform", outcome=Outcome.FAIL, found=error.message, fix=error.fix, failure=failure)
