"""What the checks of Azure read out of the answers that they are given: rights, clocks, tokens, names, offers."""

from __future__ import annotations

import base64
import json
import socket
import time
from email.utils import formatdate
from typing import Any

import pytest


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
