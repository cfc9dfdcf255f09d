"""The judgement of exchanges by Swagger, Bicep's types and recordings; what none of them covers is said, not passed."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from tests.azure_contract.allowlist import ALLOWED, UNJUDGED
from tests.azure_contract.bicep import BicepTypes
from tests.azure_contract.exchange import Exchange, recorded
from tests.azure_contract.presence import Asked, Presence, note_asked
from tests.azure_contract.reading import Problem, Reading
from tests.azure_contract.schemas import read
from tests.azure_contract.swagger import Swagger, read_request, read_response

ROOT = Path(__file__).resolve().parents[2]
_STATUS = re.compile(r"operations?status(es)?$", re.IGNORECASE)
_RESULT = re.compile(r"operationresults$", re.IGNORECASE)
# The common types say text; a client that waits for one of the first three waits for ever for any other.
_STATES = ("Succeeded", "Failed", "Canceled", "InProgress", "Creating", "Updating", "Deleting", "Running", "Accepted")


@dataclass(frozen=True)
class Finding:
    """A problem of an exchange, as one line."""

    operation: str
    version: str
    status: int
    problem: Problem

    def __str__(self) -> str:
        place = re.sub(r"\[\d+\]", "[]", self.problem.place)
        return f"{self.operation} {self.version} {self.status}: {place}: {self.problem.rule}: {self.problem.what}"


def unjudged(exchange: Exchange) -> str | None:
    """Why nothing here describes an exchange; None when something should."""
    return next((why for pattern, why in UNJUDGED if re.search(pattern, exchange.path, re.IGNORECASE)), None)


def contract_folder() -> Path | None:
    """Where Microsoft's descriptions and the recordings are; None when this machine has none."""
    named = os.environ.get("PHIFLOW_AZURE_CONTRACT")
    folder = Path(named) if named else ROOT.parent / "shared" / "azure-contract"
    return folder if (folder / "specs").is_dir() else None


class Judge:
    """Knows the contract.

    Args:
        folder: has specs, bicep-types and recordings.
    """

    def __init__(self, folder: Path) -> None:
        self.swagger = Swagger(folder / "specs")
        self.bicep = BicepTypes(folder / "bicep-types")
        self.recordings = [exchange for exchange in recorded(folder / "recordings") if exchange.managed]
        self.presence = Presence()
        for exchange in self.recordings:
            reading = Reading("response")
            self._read_response(exchange, reading)
            self.presence.learn(exchange, reading.shapes)

    def findings(self, exchanges: Iterable[Exchange]) -> list[Finding]:
        """What is wrong with the exchanges of one service: each kind of problem once, in the order of the first."""
        found: dict[str, Finding] = {}
        asked: Asked = {}
        for exchange in exchanges:
            if unjudged(exchange) is None:
                note_asked(exchange, asked)
                for problem in self.problems(exchange, asked):
                    finding = Finding(exchange.operation, exchange.version, exchange.status, problem)
                    found.setdefault(f"{finding.operation} {_where(problem)} {problem.rule}", finding)
        return list(found.values())

    def problems(self, exchange: Exchange, set_by_clients: Asked | None = None) -> list[Problem]:
        """What is wrong with an exchange besides what is known and allowed."""
        return [
            problem
            for problem in self.all_problems(exchange, set_by_clients)
            if not any(allowed.covers(exchange, problem) for allowed in ALLOWED)
        ]

    def all_problems(self, exchange: Exchange, set_by_clients: Asked | None = None) -> list[Problem]:
        """What is wrong with an exchange, allowed or not."""
        request, response = Reading("request"), Reading("response")
        self._read_request(exchange, request)
        # A response that was lost has no status, and one that a test put in the service's place is the test's.
        scripted = exchange.scenario == "status"
        if exchange.status and not scripted:
            self._read_response(exchange, response)
            response.problems += self.presence.judge(exchange, response.shapes, set_by_clients or {})
        # What is refused for being wrong may be wrong.
        refused = 400 <= exchange.status < 500 and not scripted
        return ([] if refused else request.problems) + response.problems

    def _read_request(self, exchange: Exchange, reading: Reading) -> None:
        if operation := self.swagger.exact(exchange):
            read_request(operation, exchange, reading)
        elif self.bicep.knows(exchange):
            self.bicep.read_request(exchange, reading)
        elif operation := self.swagger.nearest(exchange):
            read_request(operation, exchange, reading)
        elif not _is_kind(_STATUS, exchange) and not _is_kind(_RESULT, exchange):
            reading.note("path", "operation", f"no description has {exchange.method} {exchange.path}")

    def _read_response(self, exchange: Exchange, reading: Reading) -> None:
        operation = self.swagger.exact(exchange)
        if _is_kind(_RESULT, exchange):
            self._read_result(exchange, reading)
        elif _is_kind(_STATUS, exchange):
            if exchange.status != 202 or exchange.response is not None:
                read(self.swagger.operation_status, exchange.response, "response", reading, required=True)
                state = exchange.response.get("status") if isinstance(exchange.response, dict) else None
                if isinstance(state, str) and state not in _STATES:
                    reading.note("response.status", "enum", f"{state!r} is none of {', '.join(_STATES)}")
        elif operation is None and exchange.status < 400 and self.bicep.knows(exchange):
            self.bicep.read_response(exchange, reading)
        elif operation := operation or self.swagger.nearest(exchange):
            read_response(operation, exchange, reading)

    def _read_result(self, exchange: Exchange, reading: Reading) -> None:
        """What an operation ends in is nothing, or what its resource is when it is read."""
        if exchange.status not in (200, 202, 204) and exchange.status < 400:
            reading.note("status", "status", f"{exchange.status} is none of 200, 202, 204")
        if exchange.response is None:
            return
        resource_id = exchange.response.get("id") if isinstance(exchange.response, dict) else None
        if not isinstance(resource_id, str):
            reading.note("response.id", "required", "is missing")
        else:
            self._read_response(replace(exchange, path=resource_id), reading)


def _is_kind(pattern: re.Pattern[str], exchange: Exchange) -> bool:
    kinds = exchange.segments[0::2]
    return exchange.method == "GET" and bool(kinds) and bool(pattern.search(kinds[-1]))


def _where(problem: Problem) -> str:
    return re.sub(r"\[\d+\]", "[]", problem.place)
