"""The values of upkeep: what was checked, what `phiflow up` would change, what goes, stays or lies unused. No I/O.

The values that flow through a run are in `refs`.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Outcome(StrEnum):
    PASS = "pass"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that a run, or `phiflow up`, needs: what was found, and the command that mends it.

    `failure` is the class that `tasks.platforms.errors.Failure` names, or empty.
    """

    name: str
    outcome: Outcome
    found: str
    fix: str = ""
    failure: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ResourceChange:
    """What `phiflow up` would do to one resource: `action` is create, modify, or unknown where nobody can say.

    `detail` names what of it would change.
    """

    action: str
    kind: str
    name: str
    location: str
    detail: str = ""


class LeftoverKind(StrEnum):
    """What a sweep looks for."""

    DEPLOYMENT = "deployment"
    ENDPOINT = "endpoint"
    CLUSTER = "cluster"
    JOB = "job"
    MODEL = "model"
    CHECKPOINTS = "checkpoints"
    ENVIRONMENT = "environment"
    DATA = "data"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leftover:
    """Something phiflow made and nobody uses.

    `location` is where the platform finds it again; `cost` says what it costs while it is there, or is empty.
    `machines` has the size of each machine that bills meanwhile, `runs` the ids of the runs that want a job.
    """

    kind: LeftoverKind
    name: str
    reason: str
    location: str
    cost: str = ""
    machines: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


class Scope(StrEnum):
    """How much a tear-down deletes."""

    CHAT = "chat"
    ENDPOINT = "endpoint"
    COMPUTE = "compute"
    ALL = "all"


@dataclass(frozen=True, slots=True, kw_only=True)
class Removal:
    """One thing that a tear-down deletes.

    `location` is where the platform finds it again, `effect` what ends with it, for people, and `machines` the size of
    each machine that bills while it is there.
    """

    kind: str
    name: str
    location: str
    effect: str = ""
    machines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Remainder:
    """Something that a tear-down leaves, why, and whether it costs anything; `fix` says how it would go."""

    kind: str
    name: str
    reason: str
    bills: bool = False
    fix: str = ""
    machines: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TearDown:
    """What a tear-down of one scope deletes, in this order, and what it leaves."""

    scope: Scope
    removals: tuple[Removal, ...]
    remainders: tuple[Remainder, ...]
