"""`phiflow down` as a person meets it: what it lists, asks, deletes and leaves; the platform is a list."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from flows import tear_down
from flows.cli import main
from flows.leftovers import show_leftovers
from tasks.config import PipelineConfig
from tasks.estimate.prices import hourly_cost
from tasks.platforms.errors import ConflictError, PermissionDeniedError, PhiflowError
from tasks.platforms.upkeep import Remainder, Removal, Scope, TearDown

SIZE = "Standard_E4s_v3"
EFFECT = "version 3 serves with 1 deployment(s); nothing will answer, and no version is left to roll back to"
ENDPOINT = Removal(kind="endpoint", name="support", location="support", effect=EFFECT, machines=(SIZE, SIZE))
REGISTRY = Removal(kind="container registry", name="phi0", location="/registries/phi0")
VAULT = Removal(kind="key vault", name="phi0", location="/vaults/phi0")


class Place:
    """A platform with things to delete.

    Attributes:
        errors: what is raised for a kind instead of deleting it.
        unseen: what is raised for a look.
    """

    def __init__(self, *removals: Removal) -> None:
        self.there = list(removals)
        self.errors: dict[str, BaseException] = {}
        self.remainders: tuple[Remainder, ...] = ()
        self.unseen: PhiflowError | None = None

    def plan(self, config: PipelineConfig, scope: Scope) -> TearDown:
        if self.unseen:
            raise self.unseen
        return TearDown(scope=scope, removals=tuple(self.there), remainders=self.remainders)

    def remove(self, config: PipelineConfig, removal: Removal) -> None:
        if removal.kind in self.errors:
            raise self.errors[removal.kind]
        self.there.remove(removal)


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """An endpoint, a registry and a vault."""
    place = Place(ENDPOINT, REGISTRY, VAULT)
    monkeypatch.setattr(tear_down, "plan_tear_down", place.plan)
    monkeypatch.setattr(tear_down, "remove", place.remove)
    return place


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A run on Azure."""
    file = tmp_path / "run.yaml"
    platform = {"kind": "azure", "subscription_id": "s", "resource_group": "g", "workspace": "w", "home": str(tmp_path)}
    text = json.dumps({"name": "support", "platform": platform, "data": {"source": str(file)}})
    file.write_text(text, encoding="utf-8")
    return file


def down(config: Path, *options: str) -> int:
    """Run the command, and return its exit code."""
    with pytest.raises(SystemExit) as ended:
        main(["down", str(config), *options])
    return int(ended.value.code or 0)


class Terminal(io.StringIO):
    """Somebody who types."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("given", [[], ["--scope", "everything"]])
def test_scope_must_be_one_of_the_four(given: list[str], config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a scope nothing is looked at, and the four are listed with what each deletes."""
    assert down(config, *given) == 2
    (line,) = capsys.readouterr().err.splitlines()
    for scope in ("chat: the chat app", "endpoint: ", "compute: ", "all: "):
        assert scope in line


def test_nothing_goes_before_somebody_agrees(
    place: Place, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thing is listed by name with what ends and what it costs; without a terminal and --yes it stops there."""
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n"))
    assert down(config, "--scope", "all") == 2
    said = capsys.readouterr()
    assert "there is no terminal to ask on" in said.err
    assert "--yes" in said.err
    assert EFFECT in said.out
    hour = hourly_cost(SIZE, 2)
    assert f"{hour:.2f} dollars an hour (2 x {SIZE})" in said.out
    assert f"Together {hour:.2f} dollars an hour ({hour * 730:.0f} a month) and " in said.out
    assert len(place.there) == 3


@pytest.mark.parametrize(("answer", "code", "left"), [("y\n", 0, 0), ("\n", 3, 3), ("n\n", 3, 3), ("", 3, 3)])
def test_person_is_asked(
    answer: str, code: int, left: int, place: Place, config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only a yes deletes; anything else is a refusal, exit code 3."""
    monkeypatch.setattr("sys.stdin", Terminal(answer))
    assert down(config, "--scope", "all") == code
    assert len(place.there) == left


def test_second_time_there_is_nothing(place: Place, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is gone is not deleted again; the exit code is 0, and what is left is told, what bills first."""
    place.remainders = (
        Remainder(kind="resource group", name="g", reason="phiflow did not make it"),
        Remainder(kind="cluster", name="theirs", reason="phiflow did not make it", bills=True, machines=(SIZE,)),
    )
    assert down(config, "--scope", "all", "--yes") == 0
    assert "Deleted endpoint support" in capsys.readouterr().out
    assert down(config, "--scope", "all", "--yes", "--json") == 0
    said = capsys.readouterr()
    assert "Nothing to delete of workspace w in resource group g" in said.err
    told = json.loads(said.out)
    assert told["deleted"] == []
    assert [one["name"] for one in told["left"]] == ["theirs", "g"]
    assert told["left"][0]["dollars_an_hour"] == hourly_cost(SIZE)


def test_failed_deletion_is_told_and_what_needs_not_wait_goes_on(
    place: Place, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A registry that cannot go does not keep the vault; the exit code is the failure's, and the registry is left."""
    place.errors["container registry"] = PermissionDeniedError("Registry phi0 was refused to the caller.")
    assert down(config, "--scope", "all", "--yes", "--json") == 4
    said = capsys.readouterr()
    told = json.loads(said.out)
    assert [one["kind"] for one in told["deleted"]] == ["endpoint", "key vault"]
    assert [(one["kind"], one["reason"]) for one in told["left"]] == [("container registry", "it was not deleted")]
    assert told["error"]["message"].startswith("Registry phi0")
    assert "error: Registry phi0 was refused" in said.err


def test_endpoint_that_a_run_holds_stops_everything(place: Place, config: Path) -> None:
    """While a run changes the endpoint, what it stands on must not go either."""
    place.errors["endpoint"] = ConflictError("support is being changed by run one.", fix="phiflow cancel")
    assert down(config, "--scope", "all", "--yes") == 4
    assert len(place.there) == 3


def test_interrupt_says_how_to_go_on(place: Place, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C ends the wait with exit code 130 and one line."""
    place.errors["container registry"] = KeyboardInterrupt()
    assert down(config, "--scope", "all", "--yes") == 130
    assert "the same command continues with the rest" in capsys.readouterr().out


def test_sweep_is_one_line_a_thing(capsys: pytest.CaptureFixture[str]) -> None:
    """Kind, name, why, cost, and after --delete what became of it."""
    leftover = {"kind": "model", "name": "support version 1", "reason": "old", "cost": "7.6 GB of storage"}
    told: dict[str, Any] = {
        "leftovers": [leftover | {"outcome": "kept: in use"}],
        "kept": ["Job x goes on."],
        "total": "",
    }
    show_leftovers(told | {"delete": True})
    assert capsys.readouterr().out.splitlines() == [
        "  model        support version 1: old; 7.6 GB of storage",
        "               kept: in use",
        "  Job x goes on.",
    ]
    show_leftovers(told | {"delete": False})
    assert "phiflow sweep --delete" in capsys.readouterr().out
    show_leftovers({"leftovers": [], "kept": [], "total": "", "delete": False})
    assert capsys.readouterr().out == "Nothing of phiflow's is unused.\n"


def test_nothing_is_deleted_when_not_all_can_be_seen(place: Place, config: Path) -> None:
    """What cannot be looked at is one line and exit code 4, before anything is deleted."""
    place.unseen = PhiflowError("Resource group g cannot be reached.")
    assert down(config, "--scope", "all", "--yes") == 4
    assert len(place.there) == 3
