"""Key vaults' data: secrets set and read, as far as phiflow and its jobs do that.

Clients come by the host `<vault>.vault.azure.net`, which `loopback/sitecustomize.py` brings here; by any other host
they reach the workspace's vault.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.identity import VAULT
from tests.azure_emulator.resource_types import VAULT as KEY_VAULT
from tests.azure_emulator.web import Answer, Request, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_HOST = re.compile(r"(?i)([a-z0-9-]+)\.vault\.azure\.net(:\d+)?")
_NAME = re.compile(r"[0-9a-zA-Z-]{1,127}")


def install(emulator: Emulator) -> None:
    """Register the routes of secrets."""

    def put(request: Request) -> Answer:
        emulator.identity.require(request, VAULT)
        vault, name = _vault(emulator, request), request.parameters["name"]
        if not _NAME.fullmatch(name) or not isinstance(request.json.get("value"), str):
            raise arm_error(400, "BadParameter", "The secret's name or value is invalid.")
        moment = int(time.time())
        secret: dict[str, Any] = {
            "value": request.json["value"],
            "id": f"https://{vault}.vault.azure.net/secrets/{name}/{moment:032x}",
            "attributes": {"enabled": True, "created": moment, "updated": moment, "recoveryLevel": "Recoverable"},
        }
        emulator.store.put(f"/_secrets/{vault}/{name}", secret)
        return Answer(200, secret)

    def read(request: Request) -> Answer:
        emulator.identity.require(request, VAULT)
        secret = emulator.store.get(f"/_secrets/{_vault(emulator, request)}/{request.parameters['name']}")
        if secret is None:
            message = f"A secret with (name/id) {request.parameters['name']} was not found in this key vault."
            raise arm_error(404, "SecretNotFound", message)
        return Answer(200, secret)

    emulator.register("PUT", "/secrets/{name}", put)
    emulator.register("GET", "/secrets/{name}", read)
    emulator.register("GET", "/secrets/{name}/{version}", read)


def _vault(emulator: Emulator, request: Request) -> str:
    """The name of the vault that a request is for.

    Raises:
        ServiceError: 404, where a client of the service would find no such host.
    """
    host = _HOST.fullmatch(request.headers.get("host", ""))
    name = host[1].lower() if host else emulator.workspace_property("keyVault").rsplit("/", 1)[-1].lower()
    found = [one for one in emulator.groups.resources() if one["type"] == KEY_VAULT and one["name"].lower() == name]
    if not found:
        raise arm_error(404, "VaultNotFound", f"There is no key vault '{name}'.")
    return name
