"""How the container is opened: with the datastore's key, and with the signed-in identity where keys are off."""

from __future__ import annotations

import http.server
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tasks.config import AzurePlatformConfig
from tasks.platforms.azure.client import Workspace
from tasks.platforms.azure.storage import Storage
from tasks.platforms.errors import ConfigError, PermissionDeniedError
from tests.azure_emulator.certificates import Certificates, ensure_certificates

KEY = "Y2FuYXJ5LWtleS1vZi10aGUtYWNjb3VudA=="


class Account:
    """A storage account that answers every request with one status."""

    def __init__(self, certificates: Certificates) -> None:
        self.status, self.code = 200, ""
        self.authorizations: list[str] = []
        account = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                account.authorizations.append(self.headers.get("Authorization", ""))
                self.send_response(account.status)
                self.send_header("Content-Length", "0")
                if account.code:
                    self.send_header("x-ms-error-code", account.code)
                self.end_headers()

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates.certificate, certificates.key)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


@pytest.fixture
def account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Account]:
    """An account on loopback, under a name like a real one's, that only a company's own CA vouches for."""
    certificates = ensure_certificates(tmp_path, ["acme.blob.test"])
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificates.authorities))
    resolve = socket.getaddrinfo

    def mapped(host: Any, *rest: Any, **named: Any) -> Any:
        return resolve("127.0.0.1" if str(host).endswith(".blob.test") else host, *rest, **named)

    monkeypatch.setattr(socket, "getaddrinfo", mapped)
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)
    account = Account(certificates)
    yield account
    account.server.shutdown()


def opened(account: Account, config: AzurePlatformConfig, **settings: Any) -> tuple[Any, Workspace]:
    """The container of a workspace whose datastore is as given."""
    workspace = Workspace(config)
    values = {
        "protocol": "https",
        "account_name": "acme",
        "endpoint": f"test:{account.server.server_port}",
        "container_name": "container",
        "credentials": SimpleNamespace(account_key=KEY),
        "type": "azure_blob",
        **settings,
    }
    datastore = SimpleNamespace(**{name: value for name, value in values.items() if value is not None})
    workspace.__dict__["ml"] = SimpleNamespace(datastores=SimpleNamespace(get=lambda name, **_: datastore))
    workspace.__dict__["credential"] = SimpleNamespace(get_token=None)
    return Storage(workspace)._container, workspace


def test_key_of_the_datastore_is_used(account: Account, config: AzurePlatformConfig) -> None:
    """Where the account takes keys, requests are signed with the datastore's."""
    container, _ = opened(account, config)
    assert container.url == f"https://acme.blob.test:{account.server.server_port}/container"
    assert account.authorizations[0].startswith("SharedKey acme:")
    assert KEY not in account.authorizations[0]


def test_account_without_keys_is_opened_by_identity(account: Account, config: AzurePlatformConfig) -> None:
    """Where the account refuses keys, or the datastore has none, the signed-in identity is used."""
    account.status, account.code = 403, "KeyBasedAuthenticationNotPermitted"
    container, workspace = opened(account, config)
    assert container.credential is workspace.credential
    account.authorizations.clear()
    container, workspace = opened(account, config, credentials=SimpleNamespace(type="none"))
    assert container.credential is workspace.credential
    assert account.authorizations == []


def test_other_refusal_is_told(account: Account, config: AzurePlatformConfig) -> None:
    """A refusal for any other reason, as by a firewall, is an error that names the account and no key."""
    account.status, account.code = 403, "AuthorizationFailure"
    with pytest.raises(PermissionDeniedError, match=r"acme\.blob\.test.*AuthorizationFailure") as caught:
        opened(account, config)
    assert KEY not in str(caught.value)


def test_datastore_that_holds_no_blobs_is_refused(account: Account, config: AzurePlatformConfig) -> None:
    """Files shares and the like are told by their kind."""
    with pytest.raises(ConfigError, match="is of type azure_file"):
        opened(account, config, type="azure_file", container_name=None)
