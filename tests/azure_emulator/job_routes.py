"""The routes of jobs, of their run history and of the workspace's MLflow."""

from __future__ import annotations

from collections.abc import Callable

from tests.azure_emulator.execution import Execution
from tests.azure_emulator.job_spec import InvalidJobError
from tests.azure_emulator.run_history import discovery
from tests.azure_emulator.web import Answer, Request, ServiceError, arm_error, not_found, now, user_error

Register = Callable[[str, str, Callable[[Request], Answer]], None]
_SOON = {"retry-after-ms": "100"}


class JobRoutes:
    """Answers requests about jobs."""

    def __init__(self, execution: Execution) -> None:
        self._it = execution
        self._emulator = execution.emulator

    def register(self, register: Register) -> None:
        """Make the routes known."""
        workspace = self._emulator.workspace_id
        register("PUT", "W/jobs/{name}", self._put)
        register("GET", "W/jobs/{name}", self._get)
        register("PATCH", "W/jobs/{name}", self._patch)
        register("DELETE", "W/jobs/{name}", self._delete)
        register("GET", "W/jobs", self._list)
        register("POST", "W/jobs/{name}/cancel", self._cancel)
        register("GET", "/discovery", self._discovery)
        register("GET", "/discovery/{rest:path}", self._discovery)
        for part in ("", "/experiments/{experiment}", "/experimentids/{experiment}"):
            run = f"/history/v1.0{workspace}{part}/runs/{{name}}"
            register("GET", f"{run}/details", self._details)
            register("GET", run, self._run)
            register("PATCH", run, self._patch_run)
        register("*", f"/mlflow/{{version}}{workspace}/api/{{api}}/mlflow/{{call:path}}", self._mlflow)
        register("POST", "/_emulator/jobs/{name}/{action}", self._act)

    def _put(self, request: Request) -> Answer:
        name = request.parameters["name"]
        try:
            status, body = self._it.jobs.put(name, request.json)
        except InvalidJobError as error:
            raise user_error(str(error)) from error
        location = f"{self._emulator.url}{request.path}?api-version={request.api_version}"
        return Answer(status, body, {"Location": location} if status == 201 else {})

    def _get(self, request: Request) -> Answer:
        job = self._it.jobs.get(request.parameters["name"])
        if job is None:
            raise self._absent(request)
        return Answer(200, job)

    def _patch(self, request: Request) -> Answer:
        changed = self._it.jobs.modify(request.parameters["name"], request.json.get("properties") or {})
        if changed is None:
            raise self._absent(request)
        return Answer(200, changed)

    def _delete(self, request: Request) -> Answer:
        name = request.parameters["name"]
        if self._it.jobs.get(name) is None:
            return Answer(204)
        if not self._it.jobs.is_ended(name):
            raise user_error(f"Job {name} has not ended; cancel it before deleting it.", 409)
        self._it.jobs.delete(name)
        return Answer(200)

    def _list(self, request: Request) -> Answer:
        return self._emulator.page(request, self._it.jobs.list(request.query))

    def _cancel(self, request: Request) -> Answer:
        name = request.parameters["name"]
        if not self._it.jobs.cancel(name):
            raise self._absent(request)
        operations = self._emulator.operations
        operation = operations.start(request, None, family="mfe", kind="jc")
        self._it.finish_when_ended(operation, name)
        headers = {"Location": operations.result_url(operation, request.api_version), **_SOON}
        return Answer(202, b"null", {**headers, "x-ms-async-operation-timeout": "PT1H"})

    # Run history

    def _discovery(self, request: Request) -> Answer:
        return Answer(200, discovery(self._emulator.url))

    def _details(self, request: Request) -> Answer:
        self._emulator.identity.require(request)
        details = self._it.history.details(request.parameters["name"])
        if details is None:
            raise self._absent(request)
        return Answer(200, details)

    def _run(self, request: Request) -> Answer:
        self._emulator.identity.require(request)
        run = self._it.history.run(request.parameters["name"])
        if run is None:
            raise self._absent(request)
        return Answer(200, run)

    def _patch_run(self, request: Request) -> Answer:
        self._emulator.identity.require(request)
        if self._it.jobs.modify(request.parameters["name"], request.json) is None:
            raise self._absent(request)
        return self._run(request)

    def _mlflow(self, request: Request) -> Answer:
        self._emulator.identity.require(request)
        status, body = self._it.mlflow.answer(request.method, request.parameters["call"], request.query, request.body)
        return Answer(status, body, {"Content-Type": "application/json"})

    # Control

    def _act(self, request: Request) -> Answer:
        """By hand: preempt, restart, kill, hold-STATUS, release-STATUS."""
        name, action = request.parameters["name"], request.parameters["action"]
        verb, _, status = action.partition("-")
        records = self._it.records
        match verb:
            case "preempt" | "restart":
                records.preempt(name, restart=verb == "restart")
            case "kill":
                records.kill_node(name)
            case "hold" | "release":
                records.hold(name, status.title(), held=verb == "hold")
            case _:
                raise arm_error(400, "BadAction", f"There is no action '{action}' on a job.")
        return Answer(200, {"name": name, "action": action, "time": now()})

    @staticmethod
    def _absent(request: Request) -> ServiceError:
        return not_found(f"Run {request.parameters['name']} was not found")
