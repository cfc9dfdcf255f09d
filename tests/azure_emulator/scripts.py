"""What jobs, deployments and resources of templates do by scenario; `scenarios.KINDS` lists them with these words.

    POST /_emulator/scenarios
    {"match": {"kind": "job", "name": "phi-"}, "do": "preempted", "after": {"file": "checkpoint-*/*"}}

The other keys of a scenario replace settings of the same name: see `JOBS`, `DEPLOYMENTS` and `TEMPLATE_RESOURCES` for
what there is. A resource's name is its type and name, as in Microsoft.Storage/storageAccounts/phi1.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from tests.azure_emulator import serving
from tests.azure_emulator.scenarios import KINDS, Scenarios

_PIP = "ERROR: Could not find a version that satisfies the requirement torch==99.0 (from versions: none)"
_FOREVER = 86400.0
# Name: what people are told, and the settings that `node.py` (jobs) and `endpoints.py` (deployments) read.
JOBS: dict[str, tuple[str, dict[str, Any]]] = {
    "image_build_failed": ("the image of its environment cannot be built", {"image_build": _PIP}),
    "failed": (
        "the command ends with status 1 (`command` is run instead)",
        {"command": "echo 'RuntimeError: CUDA out of memory.'; exit 1"},
    ),
    "cancelled": (
        "somebody cancels it, `after` {seconds} or when an output's or log's {file} appears",
        {"after": {"do": "cancel", "seconds": 1.0}},
    ),
    "preempted": (
        "its node is taken away, `after` {seconds} or {file}, and the job fails",
        {"after": {"do": "preempt", "restart": False, "seconds": 1.0}},
    ),
    "preempted_restarted": (
        "its node is taken away, `after` {seconds} or {file}, and the service starts the same job again",
        {"after": {"do": "preempt", "restart": True, "seconds": 1.0}},
    ),
    "queued": ("waits for a node until it is cancelled, or `seconds`", {"seconds": {"Queued": _FOREVER}}),
    "preparing": ("its image is built until it is cancelled, or `seconds`", {"seconds": {"Preparing": _FOREVER}}),
    "slow": ("takes `seconds` {Status: number}", {"seconds": {"Preparing": 2.0, "Queued": 2.0, "Finalizing": 2.0}}),
}
DEPLOYMENTS: dict[str, tuple[str, dict[str, Any]]] = {
    "quota": ("refused: the subscription has too few cores of the size", {"refused": "quota"}),
    "capacity": ("fails: the region has no machine of the size", {"error": "capacity"}),
    "image_build_failed": ("fails: the image of its environment cannot be built", {"error": "image"}),
    "crashed": ("fails: the container ends by itself", {"error": "crashed"}),
    "unready": ("fails: the container does not answer its probes", {"error": "unready"}),
    "creating": ("stays in Creating until it is deleted, or `seconds`", {"seconds": _FOREVER}),
}
TEMPLATE_RESOURCES: dict[str, str] = {
    "fail": "its provider refuses it, with `status` (409), `code` and `message`; with `made` it is there all the same",
    "stuck": "is not made, and the deployment goes on until it is cancelled",
    "slow": "is made after `seconds` (1)",
}
KINDS["job"].update({name: text for name, (text, _) in JOBS.items()})
KINDS["deployment"].update({name: text for name, (text, _) in DEPLOYMENTS.items()})
KINDS["template-resource"].update(TEMPLATE_RESOURCES)


def take_job(scenarios: Scenarios, name: str) -> dict[str, Any]:
    """What a job of this name must go through."""
    return _taken(scenarios.take("job", name), JOBS)


def take_deployment(scenarios: Scenarios, endpoint: str, name: str, size: str) -> dict[str, Any]:
    """What a deployment of this name must go through, its error in the service's words."""
    script = _taken(scenarios.take("deployment", f"{endpoint}/{name}"), DEPLOYMENTS)
    errors = {
        "capacity": lambda: serving.out_of_capacity(size),
        "image": lambda: serving.image_build_failed(_PIP),
        "crashed": serving.crashed,
        "unready": serving.unready,
    }
    if script.get("error"):
        error = errors[script["error"]]()
        script["error"] = {"code": error.code, "message": str(error)}
    return script


def _taken(scenario: Mapping[str, Any] | None, known: Mapping[str, tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    if scenario is None:
        return {}
    settings = copy.deepcopy(known[scenario["do"]][1])
    for key, value in scenario.items():
        if key == "seconds" and isinstance(settings.get("seconds"), dict) and not isinstance(value, dict):
            settings["seconds"] = dict.fromkeys(settings["seconds"], value)
        elif key == "after":
            settings["after"] = {"do": settings["after"]["do"], "restart": settings["after"].get("restart"), **value}
        elif key in ("command", "seconds", "image_build", "ready_seconds"):
            settings[key] = value
    return settings


def quota_refused(size: str, subscription: str, cores: tuple[int, int, int] = (24, 24, 8)) -> dict[str, Any]:
    """The error body for a deployment that the subscription has no cores for: in use, limit, needed."""
    used, limit, needed = cores
    message = (
        f'InferencingClient HttpRequest error, error detail: {{"errors":{{"VmSize":["Not enough quota available for '
        f"{size} in SubscriptionId {subscription}. Current usage/limit: {used}/{limit}. Additional needed: {needed} "
        'Please see troubleshooting guide, available here: https://aka.ms/oe-tsg#error-outofquota"]},"status":400}'
    )
    detail = {"code": "InferencingClientCreateDeploymentFailed", "message": message, "details": []}
    return {
        "code": "BadRequest",
        "message": "The request is invalid.",
        "details": [{**detail, "additionalInfo": []}],
        "additionalInfo": [],
    }
