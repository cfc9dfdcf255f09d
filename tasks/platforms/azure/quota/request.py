"""Asks Microsoft.Quota for the vCPUs that are missing, and follows each request to its end.

It grants families, and low priority as a whole; a region's total of dedicated vCPUs cannot be asked for.
API: https://learn.microsoft.com/rest/api/quota/quota/create-or-update
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.checks.facts import Facts
from tasks.platforms.azure.checks.quota import quota_page, read_running
from tasks.platforms.azure.quota.need import LOW_PRIORITY_KEY, Need, Running, needs_of
from tasks.platforms.azure.quota.sizes import ML
from tasks.platforms.azure.quota.usages import read_usages
from tasks.platforms.errors import Failure, PhiflowError
from tasks.platforms.local.checking import failed, passed, warned
from tasks.platforms.upkeep import Check

if TYPE_CHECKING:
    from tasks.config import PipelineConfig
    from tasks.platforms.azure.client import Workspace

_API = "2023-02-01"
_ENDED = ("Succeeded", "Failed", "Invalid")
# Requests that nobody has to look at end within two minutes.
_WAIT_SECONDS = 600.0
_LONGEST_POLL_SECONDS = 30.0


def request_quota(config: PipelineConfig, workspace: Workspace) -> Iterator[Check]:
    """Ask for each limit that the configuration exceeds, now or in a rollout; one check each, when it has ended."""
    facts = Facts(config, workspace, "up")
    for location, parts in facts.regions.items():
        usages = read_usages(workspace, location)
        running = read_running(config, workspace) if facts.has_workspace else Running()
        for need in needs_of(config, facts.sizes(location), usages, running, parts):
            if need.missing_later:
                yield _request(need, workspace, location)


def _request(need: Need, workspace: Workspace, location: str) -> Check:
    number = need.limit_wanted
    by_hand = f"Ask for a limit of {number} for {need.pool.name} in {location} on {quota_page(workspace)}"
    if not need.key:
        return warned("quota request", f"{need.pool.name} in {location} follows the limits of its families", by_hand)
    try:
        state, message = _await_end(workspace, *_begin(need, workspace, location))
    except PhiflowError as error:
        if "MissingSubscriptionRegistration" in error.message:
            by_hand = (
                f"az provider register --namespace Microsoft.Quota --wait, then the same command again; or {by_hand}"
            )
        return failed("quota request", error.message, by_hand, Failure.QUOTA)
    told = f"{need.pool.name} in {location}: a limit of {number} was"
    if state == "Succeeded":
        return passed("quota request", f"{told} granted")
    if state in _ENDED:
        return failed("quota request", f"{told} refused: {message or state}", by_hand, Failure.QUOTA)
    return warned("quota request", f"{told} asked for, and is {state} after {_WAIT_SECONDS:.0f} s", by_hand)


def _begin(need: Need, workspace: Workspace, location: str) -> tuple[str, dict[str, Any]]:
    """Send the request; returns where its state is told, and what was told at once."""
    scope = f"/subscriptions/{workspace.config.subscription_id}/{ML}/locations/{location}"
    limit = {"limitObjectType": "LimitValue", "value": need.limit_wanted}
    kind = "lowPriority" if need.key == LOW_PRIORITY_KEY else "dedicated"
    body = {"properties": {"limit": limit, "name": {"value": need.key}, "resourceType": kind}}
    response = workspace.send(
        "PUT",
        f"{scope}/providers/Microsoft.Quota/quotas/{need.key}",
        params={"api-version": _API},
        json=body,
        what=f"The request for {need.pool.name}",
    )
    told: dict[str, Any] = response.json() if response.content else {}
    if response.status_code == 200 and "Location" not in response.headers:
        told = {"properties": {"provisioningState": "Succeeded", **(told.get("properties") or {})}}
    return response.headers.get("Azure-AsyncOperation") or response.headers.get("Location", ""), told


def _await_end(workspace: Workspace, url: str, told: dict[str, Any]) -> tuple[str, str]:
    """The state that a request ends in, and its message; the last one seen when it takes longer."""
    deadline = time.monotonic() + _WAIT_SECONDS
    while True:
        state, message = _state_of(told)
        if state in _ENDED or not url.startswith(workspace.resource_manager) or time.monotonic() > deadline:
            return state or "Accepted", message
        response = workspace.send("GET", url, what="The quota request")
        told = response.json() if response.content else {}
        if _state_of(told)[0] not in _ENDED:
            time.sleep(_pause_seconds(response.headers, workspace.config.poll_seconds))


def _state_of(told: dict[str, Any]) -> tuple[str, str]:
    properties = told.get("properties") or {}
    state = str(properties.get("provisioningState") or told.get("status") or "")
    error = properties.get("error") or told.get("error") or {}
    return state, str(error.get("message") or properties.get("message") or "")


def _pause_seconds(headers: Any, poll_seconds: float) -> float:
    asked = str(headers.get("Retry-After") or "")
    return min(float(asked) if asked.isdigit() else poll_seconds, poll_seconds, _LONGEST_POLL_SECONDS)
