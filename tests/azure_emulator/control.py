"""How tests talk to the emulator itself: scenarios, counts of exchanges, and what the cloud is like.

PUT    /_emulator/<document>  have the cloud be so, at once; the modules that are named below say what there is
GET    /_emulator/<document>  what was set
DELETE /_emulator/<document>  have it be as it was
DELETE /_emulator/settings    the same for all of these documents
PUT    /_emulator/age         {"id": a resource's, "hours": n}: it was made, and changed, that much earlier
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.azure_emulator import authorization, providers, quota, quota_requests, skus, subscription
from tests.azure_emulator.web import Answer, Request, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

Document = dict[str, Any]
# Documents, and what refuses the wrong ones. Of those with a name behind them there is one for each name.
_DOCUMENTS: dict[str, Callable[[Document], Document]] = {
    "subscription": subscription.checked_subscription,
    "caller": authorization.checked_caller,
    "rights": lambda document: _numbers(document, "delay_seconds"),
    "sign-in": lambda document: _only(document, "expired"),
    "quota-requests": quota_requests.checked_requests,
    "prices-page": lambda document: _numbers(document, "size"),
    "clock": lambda document: _numbers(document, "skew_seconds"),
}
_NAMED: dict[str, Callable[[str, Document], Document]] = {
    "providers": lambda _, document: providers.checked_provider(document),
    "sizes": skus.checked_size,
    "compute-quota": lambda _, document: _numbers(document, "limit"),
    "prices": lambda _, document: _numbers(document, "retailPrice"),
    "endpoint-names": lambda _, document: _only(document),
    "taken-names": lambda _, document: _only(document),
}
_FOLDERS = (*_NAMED, "quota", "quota-asked")


def install(emulator: Emulator) -> None:
    """Register the routes below /_emulator, which are not logged and need no token."""

    def add_scenario(request: Request) -> Answer:
        return Answer(201, {"id": emulator.scenarios.add(request.json)})

    def clear_scenarios(request: Request) -> Answer:
        emulator.scenarios.clear()
        return Answer(204)

    def count_exchanges(request: Request) -> Answer:
        return Answer(200, emulator.exchanges.counts(request.query.get("path", ""), request.query.get("method", "")))

    def clear_exchanges(request: Request) -> Answer:
        emulator.exchanges.clear()
        return Answer(204)

    def age(request: Request) -> Answer:
        aged = emulator.store.get(str(request.json["id"]))
        if aged is None:
            raise arm_error(404, "ResourceNotFound", f"There is nothing to age at {request.json['id']}.")
        emulator.store.put(aged["id"], aged_by(aged, float(request.json["hours"])))
        return Answer(204)

    emulator.register("PUT", "/_emulator/age", age)
    emulator.register("POST", "/_emulator/scenarios", add_scenario)
    emulator.register("GET", "/_emulator/scenarios", lambda _: Answer(200, {"value": emulator.scenarios.list()}))
    emulator.register("DELETE", "/_emulator/scenarios", clear_scenarios)
    emulator.register("GET", "/_emulator/exchanges", count_exchanges)
    emulator.register("DELETE", "/_emulator/exchanges", clear_exchanges)
    _install_documents(emulator)


def _install_documents(emulator: Emulator) -> None:
    settings = emulator.settings

    def set_quota(request: Request) -> Answer:
        limit, location = quota.checked_limit(request.json)
        emulator.quota.set_limit(quota.find_family(request.parameters["name"]), location, limit)
        return Answer(200, request.json)

    def reset(request: Request) -> Answer:
        for name in _DOCUMENTS:
            settings.delete(name)
        for folder in _FOLDERS:
            for name in settings.all(folder):
                settings.delete(f"{folder}/{name}")
        _apply(emulator)
        return Answer(204)

    for name, check in _DOCUMENTS.items():
        _register(emulator, f"/_emulator/{name}", lambda _, name=name: name, lambda _, body, check=check: check(body))
    for folder, named in _NAMED.items():
        _register(emulator, f"/_emulator/{folder}/{{name}}", lambda name, folder=folder: f"{folder}/{name}", named)
    emulator.register("PUT", "/_emulator/quota/{name}", set_quota)
    emulator.register("DELETE", "/_emulator/settings", reset)
    _apply(emulator)


def aged_by(resource: Document, hours: float) -> Document:
    """A resource as if everything that happened to it had happened that much earlier."""

    def earlier(moment: str) -> str:
        return (datetime.fromisoformat(moment) - timedelta(hours=hours)).strftime("%Y-%m-%dT%H:%M:%S.%f0+00:00")

    moments = ("createdAt", "lastModifiedAt", "createdOn", "modifiedOn")
    aged = dict(resource)
    for part in ("systemData", "properties"):
        if part in resource:
            aged[part] = {key: earlier(said) if key in moments else said for key, said in resource[part].items()}
    return aged


def _register(
    emulator: Emulator, pattern: str, key: Callable[[str], str], check: Callable[[str, Document], Document]
) -> None:
    """PUT, GET and DELETE of one document, or of one for each name."""

    def put(request: Request) -> Answer:
        name = request.parameters.get("name", "")
        emulator.settings.put(key(name.lower()), check(name, request.json))
        _apply(emulator)
        return Answer(200, request.json)

    def read(request: Request) -> Answer:
        return Answer(200, emulator.settings.get(key(request.parameters.get("name", "").lower())))

    def delete(request: Request) -> Answer:
        emulator.settings.delete(key(request.parameters.get("name", "").lower()))
        _apply(emulator)
        return Answer(204)

    for method, handler in (("PUT", put), ("GET", read), ("DELETE", delete)):
        emulator.register(method, pattern, handler)


def _apply(emulator: Emulator) -> None:
    """What is not asked of the settings when it is needed."""
    emulator.set_clock(float(emulator.settings.get("clock").get("skew_seconds", 0)))
    # Read by the processes whose names `loopback/sitecustomize.py` resolves.
    names = sorted(emulator.settings.all("endpoint-names"))
    Path(emulator.taken_names_file).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")


def _only(document: Document, *keys: str) -> Document:
    if document.keys() - set(keys):
        raise arm_error(400, "InvalidDocument", f"{document} has other keys than {', '.join(keys) or 'none'}.")
    return document


def _numbers(document: Document, key: str) -> Document:
    value = document.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise arm_error(400, "InvalidDocument", f"{document} has no number '{key}'.")
    return _only(document, key)
