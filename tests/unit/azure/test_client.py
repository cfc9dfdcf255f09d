"""One request to the workspace: retries, tokens, errors; against a real HTTP server on loopback."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import pytest
from azure.core.credentials import AccessToken

from tasks.config import AzurePlatformConfig
from tasks.platforms.azure.client import Workspace
from tasks.platforms.errors import NotFoundError, PermissionDeniedError, TransientPlatformError

CANARY = "canary-token-a1b2c3"


class Seen(NamedTuple):
    """A request as it came."""

    method: str
    path: str
    authorization: str


class Service:
    """Answers each request with the next scripted status and headers, then with 200."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.script: list[tuple[int, dict[str, str], Any]] = []
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                service.seen.append(Seen(self.command, self.path, self.headers.get("Authorization", "")))
                status, headers, body = service.script.pop(0) if service.script else (200, {}, {"well": True})
                if status == 0:  # the answer is lost
                    self.close_connection = True
                    return
                text = json.dumps(body).encode()
                self.send_response(status)
                for name, value in {"Content-Length": str(len(text)), **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_DELETE = answer

            def log_message(self, *arguments: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()


class Signer:
    """A credential whose token is known."""

    def __init__(self) -> None:
        self.scopes: list[str] = []

    def get_token(self, *scopes: str, **_: Any) -> AccessToken:
        self.scopes += scopes
        return AccessToken(CANARY, 2**31)


@pytest.fixture
def service() -> Iterator[Service]:
    """A service on loopback."""
    service = Service()
    yield service
    service.server.shutdown()


@pytest.fixture
def workspace(service: Service, config: AzurePlatformConfig, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """A workspace in a cloud that is the service on loopback."""
    for name in ("HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    workspace = Workspace(config)
    addresses = {"resource_manager": f"{service.url}/", "aml_resource_id": "https://ml.test/", "name": "TestCloud"}
    monkeypatch.setattr(Workspace, "_cloud", addresses)
    monkeypatch.setattr(Workspace, "credential", Signer())
    return workspace


def test_request_goes_to_the_cloud_in_use_with_its_token(service: Service, workspace: Workspace) -> None:
    """A path is below Resource Manager, and the token is of the scope that was asked for, or of none."""
    answer = workspace.send("GET", f"{workspace.resource_id}/jobs/j", params={"api-version": "1"})
    assert answer.json() == {"well": True}
    workspace.send("GET", f"{service.url}/elsewhere", scope="ml")
    workspace.send("POST", f"{service.url}/score", json={}, scope="none", headers={"Authorization": "Bearer key"})
    assert [seen.authorization for seen in service.seen] == [f"Bearer {CANARY}"] * 2 + ["Bearer key"]
    assert service.seen[0].path == f"{workspace.resource_id}/jobs/j?api-version=1"
    assert workspace.credential.scopes == [f"{service.url}/.default", "https://ml.test/.default"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_fault_is_tried_again_where_nothing_is_done_twice(service: Service, workspace: Workspace, method: str) -> None:
    """Throttling, faults of the service and a lost answer are tried again, after as long as the service asks."""
    wait = {"retry-after-ms": "1"}
    service.script = [(0, {}, {}), (429, wait, {}), (503, wait, {})]
    assert workspace.send(method, "/thing").ok
    assert len(service.seen) == 4


def test_fault_of_a_post_is_not_tried_again(service: Service, workspace: Workspace) -> None:
    """What may have been done is not done again, unless it is known to do no harm."""
    service.script = [(503, {"retry-after-ms": "1"}, {})]
    with pytest.raises(TransientPlatformError):
        workspace.send("POST", "/thing")
    assert len(service.seen) == 1
    service.script = [(503, {"retry-after-ms": "1"}, {})]
    assert workspace.send("POST", "/listKeys", idempotent=True).ok


def test_fault_that_stays_is_an_error_worth_a_retry(service: Service, workspace: Workspace) -> None:
    """After five attempts the error names the thing."""
    service.script = [(500, {"retry-after-ms": "1"}, {"error": {"code": "InternalError", "message": "x"}})] * 9
    with pytest.raises(TransientPlatformError, match="Job j-1"):
        workspace.send("GET", "/thing", what="Job j-1")
    assert len(service.seen) == 5


@pytest.mark.parametrize(("status", "kind"), [(404, NotFoundError), (403, PermissionDeniedError)])
def test_refusal_is_not_tried_again_and_names_the_thing(
    service: Service, workspace: Workspace, status: int, kind: type[Exception]
) -> None:
    """What will not change by itself is said at once, in one line."""
    service.script = [(status, {}, {"error": {"code": "Some", "message": "told"}})]
    with pytest.raises(kind, match="Job j-1") as caught:
        workspace.send("GET", "/thing", what="Job j-1")
    assert "\n" not in str(caught.value)
    assert len(service.seen) == 1


def test_nothing_secret_reaches_a_log_at_debug(
    service: Service, workspace: Workspace, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither the token nor what signs a blob's address is logged, by us or by what we use, even at DEBUG."""
    caplog.set_level(logging.DEBUG)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.DEBUG)  # as a person who debugs would
    service.script = [(404, {}, {"error": {"code": "c", "message": "m"}})]
    with pytest.raises(NotFoundError) as caught:
        workspace.send("GET", f"{service.url}/blob?sp=r&sig=canary%2Bsignature&se=1", scope="none")
    workspace.send("GET", "/thing")
    assert "/blob" in caplog.text
    for secret in ("canary%2Bsignature", "canary+signature", CANARY):
        assert secret not in caplog.text
        assert secret not in repr(caught.value)
        assert secret not in str(caught.value)


def test_sdk_is_silent_also_at_debug(workspace: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    """The SDK's loggers say nothing below an error, whatever the root logger's level is."""
    caplog.set_level(logging.DEBUG)
    for name in ("azure.core.pipeline.policies.http_logging_policy", "azure.identity", "azure.ai.ml._utils", "msal"):
        logging.getLogger(name).warning("chatter of %s", name)
    assert "chatter" not in caplog.text


def test_studio_page_names_the_workspace(workspace: Workspace) -> None:
    """A link opens the studio of the cloud in use, about this workspace."""
    assert workspace.studio_url("runs/j") == f"https://ml.test/runs/j?wsid={workspace.resource_id}"


@pytest.mark.parametrize(
    ("chosen", "kind"),
    [
        ("default", "DefaultAzureCredential"),
        ("cli", "AzureCliCredential"),
        ("device-code", "DeviceCodeCredential"),
        ("managed-identity", "ManagedIdentityCredential"),
        ("environment", "EnvironmentCredential"),
        ("workload-identity", "WorkloadIdentityCredential"),
    ],
)
def test_credential_is_the_one_chosen(
    config: AzurePlatformConfig, chosen: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every value of platform.credential opens its credential, with the tenant and client that are configured."""
    from tasks.platforms.azure.credentials import open_credential

    for name, value in {"AZURE_FEDERATED_TOKEN_FILE": "/none", "AZURE_CLIENT_ID": "c", "AZURE_TENANT_ID": "t"}.items():
        monkeypatch.setenv(name, value)
    changed = {"credential": chosen, "tenant_id": "tenant", "identity": {"client_id": "client"}}
    settings = AzurePlatformConfig.model_validate({**config.model_dump(), **changed})
    assert type(open_credential(settings, "https://login.microsoftonline.com").inner).__name__ == kind


def test_token_is_used_until_it_ends() -> None:
    """A credential is asked once for a scope, with the tenant; again when the token ends, or was refused."""
    from tasks.platforms.azure.credentials import RememberedCredential

    asked: list[dict[str, Any]] = []
    left = [3600.0]

    class Inner:
        def get_token(self, *scopes: str, **options: Any) -> AccessToken:
            asked.append({"scopes": scopes, **options})
            return AccessToken(f"token-{len(asked)}", int(time.time() + left[0]))

    credential = RememberedCredential(Inner(), "tenant")
    assert [credential.get_token("a").token, credential.get_token("a").token] == ["token-1", "token-1"]
    assert asked == [{"scopes": ("a",), "tenant_id": "tenant"}]
    assert credential.get_token("a", claims="challenge").token == "token-2"
    left[0] = 60
    assert credential.get_token("b").token == "token-3"
    assert credential.get_token("b").token == "token-4"


def test_without_a_login_it_says_which_command(config: AzurePlatformConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody signed in is one line with the command that signs in."""
    monkeypatch.setenv("PATH", "/nonexistent")
    workspace = Workspace(config.model_copy(update={"credential": "cli"}))
    with pytest.raises(PermissionDeniedError, match="az login") as caught:
        workspace.token("arm")
    assert "\n" not in str(caught.value)


@pytest.fixture
def run_without(tmp_path: Any) -> Callable[[str], tuple[int, str]]:
    """Return a function that connects to Azure in a Python that lacks a package, and what it said."""
    import subprocess
    import sys
    from pathlib import Path

    def run(module: str) -> tuple[int, str]:
        program = (
            "import sys\n"
            f"class Lacks:\n"
            f"    def find_spec(self, name, path=None, target=None):\n"
            f"        if name == {module!r} or name.startswith({module + '.'!r}):\n"
            f"            raise ModuleNotFoundError(f'No module named {{name!r}}', name=name)\n"
            "sys.meta_path.insert(0, Lacks())\n"
            "from tasks.config import AzurePlatformConfig\n"
            "from tasks.platforms.connect import connect\n"
            "from tasks.platforms.errors import ConfigError\n"
            "try:\n"
            "    connect(AzurePlatformConfig(subscription_id='s', resource_group='g', workspace='w'))\n"
            "except ConfigError as error:\n"
            "    print(error)\n"
            "    sys.exit(error.exit_code)\n"
        )
        root = Path(__file__).resolve().parents[3]
        done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    return run


@pytest.mark.parametrize("module", ["azure", "azure.ai.ml", "azure.identity"])
def test_without_the_packages_it_says_what_to_install(run_without: Callable[..., Any], module: str) -> None:
    """A package that is missing is one line with the command that installs it."""
    returncode, said = run_without(module)
    assert returncode == 2
    assert said.strip().endswith("pip install 'phiflow[azure]'")
    assert len(said.strip().splitlines()) == 1
