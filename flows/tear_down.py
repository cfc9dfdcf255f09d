"""`phiflow down`: lists what it would delete and what that costs, asks, deletes it, and tells what is left."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flows.command import as_json_text, error_document, open_configuration
from flows.running_costs import RunningCosts
from tasks.config import PipelineConfig
from tasks.platforms.connect import plan_tear_down, remove
from tasks.platforms.errors import EXIT_REFUSED, ConfigError, PhiflowError
from tasks.platforms.upkeep import Remainder, Removal, Scope

INTERRUPTED = 130
_SCOPES = {
    Scope.CHAT: "the chat app",
    Scope.ENDPOINT: "the endpoint with its deployments, and the chat app",
    Scope.COMPUTE: "the cluster, its live jobs cancelled",
    Scope.ALL: "all of these, and what phiflow up made",
}
# While one of these is there, what stands below it must not go.
_STOPS_AT = ("chat app", "endpoint", "job", "cluster", "workspace")


@dataclass
class _Command:
    """One run of the command: what was asked, and what it tells at its end."""

    config: PipelineConfig
    scope: Scope
    as_json: bool
    costs: RunningCosts
    deleted: list[dict[str, Any]] = field(default_factory=list)
    failures: list[PhiflowError] = field(default_factory=list)

    def say(self, line: str = "") -> None:
        """A line for people, at once; standard output may be a document."""
        print(line, file=sys.stderr if self.as_json else sys.stdout, flush=True)


def take_down(path: Path | None, overrides: list[str] | None, scope: str, *, yes: bool, as_json: bool) -> int:
    """Delete what belongs to a scope, and return the exit code: 0 gone, 3 a person said no, else the first error's.

    Raises:
        ConfigError: no scope, or nobody to ask.
    """
    wanted = _read_scope(scope)
    config, _ = open_configuration(path, overrides)
    command = _Command(config, wanted, as_json, RunningCosts(config))
    found = plan_tear_down(config, wanted)
    if not found.removals:
        command.say(f"Nothing to delete of {_where(config)} with --scope {wanted}.")
        return _end(command, found.remainders, 0)
    _show_removals(command, found.removals)
    if not yes and not _agrees(command):
        command.say("Nothing was deleted.")
        return _end(command, found.remainders, EXIT_REFUSED)
    try:
        _delete(command, found.removals)
    except KeyboardInterrupt:
        command.say("Interrupted. What was begun goes on; the same command continues with the rest.")
        return INTERRUPTED
    left = plan_tear_down(config, wanted)
    remainders = [*left.remainders, *(_not_deleted(removal) for removal in left.removals)]
    return _end(command, remainders, command.failures[0].exit_code if command.failures else 0)


def _read_scope(scope: str) -> Scope:
    if scope in set(Scope):
        return Scope(scope)
    said = f"--scope {scope} is none of the four" if scope else "--scope is missing"
    listed = "; ".join(f"{one}: {about}" for one, about in _SCOPES.items())
    raise ConfigError(f"{said}.", fix=f"Say what goes. {listed}.")


def _where(config: PipelineConfig) -> str:
    place = config.platform
    if place.kind == "local":
        return f"configuration {config.name} on this machine"
    return f"workspace {place.workspace} in resource group {place.resource_group}, subscription {place.subscription_id}"


def _show_removals(command: _Command, removals: Sequence[Removal]) -> None:
    command.say(f"Deletes, of {_where(command.config)}:")
    for removal in removals:
        cost = str(command.costs.of(removal.kind, removal.machines))
        command.say(f"  {removal.kind:<20} {removal.name}")
        for line in filter(None, (removal.effect, cost)):
            command.say(f"  {'':<20} {line}")
    total = command.costs.total([command.costs.of(one.kind, one.machines) for one in removals])
    if total:
        command.say(total)


def _agrees(command: _Command) -> bool:
    """Ask; whoever cannot be asked must have said so before."""
    if not sys.stdin.isatty():
        raise ConfigError(
            "Nothing was deleted: there is no terminal to ask on.", fix="Look at the list, then add --yes."
        )
    print("Delete this? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _delete(command: _Command, removals: Sequence[Removal]) -> None:
    for removal in removals:
        what, started = f"{removal.kind} {removal.name}", time.monotonic()
        command.say(f"Deleting {what} ...")
        try:
            remove(command.config, removal)
        except PhiflowError as error:
            command.failures.append(error)
            print(f"error: {error}", file=sys.stderr, flush=True)
            if removal.kind in _STOPS_AT:
                return
            continue
        seconds = time.monotonic() - started
        command.say(f"Deleted {what} after {seconds:.0f} s.")
        command.deleted.append({"kind": removal.kind, "name": removal.name, "seconds": round(seconds, 1)})


def _not_deleted(removal: Removal) -> Remainder:
    bills = bool(removal.machines)
    return Remainder(
        kind=removal.kind,
        name=removal.name,
        reason="it was not deleted",
        bills=bills,
        fix="Run the same command again.",
        machines=removal.machines,
    )


def _end(command: _Command, left: Sequence[Remainder], code: int) -> int:
    """Tell what is left, what bills first."""
    told = []
    for remainder in sorted(left, key=lambda one: not one.bills):
        cost = command.costs.of(remainder.kind, remainder.machines)
        bills = str(cost) or ("bills" if remainder.bills else "costs nothing")
        command.say(f"Left: {remainder.kind} {remainder.name}: {'; '.join(filter(None, (remainder.reason, bills)))}")
        if remainder.fix:
            command.say(f"  {remainder.fix}")
        told.append(
            {
                "kind": remainder.kind,
                "name": remainder.name,
                "reason": remainder.reason,
                "bills": remainder.bills,
                "dollars_an_hour": cost.hour,
                "fix": remainder.fix,
            }
        )
    if command.as_json:
        document: dict[str, Any] = {"scope": str(command.scope), "deleted": command.deleted, "left": told}
        if command.failures:
            document["error"] = error_document(command.failures[0])
        print(as_json_text(document))
    return code
