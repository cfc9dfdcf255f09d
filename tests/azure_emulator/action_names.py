"""Which action a request to Resource Manager is, and over which scope: by resource type and verb, as operations are
named in https://learn.microsoft.com/azure/role-based-access-control/resource-provider-operations."""

from __future__ import annotations

import re
from dataclasses import dataclass

_VERBS = {"GET": "read", "HEAD": "read", "PUT": "write", "PATCH": "write", "DELETE": "delete"}
_PROVIDER = re.compile(r"/providers/", re.IGNORECASE)
_OPERATION = re.compile(r"(?i)operation(s?status(es)?|results?)$")
_SUBSCRIPTIONS = "Microsoft.Resources/subscriptions"


@dataclass(frozen=True)
class Asked:
    """What a request needs the right to.

    Attributes:
        action: such as Microsoft.Resources/subscriptions/resourceGroups/write.
        scope: the id of what it is done to.
    """

    action: str
    scope: str


def asked_of(method: str, path: str) -> Asked | None:
    """What a request below /subscriptions/{id} asks for; None when whoever may sign in may ask.

    Those are the states of operations, one's own permissions, and what everybody is told who has a role anywhere in the
    subscription: the subscription itself, its regions, and its groups and resources as lists.
    """
    path = path.rstrip("/")
    if path.lower().endswith("/providers/microsoft.authorization/permissions"):
        return None
    parts = _PROVIDER.split(path)
    registered = re.fullmatch(r"(/subscriptions/[^/]+)/providers(?:/([^/]+)(?:/(\w+))?)?", path, re.IGNORECASE)
    if registered and (registered[3] is None or registered[3].lower() in ("register", "unregister")):
        action = f"{registered[2]}/{registered[3]}/action" if registered[3] else f"{_SUBSCRIPTIONS}/providers/read"
        return Asked(action, registered[1])
    if len(parts) == 1:
        return _of_resources(method, path)
    namespace, *rest = parts[-1].split("/")
    types, names = rest[0::2], rest[1::2]
    if not types or _OPERATION.search(types[-1]):
        return None
    kind = "/".join([namespace, *types])
    if len(types) == len(names):
        return Asked(f"{kind}/{_VERBS.get(method, 'action')}", path)
    verb = "action" if method == "POST" else _VERBS.get(method, "action")
    return Asked(f"{kind}/{verb}", _holder(path))


def _of_resources(method: str, path: str) -> Asked | None:
    """The paths of Resource Manager itself, which have no provider in them."""
    _, _, subscription, *rest = path.split("/")
    lower = [part.lower() for part in rest]
    scope = f"/subscriptions/{subscription}"
    verb = _VERBS.get(method, "action")
    if not rest or lower in (["locations"], ["resourcegroups"], ["resources"]) or _OPERATION.search(rest[0]):
        return None
    if lower[0] != "resourcegroups":
        return Asked(f"{_SUBSCRIPTIONS}/{rest[0]}/{verb}", scope)
    group = f"{scope}/resourceGroups/{rest[1]}"
    if len(rest) == 2:
        return Asked(f"{_SUBSCRIPTIONS}/resourceGroups/{verb}", group)
    if lower[2] == "deployments":  # the old address of a deployment's operations
        return Asked(f"Microsoft.Resources/deployments/operations/{verb}", group)
    return Asked(f"{_SUBSCRIPTIONS}/resourceGroups/{rest[2]}/{verb}", group)


def _holder(path: str) -> str:
    """What a collection or an action belongs to."""
    parent = path.rsplit("/", 1)[0]
    head, found, namespace = parent.rpartition("/providers/")
    return head if found and "/" not in namespace else parent
