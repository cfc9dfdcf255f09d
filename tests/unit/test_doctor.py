"""`phiflow doctor`: what its checks read out of what they are given, how they are told, a real look at this machine."""

from __future__ import annotations

import base64
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from flows import doctor
from tasks.config import ModelConfig, PipelineConfig
from tasks.platforms.errors import ConfigError, NotFoundError, PermissionDeniedError, TransientPlatformError
from tasks.platforms.local import checks, checks_hub
from tasks.platforms.local.checking import all_at_once, carried_out, failed, passed, warned
from tasks.platforms.refs import Check, Outcome

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


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, tuple[int, Any, dict[str, str]]]]:
    """A hub on loopback that answers as told: status, body and headers by path."""
    answers: dict[str, tuple[int, Any, dict[str, str]]] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body, headers = answers.get(self.path.partition("?")[0], (404, {}, {}))
            content = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    from huggingface_hub import constants, file_download, hf_api

    url = f"http://127.0.0.1:{server.server_port}"
    for module in (constants, hf_api, file_download):
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            if hasattr(module, name):
                value = url if name == "ENDPOINT" else url + "/{repo_id}/resolve/{revision}/{filename}"
                monkeypatch.setattr(module, name, value)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    yield answers
    server.shutdown()


SHA = "0123456789abcdef0123456789abcdef01234567"


def model_of(answers: dict[str, Any], *files: str, **more: Any) -> ModelConfig:
    """Have the hub know a model."""
    siblings = [{"rfilename": name} for name in ("config.json", *files)]
    body = {"id": "org/model", "sha": SHA, "siblings": siblings, "cardData": {"license": "mit"}, **more}
    answers["/api/models/org/model"] = (200, body, {})
    return ModelConfig(base="org/model")


def test_model_on_the_hub_is_told_with_licence_and_template(hub: dict[str, Any]) -> None:
    """A template file, or one in the tokenizer's configuration, will do; none will not."""
    model = model_of(hub, "chat_template.jinja")
    (found,) = checks_hub.check_base_model(model)
    assert (found.outcome, found.found) == (
        Outcome.PASS,
        "org/model at 0123456789ab, licence mit, with a chat template",
    )
    model = model_of(hub, "tokenizer_config.json")
    hub[f"/org/model/resolve/{SHA}/tokenizer_config.json"] = (200, {"chat_template": "{{ x }}"}, {})
    assert outcomes(checks_hub.check_base_model(model)) == [("pass", "base model")]
    hub[f"/org/model/resolve/{SHA}/tokenizer_config.json"] = (200, {}, {})
    (found,) = checks_hub.check_base_model(model)
    assert found.outcome == Outcome.FAIL and "has no chat template" in found.found


@pytest.mark.parametrize(
    ("secret", "words"),
    [(None, "and set HF_TOKEN"), ("", "and platform.hub_token_secret: hub-token"), ("mine", "--name mine --file FILE")],
)
def test_gated_model_is_told_with_its_page(hub: dict[str, Any], secret: str | None, words: str) -> None:
    """What the hub keeps closed names the page that opens it, and where the token belongs."""
    model = model_of(hub, "chat_template.jinja", gated="manual")
    hub[f"/org/model/resolve/{SHA}/config.json"] = (403, {}, {"X-Error-Code": "GatedRepo"})
    (found,) = checks_hub.check_base_model(model, secret)
    assert found.outcome == Outcome.FAIL and "gated" in found.found
    assert "/org/model" in found.fix and found.fix.endswith(words)


def test_folder_without_chat_template_is_told(tmp_path: Path) -> None:
    """A model folder is looked at as the hub is."""
    (tmp_path / "config.json").write_text("{}")
    (found,) = checks_hub.check_base_model(ModelConfig(base=str(tmp_path)))
    assert found.outcome == Outcome.FAIL
    (tmp_path / "tokenizer_config.json").write_text('{"chat_template": "{{ x }}"}')
    assert outcomes(checks_hub.check_base_model(ModelConfig(base=str(tmp_path)))) == [("pass", "base model")]


def test_model_too_large_for_this_machine_is_told(hub: dict[str, Any], tmp_path: Path) -> None:
    """Sixteen bytes a parameter, of which the hub knows the number."""
    model_of(hub, safetensors={"parameters": {"BF16": 10**12}, "total": 10**12})
    (found,) = checks_hub.check_memory(configured(tmp_path / "home", model={"base": "org/model"}))
    assert found.outcome == Outcome.WARN and "1000.0 billion parameters take about 16000 GB" in found.found


# Azure: what is read out of answers

azure = pytest.importorskip("azure.ai.ml", reason="the packages for Azure are not installed")


@pytest.mark.parametrize(
    ("pattern", "action", "matched"),
    [
        ("*", "Microsoft.Authorization/roleAssignments/write", True),
        ("*/read", "Microsoft.Storage/storageAccounts/read", True),
        ("Some.Service/workspaces/*/write", "Some.Service/workspaces/jobs/write", True),
        ("Some.Service/workspaces/*/write", "Some.Service/workspaces/jobs/runs/write", True),
        ("Some.Service/workspaces/*/read", "some.service/workspaces/read", True),
        ("Some.Service/workspaces/*/write", "Some.Service/registries/write", False),
        ("Microsoft.Authorization/*/Write", "Microsoft.Authorization/roleAssignments/write", True),
        ("Microsoft.Storage/storageAccounts", "Microsoft.Storage/storageAccounts/write", False),
    ],
)
def test_actions_match_patterns(pattern: str, action: str, matched: bool) -> None:
    """Wildcards stand for any text, case does not count, and `a/*/b` is `a/b` too."""
    from tasks.platforms.azure.checks.permissions import matches

    assert matches(pattern, action) is matched


def test_rights_are_those_of_any_role() -> None:
    """A role's exceptions take away what it gives itself, and nothing that another gives."""
    from tasks.platforms.azure.checks.permissions import missing_actions, role_for

    assign = "Microsoft.Authorization/roleAssignments/write"
    contributor = {"actions": ["*"], "notActions": ["Microsoft.Authorization/*/Write"]}
    administrator = {"actions": ["Microsoft.Authorization/roleAssignments/*"], "notActions": []}
    storage = "Microsoft.Storage/storageAccounts/write"
    assert missing_actions([contributor], [assign, storage]) == (assign,)
    assert missing_actions([contributor, administrator], [assign, storage]) == ()
    assert missing_actions([], [storage]) == (storage,)
    assert role_for(assign) == "Role Based Access Control Administrator"


def test_data_scientist_may_do_all_but_make_clusters() -> None:
    """The role that the README names for who runs lacks the cluster alone."""
    from tasks.platforms.azure.checks.permissions import RUN_ACTIONS, missing_actions, role_for

    ml = "Microsoft.MachineLearningServices/workspaces"
    scientist = {
        "actions": [f"{ml}/*/{verb}" for verb in ("read", "action", "delete", "write")],
        "notActions": [f"{ml}/delete", f"{ml}/write", f"{ml}/computes/*/write", f"{ml}/computes/*/delete"],
    }
    assert missing_actions([scientist], RUN_ACTIONS) == (f"{ml}/computes/write",)
    assert role_for(f"{ml}/computes/write") == "AzureML Compute Operator"


@pytest.mark.parametrize(
    ("skew", "outcome", "words"),
    [
        (5, "pass", "s from Azure's"),
        (-100, "warn", "100 s behind"),
        (100, "warn", "100 s ahead of"),
        (900, "fail", "900 s ahead of"),
    ],
)
def test_clock_is_compared_with_an_answer(skew: int, outcome: str, words: str) -> None:
    """A minute warns, five fail: then tokens are refused."""
    from tasks.platforms.azure.checks.sign_in import check_clock

    now = float(int(time.time()))
    (found,) = check_clock(formatdate(now - skew, usegmt=True), now)
    assert (str(found.outcome), found.found.find(words) >= 0) == (outcome, True)
    assert list(check_clock("", now)) == []


def test_claims_of_a_token_are_read_and_no_other_string_breaks() -> None:
    """Whoever signs in, the tenant is in the token; what is no token says nothing."""
    from tasks.platforms.azure.checks.sign_in import read_claims

    payload = base64.urlsafe_b64encode(json.dumps({"tid": "t", "oid": "o"}).encode()).decode().rstrip("=")
    assert read_claims(f"x.{payload}.y") == {"tid": "t", "oid": "o"}
    for broken in ("", "token", "a.b.c"):
        assert read_claims(broken) == {}


DEFAULT = (
    "Workspace w cannot be reached, because nobody is signed in: DefaultAzureCredential failed to retrieve a token.\n"
    "Attempted credentials:\n\tEnvironmentCredential: unavailable\n\tAzureCliCredential: "
)


@pytest.mark.parametrize(
    ("credential", "said", "found", "fix"),
    [
        ("default", f"{DEFAULT}AADSTS700082: The refresh token is too old.", "the login has expired", "az login"),
        ("default", f"{DEFAULT}Please run 'az login' to set up an account", "nobody is signed in", "az login"),
        ("cli", "Azure CLI not found on path", "and the Azure CLI is missing", "Install the Azure CLI, then az login"),
        ("environment", "signed in: no AZURE_CLIENT_ID\nmore", "gives no token: no AZURE_CLIENT_ID", "credential=cli"),
    ],
)
def test_why_nobody_is_signed_in_is_told(credential: str, said: str, found: str, fix: str) -> None:
    """Expired, never signed in, no Azure CLI, and another way to sign in have different commands."""
    from tasks.platforms.azure.checks.sign_in import login_failed

    told = login_failed(said, "az login --tenant t", credential)
    assert found in told[0] and fix in told[1]
    assert "\n" not in "".join(told)


@pytest.mark.parametrize(("resolved", "taken"), [((), False), (("mine",), True), (("mine", "phi-"), None)])
def test_endpoint_name_is_taken_when_it_alone_resolves(
    monkeypatch: pytest.MonkeyPatch, resolved: tuple[str, ...], taken: bool | None
) -> None:
    """A network that resolves every name says nothing about one."""
    from tasks.platforms.azure.checks import place as checks_place

    def getaddrinfo(host: str, *_: Any, **__: Any) -> list[Any]:
        if host.startswith(resolved) and resolved:
            return [()]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(checks_place.socket, "getaddrinfo", getaddrinfo)
    assert checks_place.is_name_taken("mine", "westeurope") is taken


def test_resolver_that_does_not_answer_says_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is neither taken nor free while nobody can be asked."""
    from tasks.platforms.azure.checks import place as checks_place

    def getaddrinfo(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    monkeypatch.setattr(checks_place.socket, "getaddrinfo", getaddrinfo)
    assert checks_place.is_name_taken("mine", "westeurope") is None


def test_offers_on_free_credit_are_known() -> None:
    """By the beginning of what the service calls an offer."""
    from tasks.platforms.azure.checks.offers import free_credit

    assert free_credit("FreeTrial_2014-09-01") == "free trial"
    assert free_credit("AzureForStudents_2018-01-01") == "Azure for Students"
    assert free_credit("PayAsYouGo_2014-09-01") == free_credit("") == ""
