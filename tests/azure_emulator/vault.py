"""The workspace's key vault: secrets set and read, as far as phiflow and its jobs do that.

Clients come by the host `phiflowemulated.vault.azure.net`, which `loopback/sitecustomize.py` brings here.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.identity import VAULT
from tests.azure_emulator.web import Answer, Request, arm_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_HOST = "https://phiflowemulated.vault.azure.net"
_NAME = re.compile(r"[0-9a-zA-Z-]{1,127}")


def install(emulator: Emulator) -> None:
    """Register the routes of secrets."""

    def put(request: Request) -> Answer:
        emulator.identity.require(request, VAULT)
        name = request.parameters["name"]
        if not _NAME.fullmatch(name) or not isinstance(request.json.get("value"), str):
            raise arm_error(400, "BadParameter", "The secret's name or value is invalid.")
        moment = int(time.time())
        secret: dict[str, Any] = {
            "value": request.json["value"],
            "id": f"{_HOST}/secrets/{name}/{moment:032x}",
            "attributes": {"enabled": True, "created": moment, "updated": moment, "recoveryLevel": "Recoverable"},
        }
        emulator.store.put(f"/_secrets/{name}", secret)
        return Answer(200, secret)

    def read(request: Request) -> Answer:
        emulator.identity.require(request, VAULT)
        secret = emulator.store.get(f"/_secrets/{request.parameters['name']}")
        if secret is None:
            message = f"A secret with (name/id) {request.parameters['name']} was not found in this key vault."
            raise arm_error(404, "SecretNotFound", message)
        return Answer(200, secret)

    emulator.register("PUT", "/secrets/{name}", put)
    emulator.register("GET", "/secrets/{name}", read)
    emulator.register("GET", "/secrets/{name}/{version}", read)
