"""`phiflow up`: checks, shows what would change and what it costs, makes it, and writes the ids into the file."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from flows.command import as_json_text, default_configuration, error_document, open_configuration, remember_run
from flows.doctor import naming
from tasks.platforms.connect import provisioning, run_checks
from tasks.platforms.errors import EXIT_PLATFORM, ConfigError, PhiflowError
from tasks.platforms.upkeep import Check, Outcome, ResourceChange

if TYPE_CHECKING:
    from tasks.config import PipelineConfig

INTERRUPTED = 130
Part = Literal["all", "owner", "engineer"]
_PARTS = ("all", "owner", "engineer")


@dataclass
class _Command:
    """One run of the command: what was asked, and what it tells at its end."""

    path: Path
    config: PipelineConfig
    origins: dict[str, str]
    part: Part
    as_json: bool
    told: dict[str, Any] = field(default_factory=dict)

    def say(self, line: str) -> None:
        """A line for people, at once; standard output may be a document."""
        print(line, file=sys.stderr if self.as_json else sys.stdout, flush=True)


def bring_up(
    path: Path | None, overrides: list[str] | None, part: str, *, what_if: bool, request_quota: bool, as_json: bool
) -> int:
    """Make the workspace of a configuration, or a part of it, and return the exit code.

    Raises:
        PhiflowError: nothing could be looked at, or a resource was refused; one line says which and why.
    """
    if part not in _PARTS:
        raise ConfigError(f"--part {part}: expected {', '.join(_PARTS)}.")
    path = path or default_configuration()
    config, origins = open_configuration(path, overrides)
    command = _Command(path, config, origins, cast("Part", part), as_json, {"part": part})
    if config.platform.kind == "local":
        command.say("This machine needs nothing made: environments and services are made by phiflow run.")
        return _end(command, 0)
    if request_quota:
        _request_quota(command)
    if failed := _failed_checks(command):
        error = PhiflowError(f"Nothing was made: {len(failed)} check(s) failed.", fix=failed[0].fix)
        command.told["error"] = error_document(error)
        return _end(command, EXIT_PLATFORM)
    code = _bring_up(command, what_if)
    if code == 0 and not what_if:
        remember_run(path, overrides or [])
    return _end(command, code)


def _end(command: _Command, code: int) -> int:
    if command.as_json:
        print(as_json_text(command.told))
    return code


def _request_quota(command: _Command) -> None:
    from tasks.platforms.connect import request_quota

    command.told["quota"] = []
    for line in request_quota(command.config):
        command.told["quota"].append(line)
        command.say(line)


def _failed_checks(command: _Command) -> list[Check]:
    """Look at everything that can be seen to go wrong; all that fails is told, not the first alone."""
    checks = []
    for found in run_checks(command.config, "up", command.part):
        check = naming(found, command.path)
        checks.append(check)
        if check.outcome != Outcome.PASS:
            word = "error" if check.outcome == Outcome.FAIL else "warning"
            print(f"{word}: {check.name}: {check.found.rstrip('.')}. {check.fix}".rstrip(), file=sys.stderr, flush=True)
    command.told["checks"] = [
        {"name": one.name, "outcome": str(one.outcome), "found": one.found, "fix": one.fix} for one in checks
    ]
    return [check for check in checks if check.outcome == Outcome.FAIL]


def _bring_up(command: _Command, what_if: bool) -> int:
    made = provisioning(command.config)
    if what_if:
        _show_changes(command, made.plan(command.part), made.rights(command.part))
        return 0
    command.told["done"] = []
    try:
        _say_each(command, made.await_running())
        changes = made.plan(command.part)
        _show_changes(command, changes, made.rights(command.part))
        _say_each(command, made.apply(command.part, changes) if changes else ())
    except KeyboardInterrupt:
        for line in made.how_to_stop():
            print(line, file=sys.stderr)
        return INTERRUPTED
    _write_ids(command, made.outputs())
    engineer = f"phiflow up {command.path} --part engineer"
    command.say(f"Next: {engineer if command.part == 'owner' else f'phiflow run {command.path}'}")
    return 0


def _say_each(command: _Command, lines: Iterable[str]) -> None:
    for line in lines:
        command.told["done"].append(line)
        command.say(f"  {line}")


def _show_changes(command: _Command, changes: tuple[ResourceChange, ...], rights: str) -> None:
    place = command.config.platform
    assert place.kind == "azure"
    where = f"workspace {place.workspace} in resource group {place.resource_group}"
    command.told["changes"] = [
        {"action": one.action, "kind": one.kind, "name": one.name, "id": one.location, "detail": one.detail}
        for one in changes
    ]
    if not changes:
        command.say(f"Nothing to change for {where}.")
        return
    command.say(f"For {where}; whoever makes it is {rights}:")
    for one in changes:
        command.say(f"  {one.action:<8}{one.kind:<22}{one.name}{f' ({one.detail})' if one.detail else ''}")
    if any(one.action == "create" for one in changes):
        _show_costs(command)


def _show_costs(command: _Command) -> None:
    """What it bills without any run; a cluster costs while a job runs."""
    from tasks.estimate.prices import hourly_cost, load_prices, standing_costs

    config, prices = command.config, load_prices(command.config)
    costs = standing_costs(config, prices)
    command.told["costs"] = [{"name": one.name, "low": one.low, "high": one.high, "why": one.why} for one in costs]
    for one in costs:
        command.say(f"  costs   {one.name:<22}{one.low:.2f} to {one.high:.2f} dollars a month: {one.why}")
    compute = config.compute
    if compute.size and compute.min_instances:
        an_hour = hourly_cost(compute.size, compute.min_instances, compute.tier, prices)
        told = "a price that is not known" if an_hour is None else f"{an_hour:.2f} dollars"
        command.say(
            f"  costs   {'cluster':<22}{told} an hour, always: compute.min_instances is {compute.min_instances}"
        )
    low, high = sum(one.low for one in costs), sum(one.high for one in costs)
    command.say(f"  costs   together {low:.2f} to {high:.2f} dollars a month while nothing runs, by {prices.about()}")


def _write_ids(command: _Command, values: dict[str, str]) -> None:
    """Put into the file what it does not have; what comes from elsewhere and is right stays there."""
    from tasks.config_edit import as_yaml, set_values

    flat = {key: _value(command.config, key) for key in values}
    elsewhere = {
        key: origin
        for key in values
        if (origin := command.origins.get(key, "default")) not in ("default", str(command.path))
        and flat[key] == values[key]
    }
    wanted = {key: value for key, value in values.items() if key not in elsewhere}
    written: tuple[str, ...] = ()
    reason = ""
    try:
        written = set_values(command.path, wanted)
    except ConfigError as error:
        reason = str(error)
    command.told["configuration"] = {
        "file": str(command.path),
        "values": values,
        "written": list(written),
        "elsewhere": elsewhere,
        "not_written": reason,
    }
    if written:
        command.say(f"Wrote into {command.path}: {', '.join(written)}")
    if reason:
        command.say(f"{reason} Put this into it:")
    elif elsewhere:
        sources = ", ".join(dict.fromkeys(elsewhere.values()))
        command.say(f"Not written, since they come from {sources}; in the file they would be:")
    if reason or elsewhere:
        command.say(as_yaml(wanted if reason else {key: values[key] for key in elsewhere}))


def _value(config: PipelineConfig, dotted: str) -> str:
    found: Any = config
    for key in dotted.split("."):
        found = getattr(found, key)
    return str(found)
