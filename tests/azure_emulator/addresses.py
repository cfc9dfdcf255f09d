"""Where the emulator is: ports and key, chosen once a state folder, and the variables by which clients find it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import random
import secrets
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.azure_emulator import metadata, retail_prices
from tests.azure_emulator.names import SUFFIX

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_LOOPBACK = Path(__file__).parent / "loopback"
_PORTS = (20_000, 32_000)


def chosen_once(state: Path, wanted_port: int) -> dict[str, Any]:
    """Ports and key: chosen once a state folder, since addresses are in what clients keep."""
    file = state / "secrets" / "settings.json"
    if not file.exists():
        port = wanted_port or free_port()
        key = secrets.token_bytes(64)
        chosen = {
            "port": port,
            "storage_port": free_port(),
            "account_key": base64.b64encode(key).decode(),
        }
        write_private(file, json.dumps(chosen))
    settings: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if wanted_port and wanted_port != settings["port"]:
        raise SystemExit(
            f"error: the state in {state} belongs to port {settings['port']}, and --port says "
            f"{wanted_port}. Leave --port out, or use another --state."
        )
    return settings


def client_environment(emulator: Emulator) -> dict[str, str]:
    """The variables with which a process reaches the emulator, and nothing else than this machine."""
    ca = str(emulator.certificates.authorities)
    no_proxy = ",".join(filter(None, [os.environ.get("NO_PROXY", ""), "127.0.0.1", "localhost", f".{SUFFIX}"]))
    path = os.pathsep.join(filter(None, [str(_LOOPBACK), os.environ.get("PYTHONPATH", "")]))
    return {
        "ARM_CLOUD_METADATA_URL": f"{emulator.url}{metadata.PATH}?api-version=2022-09-01",
        "AZUREML_CURRENT_CLOUD": emulator.cloud,
        "AZURE_TOKEN_CREDENTIALS": "ManagedIdentityCredential",
        "IDENTITY_ENDPOINT": f"{emulator.url}/identity/token",
        "IDENTITY_HEADER": emulator.identity.header_secret,
        "AZURE_SUBSCRIPTION_ID": emulator.scope.subscription,
        "AZURE_RESOURCE_GROUP": emulator.scope.group,
        "AZURE_ML_WORKSPACE": emulator.scope.workspace,
        "AZURE_CLIENT_ID": "",
        "REQUESTS_CA_BUNDLE": ca,
        "SSL_CERT_FILE": ca,
        "CURL_CA_BUNDLE": ca,
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
        "PYTHONPATH": path,
        "PHIFLOW_EMULATOR_REFUSED": str(emulator.state / "refused-names.txt"),
        "PHIFLOW_EMULATOR_URL": emulator.url,
        "PHIFLOW_EMULATOR_TAKEN": str(emulator.taken_names_file),
        "PHIFLOW_PRICES_URL": f"{emulator.url}{retail_prices.PATH}",
    }


def free_port() -> int:
    """One below those that systems give to outgoing connections, which could take it while the emulator is down."""
    while True:
        port = random.randint(*_PORTS)
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port


def write_private(file: Path, text: str) -> None:
    """Write a file that its owner alone may read."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(text, encoding="utf-8")
