"""The emulator: its parts put together, and how each request is answered by them."""

from __future__ import annotations

import argparse
import functools
import json
import threading
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.azure_emulator import (
    assets,
    computes,
    control,
    execution,
    foundation,
    inventory,
    metadata,
    resource_groups,
    soft_delete,
    subscription,
    template_deployments,
    vault,
    workspace,
)
from tests.azure_emulator.addresses import chosen_once, client_environment, write_private
from tests.azure_emulator.arm import Handler, Router, Scope, answered
from tests.azure_emulator.certificates import ensure_certificates
from tests.azure_emulator.exchanges import Exchanges
from tests.azure_emulator.foundation import Foundation
from tests.azure_emulator.identity import Identity
from tests.azure_emulator.listener import Listener
from tests.azure_emulator.names import CERTIFICATE_NAMES, TENANT, cloud_name
from tests.azure_emulator.operations import Operations
from tests.azure_emulator.resource_groups import ResourceGroups
from tests.azure_emulator.resource_types import WORKSPACE, all_versions, resource_not_found
from tests.azure_emulator.scenarios import Scenarios, refusal
from tests.azure_emulator.settings import Settings
from tests.azure_emulator.soft_delete import SoftDeleted
from tests.azure_emulator.storage_accounts import StorageAccounts
from tests.azure_emulator.store import Store
from tests.azure_emulator.template_deployments import TemplateDeployments
from tests.azure_emulator.web import Answer, Request, ServiceError

if TYPE_CHECKING:
    from tasks.platforms.local.local_platform import LocalPlatform
    from tests.azure_emulator.authorization import Rights
    from tests.azure_emulator.execution import Execution
    from tests.azure_emulator.providers import Providers
    from tests.azure_emulator.quota import Quota

SCOPE = Scope("00000000-0000-0000-0000-000000000001", "phiflow-emulator", "phiflow-emulated", "westeurope")
_ROOT = Path(__file__).resolve().parents[2]
_PAGE = 100
_BEGUN = "/_begun"


class Emulator:
    """One emulated workspace with its state in one folder.

    Attributes:
        url: where it listens; the same after a restart with the same state.
        workspace_id: the workspace's resource id.
        store, settings, operations, scenarios, exchanges, rights, providers, quota: see their modules.
        account: the storage account.
        state: the folder.
        options: the command line's, with `home`, `monitor_lag` and `server_source`.
        env: the variables with which a process reaches the emulator, and nothing else than this machine.
        connection_file: what `azurite.open_client` takes, for processes that outlive the emulator.
    """

    # Set when they are installed.
    rights: Rights
    providers: Providers
    quota: Quota

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.state = Path(options.state).absolute()
        self.state.mkdir(parents=True, exist_ok=True)
        self.scope = SCOPE
        self.workspace_id = SCOPE.workspace_id
        settings = chosen_once(self.state, options.port)
        self.certificates = ensure_certificates(self.state / "certificates", CERTIFICATE_NAMES)
        self.storage = StorageAccounts(self, settings["storage_port"], settings["account_key"])
        self._server = Listener(settings["port"], self.certificates)
        self.url = f"https://127.0.0.1:{settings['port']}"
        self.cloud = cloud_name(settings["port"])
        self.store = Store(self.state / "resources")
        self.settings = Settings(self.store)
        self.operations = Operations(self.store, SCOPE, self.url)
        self.scenarios = Scenarios(self.state / "scenarios.json")
        self.exchanges = Exchanges(Path(options.log).absolute())
        self.identity = Identity(self.state / "secrets", self.url, self.settings)
        self.connection_file = self.state / "secrets" / "storage.json"
        self.taken_names_file = self.state / "taken-endpoint-names.txt"
        self.groups = ResourceGroups(self)
        self.foundation = Foundation(self)
        self.soft_deleted = SoftDeleted(self)
        self.template_deployments = TemplateDeployments(self)
        self.execution: Execution
        self._router = Router(SCOPE, self.identity.require)
        self._stopping: list[Callable[[], None]] = []

    def start(self) -> None:
        """Start the storage, make the routes, and listen."""
        self.env = client_environment(self)
        document = metadata.cloud_metadata(self.cloud, self.url, self.storage.port)
        self.register("GET", metadata.PATH, lambda _: Answer(200, document))
        self.register("GET", "/identity/token", self.identity.give)
        for family in ("mfeOperationsStatus", "computeOperationsStatus", "workspaceOperationsStatus"):
            self.register("GET", f"L/{family}/{{id}}", self.operations.read_status)
        for family in ("mfeOperationResults", "computeOperationResults"):
            self.register("GET", f"L/{family}/{{id}}", self.operations.read_result)
        self.allow_versions(*all_versions())
        modules = (control, subscription, resource_groups, soft_delete, template_deployments, inventory)
        # The routes of a workspace before those of any resource.
        for module in (*modules, workspace, vault, computes, assets, execution, foundation):
            module.install(self)
        self._open()
        self._server.answer = self.answer
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, daemon=True).start()

    def _open(self) -> None:
        """Have what there was, or what a new subscription begins with, and go on with what was on its way."""
        begun = self.store.get(_BEGUN)
        self.storage.serve()
        if not begun:
            self.store.put(_BEGUN, {"empty": self.options.empty})
            if not self.options.empty:
                workspace.seed(self)
        if self.store.get(self.workspace_id):
            workspace.open_workspace(self)
        for part in (self.foundation, self.groups, self.template_deployments):
            part.resume()

    def stop(self) -> None:
        """End in order: who registered with `on_stop` first, the storage last."""
        self._server.shutdown()
        for call in reversed(self._stopping):
            call()
        self.storage.stop()
        self.exchanges.close()

    def register(self, method: str, pattern: str, handler: Handler) -> None:
        """Have requests answered by `handler(request)`, which gives an Answer or (status, body, headers).

        See `arm.py` for patterns; `*` is every method. What is below /subscriptions needs a token and an api-version.
        """
        self._router.register(method, pattern, handler)

    def guard(self, call: Callable[[Request], None]) -> None:
        """Have `call(request)` refuse what must not pass, by raising a ServiceError.

        It is asked for every request below /subscriptions that has a token and a version, and for the PUT of each
        resource of a template: that has the resource's whole id as its path, and the route `template`.
        """
        self._router.guards.append(call)

    def allow_versions(self, *versions: str) -> None:
        """Have Resource Manager know more api-versions."""
        self._router.versions.update(versions)

    def set_clock(self, skew_seconds: float) -> None:
        """Have the Date of all answers be so much ahead."""
        self._server.skew_seconds = skew_seconds

    def on_stop(self, call: Callable[[], None]) -> None:
        """Have something done when the emulator ends in order."""
        self._stopping.append(call)

    def call(self, method: str, path: str, version: str, body: dict[str, Any] | None = None) -> Answer:
        """Have one part of the emulator ask another as a client would, without token, guards and log.

        Raises:
            ServiceError: what a client would be told.
        """
        content = json.dumps(body).encode() if body is not None else b""
        request = Request(method, path, {"api-version": version}, {}, content)
        handler = self._router.match(request)
        self.groups.require_place(request)
        return answered(handler(request))

    def judge(self, request: Request) -> None:
        """Have the guards asked about a request that no client sent, as for a resource of a template.

        Raises:
            ServiceError: what a guard says.
        """
        for guard in self._router.guards:
            guard(request)

    def workspace_property(self, field: str) -> str:
        """One of the properties of the workspace, such as storageAccount.

        Raises:
            ServiceError: 404, there is no workspace.
        """
        found = self.store.get(self.workspace_id)
        if found is None:
            raise resource_not_found(WORKSPACE, SCOPE.workspace, SCOPE.group)
        return str(found["properties"][field])

    def write_connection(self) -> None:
        """Have `connection_file` tell the way to the workspace's storage."""
        write_private(self.connection_file, json.dumps(self.storage.account().to_json()))

    @functools.cached_property
    def local(self) -> LocalPlatform:
        """The local platform that stands for the service's machines; environments are those of --home."""
        from tasks.platforms.local.local_platform import LocalPlatform
        from tasks.platforms.local.state import Home

        home, built = self.state / "home", Path(self.options.home).absolute() / "environments"
        home.mkdir(exist_ok=True)
        built.mkdir(parents=True, exist_ok=True)
        link = home / "environments"
        if link.is_symlink() and link.readlink() != built:
            link.unlink()
        if not link.is_symlink():
            link.symlink_to(built, target_is_directory=True)
        return LocalPlatform(Home.open(str(home)))

    def page(self, request: Request, found: list[dict[str, Any]]) -> Answer:
        """A page of a list, and where the next one is."""
        start = int(request.query.get("$skip", "0") or 0)
        size = min(int(request.query.get("$top") or request.query.get("count") or _PAGE), _PAGE)
        body: dict[str, Any] = {"value": found[start : start + size]}
        more = start + size < len(found) and "$top" not in request.query
        if more:
            query = "&".join(f"{key}={value}" for key, value in request.query.items() if key != "$skip")
            body["nextLink"] = f"{self.url}{request.path}?{query}&$skip={start + size}"
        return Answer(200, body)

    def identity_resource(self, given: dict[str, Any]) -> dict[str, Any]:
        """An identity as the service completes it."""
        result: dict[str, Any] = {"type": given["type"]}
        if "SystemAssigned" in given["type"]:
            result |= {"principalId": str(uuid.uuid4()), "tenantId": TENANT}
        if given.get("userAssignedIdentities"):
            result["userAssignedIdentities"] = {
                resource: {
                    "principalId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"principal:{resource.lower()}")),
                    "clientId": str(uuid.uuid5(uuid.NAMESPACE_URL, f"client:{resource.lower()}")),
                }
                for resource in given["userAssignedIdentities"]
            }
        return result

    def answer(self, request: Request) -> Answer:
        """Answer one request, and write it down."""
        started = time.monotonic()
        scenario: dict[str, Any] = {}
        try:
            answer, scenario = self._answer(request)
        except ServiceError as error:
            answer = error.answer(SCOPE.location)
        except Exception as error:  # a client must be told, and the emulator go on; its log has the rest
            import traceback

            traceback.print_exc()
            message = f"{type(error).__name__}: {error}"
            answer = ServiceError(500, "InternalServerError", message).answer(SCOPE.location)
        answer.headers = {"x-ms-request-id": str(uuid.uuid4()), **answer.headers}
        if not request.path.startswith("/_emulator/"):
            spent = time.monotonic() - started
            self.exchanges.add(request, answer, seconds=spent, scenario=str(scenario.get("do", "")))
        return answer

    def _answer(self, request: Request) -> tuple[Answer, dict[str, Any]]:
        is_control = request.path.startswith("/_emulator/")
        scenario = {} if is_control else self.scenarios.for_request(request) or {}
        nothing_there: ServiceError | None = None
        try:
            handler = self._router.match(request)
        except ServiceError as error:  # who may not ask is told that first
            nothing_there = error
        match scenario.get("do"):
            case "status":
                return refusal(scenario), scenario
            case "drop":
                return Answer(0, lost=True), scenario
            case "slow":
                time.sleep(float(scenario.get("seconds", 1)))
            case "stuck":
                request.stuck = True
            case "fault":
                request.fault = {
                    "code": scenario.get("code", "InternalServerError"),
                    "message": scenario.get("message", "Scripted."),
                }
        self._router.check(request)
        if nothing_there:
            raise nothing_there
        answer = answered(handler(request))
        answer.lost = scenario.get("do") == "lost"
        return answer, scenario
