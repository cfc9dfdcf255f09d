"""Checks that the others stand on, each on the one before: network, clock, login, tenant, subscription."""

from __future__ import annotations

import base64
import json
import re
import time
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from typing import Any

import requests

from tasks.platforms.azure.checks import offers
from tasks.platforms.azure.checks.facts import SUBSCRIPTION_API, Facts
from tasks.platforms.azure.translate import error_of
from tasks.platforms.errors import Failure, PhiflowError
from tasks.platforms.local.checking import failed, passed, warned
from tasks.platforms.upkeep import Check

_DISABLED = "https://learn.microsoft.com/azure/cost-management-billing/manage/subscription-disabled"
_UNPAID = "https://learn.microsoft.com/azure/cost-management-billing/manage/resolve-past-due-balance"
_SECONDS = 15
# A token is refused when clocks differ by five minutes.
_SKEW_WARN_SECONDS, _SKEW_FAIL_SECONDS = 60, 300
_TENANT = re.compile(r"authorization_uri=\"[^\"]*/([0-9a-fA-F-]{36}|[\w.-]+\.onmicrosoft\.com)\"")
# What azure-identity quotes of a login that was and is no more:
# https://learn.microsoft.com/entra/identity-platform/reference-error-codes
_EXPIRED = re.compile(r"AADSTS(?:50173|70008|70043|700082|700084|50078|50076)|expired|re-?authenticate", re.IGNORECASE)
_NO_CLI = re.compile(r"Azure CLI not found|not installed", re.IGNORECASE)


def check_network(facts: Facts) -> Iterator[Check]:
    """Ask for the subscription without a token: the refusal shows the way, the time and the subscription's tenant."""
    try:
        host = facts.workspace.resource_manager
        url = f"{host}{facts.subscription_id}"
        response = requests.get(url, params={"api-version": SUBSCRIPTION_API}, timeout=_SECONDS)
    except requests.RequestException as error:
        told = error_of(error, "Azure Resource Manager")
        yield failed("network", told.message, told.fix, told.failure)
        return
    except PhiflowError as error:
        yield failed("network", error.message, error.fix, error.failure)
        return
    found = _TENANT.search(response.headers.get("WWW-Authenticate", ""))
    facts.tenant = found[1].lower() if found else ""
    yield passed("network", f"{host} answers")
    yield from check_clock(response.headers.get("Date", ""), time.time())


def check_clock(date: str, now: float) -> Iterator[Check]:
    """Compare this clock with the one of an answer; whole seconds, since a header has no more."""
    try:
        skew = now - parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError):
        return
    if abs(skew) <= _SKEW_WARN_SECONDS:
        yield passed("clock", f"{abs(skew):.0f} s from Azure's")
        return
    found = f"{abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} Azure's"
    fix = "sudo timedatectl set-ntp true"
    if abs(skew) <= _SKEW_FAIL_SECONDS:
        yield warned("clock", f"{found}; from {_SKEW_FAIL_SECONDS} s on tokens are refused", fix)
    else:
        yield failed("clock", f"{found}, so that tokens are refused", fix)


def check_login(facts: Facts) -> Iterator[Check]:
    """Get a token, and compare its tenant with the subscription's and the configured one."""
    place, tenant = facts.place, facts.place.tenant_id or facts.tenant
    login = f"az login --tenant {tenant}" if tenant else "az login"
    try:
        claims = facts.claims = read_claims(facts.workspace.token("arm"))
    except PhiflowError as error:
        said = f"{error.message}\n{error.__cause__ or ''}"  # which tells what was tried, and why it failed
        yield failed("login", *login_failed(said, login, place.credential), Failure.AUTHORISATION)
        return
    name = claims.get("upn") or claims.get("unique_name") or claims.get("appid") or claims.get("oid") or "somebody"
    yield passed("login", f"signed in as {name}")
    signed_in = str(claims.get("tid") or "").lower()
    wanted = facts.tenant or place.tenant_id.lower()
    if not signed_in or not wanted:
        return
    if place.tenant_id and place.tenant_id.lower() != wanted:
        found = f"platform.tenant_id is {place.tenant_id}, but the subscription is in tenant {wanted}"
        yield failed("tenant", found, f"Set platform.tenant_id to {wanted}, and: az login --tenant {wanted}")
    elif signed_in != wanted:
        found = f"signed in to tenant {signed_in}, but the subscription is in tenant {wanted}"
        yield failed("tenant", found, f"az login --tenant {wanted}; and set platform.tenant_id to it")
    else:
        yield passed("tenant", signed_in)


def check_subscription(facts: Facts) -> Iterator[Check]:
    """Whether anything may be made in it, and on what offer it is."""
    identifier = facts.place.subscription_id
    try:
        subscription = facts.subscription
    except PhiflowError as error:
        fix = f"az account list --refresh, then set platform.subscription_id; or ask for a role on {identifier}"
        yield failed("subscription", error.message, fix, error.failure)
        return
    state, offer = str(subscription.get("state") or "Enabled"), offers.offer_of(subscription)
    name = subscription.get("displayName") or identifier
    if state in offers.READ_ONLY:
        yield failed("subscription", f"{name} is {state}: nothing can be made in it", f"Reactivate it: {_DISABLED}")
        return
    told = f"{name} is {state}" + (f", offer {offer}" if offer else "")
    if state == "PastDue":
        yield warned("subscription", f"{told}: it is disabled when its bill stays unpaid", f"Pay it: {_UNPAID}")
    elif credit := offers.free_credit(offer):
        told = f"{told} ({credit}): no GPU quota, and none can be asked for"
        yield warned("subscription", told, f"Upgrade it: {offers.UPGRADE}")
    elif offers.has_spending_limit(subscription):
        told = f"{told}, with a spending limit: it is stopped when its credit is used up"
        yield warned("subscription", told, f"Upgrade it: {offers.UPGRADE}")
    else:
        yield passed("subscription", told)


def read_claims(token: str) -> dict[str, Any]:
    """Who a token is of, as it says itself; nothing for one that cannot be read."""
    try:
        payload = token.split(".")[1]
        claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(f"{payload}{'=' * (-len(payload) % 4)}"))
        return claims
    except (IndexError, ValueError):
        return {}


def login_failed(said: str, login: str, credential: str) -> tuple[str, str]:
    """What was found, and the command, for what azure-identity says."""
    if _EXPIRED.search(said):
        return "the login has expired", login
    if credential in ("default", "cli"):
        has_cli = not _NO_CLI.search(said)
        found = "nobody is signed in" if has_cli else "nobody is signed in, and the Azure CLI is missing"
        return found, login if has_cli else f"Install the Azure CLI, then {login}"
    reason = said.partition("signed in: ")[2].partition("\n")[0] or said.partition("\n")[0]
    return f"platform.credential {credential} gives no token: {reason}", f"--set platform.credential=cli, and {login}"
