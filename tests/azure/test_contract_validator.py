"""The judge of exchanges: it passes what the live service was recorded saying, and finds what is planted in it."""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.azure_contract.__main__ import main
from tests.azure_contract.allowlist import ALLOWED
from tests.azure_contract.calls import count_calls
from tests.azure_contract.exchange import Exchange
from tests.azure_contract.judge import Judge, contract_folder, unjudged
from tests.azure_contract.presence import Asked, note_asked

# What a client must say, and texts that are one of a few, by the names that they have in the service's documentation.
_REQUIRED = {
    "jobType",
    "command",
    "environmentId",
    "dataUri",
    "dataType",
    "datastoreType",
    "credentialsType",
    "authMode",
}
_CHOICES = {
    "status", "provisioningState", "authMode", "mode", "osType", "environmentType", "publicNetworkAccess",
    "createdByType", "serviceDataAccessAuthIdentity", "vmPriority", "remoteLoginPortPublicAccess",
}  # fmt: skip
_DISCRIMINATORS = {"jobType", "dataType", "datastoreType", "jobInputType", "jobOutputType", "endpointComputeType"}
# In these objects a client may have any key.
_OPEN = {"tags", "properties", "traffic", "mirrorTraffic", "inputs", "outputs", "services", "environmentVariables",
         "userAssignedIdentities", "parameters", "flavors", "data", "additionalInfo", "info", "value"}  # fmt: skip
Change = tuple[str, Callable[[Any], None]]


@pytest.fixture(scope="module")
def judge() -> Judge:
    """The judge, with all that it knows."""
    folder = contract_folder()
    if folder is None:
        pytest.skip("Microsoft's descriptions of Azure are not on this machine: set PHIFLOW_AZURE_CONTRACT")
    return Judge(folder)


def test_the_recordings_of_the_live_service_pass(judge: Judge) -> None:
    """Almost three of four recorded exchanges have no problem at all, and the rest is on the allowlist."""
    judged = [exchange for exchange in judge.recordings if unjudged(exchange) is None]
    assert len(judged) > 500
    clean = [exchange for exchange in judged if not judge.all_problems(exchange)]
    assert len(clean) / len(judged) > 0.72
    assert judge.findings(judged) == []


def test_nothing_is_allowed_that_never_occurs(judge: Judge) -> None:
    """Every entry of the allowlist that says so covers something recorded; the others say why they cannot."""
    problems = [(one, problem) for one in judge.recordings for problem in judge.all_problems(one)]
    for entry in ALLOWED:
        assert any(entry.covers(*one) for one in problems) == entry.recorded, entry.why


@pytest.mark.parametrize(
    ("kind", "least"),
    [
        ("required", 1.0),
        ("type", 0.95),
        ("unknown", 0.95),
        ("choice", 0.95),
        ("discriminator", 0.95),
        ("silence", 0.87),
    ],
)
def test_planted_mistakes_are_found(judge: Judge, kind: str, least: float) -> None:
    """One mistake at a time, in recorded exchanges: the share that is found."""
    found: Counter[bool] = Counter()
    missed: Counter[str] = Counter()
    for exchange in _samples(judge):
        before = Counter(judge.problems(exchange))
        for place, mutant in _mutants(exchange, kind):
            known = bool(Counter(judge.problems(mutant)) - before)
            found[known] += 1
            if not known:
                missed[f"{exchange.operation} {exchange.status} {place}"] += 1
    assert found.total() >= 10
    share = found[True] / found.total()
    print(f"{kind}: {found[True]} of {found.total()} = {share:.3f}")
    assert share >= least, f"{share:.3f} of {found.total()}; missed {sorted(missed)}"


def test_a_lost_header_is_found(judge: Judge) -> None:
    """Without the address of its operation, an endpoint's creation cannot be followed."""
    made = next(one for one in judge.recordings if one.operation == "PUT workspaces/*/onlineEndpoints/*")
    places = {problem.place for problem in judge.problems(replace(made, headers=frozenset()))}
    assert places == {"header.azure-asyncoperation", "header.location"}


def test_wrong_paths_queries_and_statuses_are_found(judge: Judge) -> None:
    """What no description has is a finding, not silence."""
    made = next(one for one in judge.recordings if one.operation == "PUT workspaces/*/onlineEndpoints/*")

    def rules(**changes: Any) -> set[str]:
        return {problem.rule for problem in judge.problems(replace(made, **changes))}

    assert rules() == set()
    assert rules(path=made.path.replace("onlineEndpoints", "onlineEndpoint")) == {"operation"}
    assert rules(path=f"{made.path}--_!") == {"name"}
    assert rules(query={**made.query, "force": "true"}) == {"query"}
    assert "status" in rules(status=203)
    assert rules(request=None) >= {"required"}
    assert rules(response=None) >= {"required"}
    assert rules(status=404, response={"message": "no such thing"}) == {"unknown"}


def test_versions_without_swagger_are_judged_by_bicep(judge: Judge) -> None:
    """A job of the version in which the SDK submits: its name is no Swagger's, its mistakes are found all the same."""
    recorded = [one for one in judge.recordings if one.operation == "PUT workspaces/*/jobs/*"]
    assert recorded
    for one in recorded:
        now = replace(one, query={"api-version": "2025-01-01-preview"})
        assert judge.swagger.exact(now) is None and judge.bicep.knows(now)
        before = Counter(judge.problems(now))
        assert {problem.place.rpartition(".")[2] for problem in before} <= {"autologgerSettings"}
        for kind in ("required", "choice", "discriminator", "type"):
            mutants = list(_mutants(now, kind))
            assert mutants
            missed = {place for place, mutant in mutants if not Counter(judge.problems(mutant)) - before}
            # Of the parameters, which only the service fills, the types say nothing.
            assert missed <= {"response.properties.parameters"}, kind


def test_polls_are_counted_apart() -> None:
    """A read of what was under way is a poll; the first read, and one of what has ended, are calls."""
    job = "/subscriptions/s/resourceGroups/g/providers/Microsoft.MachineLearningServices/workspaces/w/jobs/j"
    states = ["Running", "Running", "Completed", "Completed"]
    reads = [Exchange("GET", job, {}, None, 200, {"properties": {"status": state}}) for state in states]
    status = "/subscriptions/s/providers/Microsoft.MachineLearningServices/locations/l/mfeOperationsStatus/o"
    calls = count_calls([*reads, Exchange("GET", status, {}, None, 200, {"status": "Succeeded"})])
    assert calls.asked == {"GET workspaces/*/jobs/*": 2}
    assert calls.polling == {"GET workspaces/*/jobs/*": 2, "GET locations/*/mfeOperationsStatus/*": 1}


def test_the_command_prints_findings_and_calls(
    judge: Judge, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A log with one wrong answer and one exchange that nothing describes: both are told, and the call is counted."""
    made = next(one for one in judge.recordings if one.operation == "PUT workspaces/*/onlineEndpoints/*")
    wrong = copy.deepcopy(made.response)
    wrong["properties"]["provisioningState"] = "Ready"
    lines = [
        _line(made, made.response),
        _line(made, wrong),
        _line(replace(made, method="GET", path="/history/v1.0/runs/x/details"), {}),
    ]
    log = tmp_path / "exchanges.jsonl"
    log.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    assert main([str(log)]) == 1
    printed = capsys.readouterr().out.splitlines()
    operation = "PUT workspaces/*/onlineEndpoints/*"
    place = "response.properties.provisioningState"
    assert printed[0].startswith(f"{operation} 2022-02-01-preview 201: {place}: enum: 'Ready' is none of Creating")
    assert printed[1:3] == [
        "2 exchanges judged, 1 kinds of findings.",
        "1 not judged: run history: not in the published Swagger of Machine Learning; the SDK's own client reads it.",
    ]
    assert f"| {operation} | 2 | 0 |" in printed
    assert printed[-1] == "| all | 2 | 0 |"


def _line(exchange: Exchange, response: Any) -> dict[str, Any]:
    headers = dict.fromkeys(exchange.headers, "x")
    return {
        "method": exchange.method,
        "path": exchange.path,
        "query": exchange.query,
        "status": exchange.status,
        "request": {"headers": {}, "body": exchange.request},
        "response": {"headers": headers, "body": response},
    }


def _samples(judge: Judge) -> list[Exchange]:
    """Two exchanges of each kind that the judge passes."""
    chosen: dict[tuple[str, int], list[Exchange]] = {}
    for exchange in judge.recordings:
        ours = "MachineLearningServices" in exchange.path and unjudged(exchange) is None
        of_kind = chosen.setdefault((exchange.operation, exchange.status), [])
        if ours and len(of_kind) < 2:
            of_kind.append(exchange)
    return [exchange for of_kind in chosen.values() for exchange in of_kind]


def _mutants(exchange: Exchange, kind: str) -> Iterator[tuple[str, Exchange]]:
    """Copies of an exchange with one mistake each, and where it is."""
    for side in ("request", "response"):
        body = getattr(exchange, side)
        for path in _objects(body):
            for name, change in _changes(kind, side, path, _at(body, path)):
                mutated = copy.deepcopy(body)
                change(_at(mutated, path))
                yield f"{side}.{'.'.join(map(str, path))}.{name}", replace(exchange, **{side: mutated})


def _changes(kind: str, side: str, path: tuple[str | int, ...], found: dict[str, Any]) -> Iterator[Change]:
    inside = path[-1] if path else ""
    # Below `properties` of a resource are those that are described; below its `properties` are the client's own.
    described = inside not in _OPEN or path in (("properties",), ("value", 0, "properties"))
    if kind == "unknown" and described and (not path or "properties" in path or "systemData" in path):
        yield "surprise", lambda value: value.update(surprise=1)
    for name, old in found.items():
        needed = kind == "required" and side == "request" and name in _REQUIRED
        if needed or (kind == "silence" and side == "response" and described and old not in (None, "", [], {})):
            yield name, lambda value, name=name: value.pop(name)
        elif kind == "type" and described and isinstance(old, str | bool | list):
            yield name, lambda value, name=name: value.update({name: {"not": "this"}})
        elif kind == "type" and described and isinstance(old, dict):
            yield name, lambda value, name=name: value.update({name: "not this"})
        elif kind == "choice" and described and name in _CHOICES and isinstance(old, str):
            yield name, lambda value, name=name: value.update({name: "NoSuchChoice"})
        elif kind == "discriminator" and name in _DISCRIMINATORS:
            yield name, lambda value, name=name: value.update({name: "NoSuchKind"})


def _objects(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if isinstance(value, dict):
        yield path
        for key, item in value.items():
            yield from _objects(item, (*path, key))
    elif isinstance(value, list):
        for number, item in enumerate(value[:1]):
            yield from _objects(item, (*path, number))


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for step in path:
        value = value[step]
    return value


def test_what_a_template_asks_for_counts_as_asked() -> None:
    """A cluster that a template made may be told with the identity that the template gave it."""
    identity = {"type": "UserAssigned", "userAssignedIdentities": {"[parameters('id')]": {}}}
    kind = "Microsoft.MachineLearningServices/workspaces/computes"
    template = {"resources": [{"type": kind, "identity": identity}]}
    path = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Resources/deployments/d"
    request = {"properties": {"mode": "Incremental", "template": template}}
    asked: Asked = {}
    note_asked(Exchange("PUT", path, {}, request, 201, None), asked)
    assert "response.identity.userAssignedIdentities" in asked["workspaces/computes"]
