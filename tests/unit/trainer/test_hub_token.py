from __future__ import annotations

import importlib.util
import os

import pytest

from trainer.errors import TrainerError
from trainer.hub_token import SECRET_VARIABLE, provide_hub_token


def test_without_a_secret_nothing_is_read(monkeypatch):
    """A run that names no secret leaves the hub's token as the user set it."""
    monkeypatch.delenv(SECRET_VARIABLE, raising=False)
    monkeypatch.setenv("HF_TOKEN", "mine")
    provide_hub_token()
    assert os.environ["HF_TOKEN"] == "mine"


@pytest.mark.parametrize("url", ["hf_secret", "http://v.vault.azure.net/secrets/x", "https://v.vault.azure.net/keys/x"])
def test_what_is_no_secret_is_refused(monkeypatch, url):
    """An address that is not a key vault's secret is refused in one line that says what one looks like."""
    monkeypatch.setenv(SECRET_VARIABLE, url)
    with pytest.raises(TrainerError, match="not the address of a key vault's secret"):
        provide_hub_token()


@pytest.mark.skipif(
    bool(importlib.util.find_spec("azure") and importlib.util.find_spec("azure.identity")),
    reason="azure-identity is installed here",
)
def test_without_azure_identity_it_says_what_to_do(monkeypatch):
    """In an environment without azure-identity one line says which one has it."""
    monkeypatch.setenv(SECRET_VARIABLE, "https://v.vault.azure.net/secrets/hub-token")
    with pytest.raises(TrainerError, match="azure-identity is not installed"):
        provide_hub_token()
