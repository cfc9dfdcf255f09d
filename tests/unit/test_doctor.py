"""`phiflow doctor`: how its checks are told, and a real look at this machine."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows import doctor
from tasks.config import PipelineConfig
from tasks.platforms.errors import ConfigError, NotFoundError, PermissionDeniedError, TransientPlatformError
from tasks.platforms.local import checks
from tasks.platforms.local.checking import all_at_once, carried_out, failed, passed, warned
from tasks.platforms.upkeep import Check, Outcome

ROOT = Path(__file__).resolve().parents[2]


def outcomes(found: Iterator[Check]) -> list[tuple[str, str]]:
    """What a reader sees first."""
    return [(str(check.outcome), check.name) for check in found]


# Telling


def test_checks_at_once_are_told_in_their_order() -> None:
    """The slow first one is told first, and the others wait for nothing but it."""
    begun = threading.Event()

    def slow() -> Iterator[Check]:
        begun.wait(5)
        yield passed("slow", "")

    def quick() -> Iterator[Check]:
        begun.set()
        yield passed("quick", "")

    assert [check.name for check in all_at_once([("slow", slow), ("quick", quick)])] == ["slow", "quick"]


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ConfigError("compute.size is empty.", fix="Set it."), Outcome.FAIL),
        (TransientPlatformError("The service did not answer.", fix="Later."), Outcome.WARN),
        (NotFoundError("Nothing."), Outcome.WARN),
        (PermissionDeniedError("Sizes were refused to the caller: long."), Outcome.WARN),
        (ZeroDivisionError("division by zero\nand more"), Outcome.WARN),
    ],
)
def test_check_that_breaks_is_one_line(error: Exception, outcome: Outcome) -> None:
    """A mistake that was found fails; a look that went wrong warns; what was told before stays; nothing is raised."""

    def broken() -> Iterator[Check]:
        yield passed("first", "seen")
        raise error

    first, second = carried_out("broken", broken)
    assert (first.found, second.outcome) == ("seen", outcome)
    assert "\n" not in second.found


def examined(monkeypatch: pytest.MonkeyPatch, found: list[Check], *, as_json: bool = False) -> int:
    """Run `phiflow doctor` with what the platform says."""
    monkeypatch.setattr(doctor, "run_checks", lambda config: iter(found))
    return doctor.examine(ROOT / "deployments" / "local.yaml", [], as_json)


def test_fix_is_told_below_what_did_not_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line a check, its command below; the configuration is named in it as it was given."""
    found = [passed("python", "3.11"), warned("disk", "little", "Free some."), failed("w", "none", "phiflow up CONFIG")]
    assert examined(monkeypatch, found) == 4
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5].strip() for line in lines] == ["pass", "warn", "", "fail", "", "1 of"]
    assert lines[4].strip() == f"fix: phiflow up {ROOT / 'deployments' / 'local.yaml'}"


def test_nothing_failed_is_exit_code_0(monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning is no failure."""
    assert examined(monkeypatch, [warned("disk", "little")]) == 0


def test_json_is_one_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints every check with all its fields, and how many failed."""
    assert examined(monkeypatch, [passed("a", "b"), failed("c", "d", "e")], as_json=True) == 4
    told = json.loads(capsys.readouterr().out)
    assert told["failed"] == 1
    assert told["checks"][1] == {"name": "c", "outcome": "fail", "found": "d", "fix": "e", "failure": ""}


def test_mistake_in_the_configuration_is_not_a_check(tmp_path: Path) -> None:
    """A file that says nothing sensible is refused as for every command, with exit code 2."""
    file = tmp_path / "wrong.yaml"
    file.write_text("name: x\ncompte: {}\n")
    with pytest.raises(ConfigError) as caught:
        doctor.examine(file, [], False)
    assert caught.value.exit_code == 2


# This machine


def configured(home: Path, **sections: Any) -> PipelineConfig:
    """A local configuration in a state folder."""
    data = home.parent / "chats.jsonl"
    data.write_text("{}\n")
    values = {"name": "support", "platform": {"home": str(home)}, "data": {"source": str(data)}}
    return PipelineConfig.model_validate({**values, **sections})


def test_doctor_of_this_machine_makes_nothing(tmp_path: Path) -> None:
    """`phiflow doctor` with nothing built and nothing running: all told, nothing failed, no state folder made."""
    home = tmp_path / "home"
    command = [sys.executable, "-m", "flows", "doctor", "deployments/local.yaml", "--json", "--set"]
    done = subprocess.run(
        [*command, f"platform.home={home}"], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert set(told) == {"python", "packages", "disk", "environments", "ports", "services", "base model", "data"}
    assert "not built" in told["environments"]["found"]
    assert not home.exists()


def test_port_of_another_program_is_told_with_its_holder(tmp_path: Path) -> None:
    """A usual port that is taken only moves the service; one that is configured cannot move."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = configured(tmp_path / "home", chat={"port": port})
        found = list(checks.check_ports(tmp_path / "home", config))
    assert found[0].outcome == Outcome.FAIL
    assert f"chat.port {port} is in use by" in found[0].found


def test_missing_and_other_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lock is compared with what is installed; markers count, and what only Azure needs counts only there."""
    lock = tmp_path / "requirements.txt"
    lock.write_text(
        "typer==0.0.1\nnot-there-at-all==1.0\nazure-not-there==1.0\n"
        "nobody ==1 ; python_version < '3'\n# via nothing\n    # via typer\n"
    )
    monkeypatch.setattr(checks, "project_folder", lambda *parts: lock)
    missing, other = checks.check_packages(is_remote=False)
    assert (missing.outcome, missing.found) == (Outcome.FAIL, "not installed: not-there-at-all")
    assert other.outcome == Outcome.WARN and "for ==0.0.1" in other.found
    missing = next(iter(checks.check_packages(is_remote=True)))
    assert missing.found == "not installed: not-there-at-all, azure-not-there"


def test_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too little for a database fails; too little for the environments that are still to be built warns."""

    def with_free(num_bytes: int) -> Check:
        usage = type("Usage", (), {"free": num_bytes})
        monkeypatch.setattr(checks.shutil, "disk_usage", lambda path: usage)
        return next(iter(checks.check_disk(tmp_path / "home", ("training", "promptflow"))))

    assert with_free(50_000_000).outcome == Outcome.FAIL
    assert with_free(1_000_000_000).outcome == Outcome.WARN
    assert with_free(50_000_000_000).outcome == Outcome.PASS


def test_prefect_elsewhere_that_does_not_answer_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PREFECT_API_URL that leads nowhere is found before the run fails on it."""
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    found = next(iter(checks.check_services(tmp_path)))
    assert (found.outcome, found.fix) == (Outcome.FAIL, "unset PREFECT_API_URL")
