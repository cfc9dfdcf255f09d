"""The hub's token from the workspace's key vault, read by the trainer's own code in a process of its own."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest

from tests.azure_emulator.process import EmulatorProcess

TOKEN = "hf_canary0123456789"
VAULT = "https://phiflowemulated.vault.azure.net/secrets"
SCRIPT = """
import logging, os, sys
logging.basicConfig(level=logging.DEBUG)
from trainer.errors import TrainerError
from trainer.hub_token import provide_hub_token
os.environ["PHIFLOW_HUB_TOKEN_SECRET"] = sys.argv[1]
try:
    provide_hub_token()
except TrainerError as error:
    sys.exit(str(error))
print(len(os.environ["HF_TOKEN"]), os.environ["HF_TOKEN"][-4:])
"""


@pytest.fixture
def read(emulator: EmulatorProcess) -> Any:
    """Read a secret as a job does, with everything logged."""

    def run(name: str) -> subprocess.CompletedProcess[str]:
        return emulator.run(SCRIPT, f"{VAULT}/{name}")

    return run


def test_the_token_is_read_and_shown_nowhere(emulator: EmulatorProcess, read: Any) -> None:
    """A job's identity gets the token into HF_TOKEN, and no log line at any level has it."""
    emulator.set_secret("hub-token", TOKEN)
    done = read("hub-token")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(len(TOKEN)), TOKEN[-4:]]
    assert TOKEN not in done.stdout + done.stderr
    assert "Read the hub's token from secret hub-token of key vault phiflowemulated" in done.stderr


def test_a_secret_that_is_not_there_is_one_line(read: Any) -> None:
    """A name that the vault does not have is said with the setting to check."""
    done = read("no-such-secret")
    assert done.returncode == 1
    assert "There is no secret no-such-secret of key vault phiflowemulated." in done.stderr.splitlines()[-1]


def test_a_vault_that_refuses_names_the_role(emulator: EmulatorProcess, read: Any) -> None:
    """An identity without the right is told which role it needs."""
    emulator.add_scenario("status", match={"method": "GET", "path": "/secrets/"}, status=403)
    done = read("hub-token")
    assert done.returncode == 1
    assert "Key Vault Secrets User" in done.stderr.splitlines()[-1]
