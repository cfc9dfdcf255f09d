"""Deployments of an endpoint: what they are asked to be, begun, adopted, explained when they fail, deleted."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.failures import signature_of
from tasks.platforms.azure.resources import Resource, state_of
from tasks.platforms.azure.secrets import clean_lines
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import ConfigError, ConflictError, NotFoundError, PhiflowError
from tasks.platforms.refs import DeploymentRef, DeploymentStatus, EnvironmentRef, ModelVersion, Origin, digest_of

if TYPE_CHECKING:
    from tasks.config import AzurePlatformConfig, ProbeConfig, ServingConfig
    from tasks.platforms.azure.client import Workspace

_log = logging.getLogger(__name__)
MODEL, VERSION, DIGEST, SERVER = "phiflow.model", "phiflow.version", "phiflow.digest", "phiflow.server"
# The service refuses more: https://learn.microsoft.com/azure/machine-learning/reference-yaml-deployment-managed-online
_LONGEST_REQUEST_SECONDS = 180.0
_BEGIN_SECONDS = 300.0
# One that is still being created may be deleted only when that has ended.
_BEGIN_DELETE_SECONDS = 600.0
_DELETE_SECONDS = 900.0
_LOG_LINES = 60
_TOLD_LINES = 20
_STATES = {"Succeeded": "ready", "Failed": "failed", "Canceled": "failed"}


class Deployments:
    """The deployments of one workspace's endpoints."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace

    def begin(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        """Begin the deployment, or adopt the one with that content; one that has failed is deleted and made again."""
        name = deployment_name(model, serving, environment, self._workspace.config)
        resource = self.resource(endpoint, name)
        found = resource.read()
        reason = "no deployment had this content"
        if found is not None and state_of(found) in ("Failed", "Canceled", "Deleting"):
            reason = f"the one before was {state_of(found).lower()}"
            _log.info("Makes the deployment again deployment=%s: %s", name, reason)
            self.delete(endpoint, name)
            found = None
        if found is None:
            wanted = deployment_entity(endpoint, name, model, serving, environment, self._workspace.config)
            create = self._workspace.ml.online_deployments.begin_create_or_update
            resource.begin(lambda: create(wanted), lambda: resource.read() is not None, _BEGIN_SECONDS)
        else:
            reason = f"the same version is deployed with the same serving configuration, {state_of(found).lower()}"
        return DeploymentRef(
            endpoint=endpoint,
            name=name,
            model_name=model.name,
            model_version=model.version,
            origin=Origin(reused=found is not None, reason=reason),
        )

    def find(
        self, endpoint: str, model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef
    ) -> DeploymentRef:
        """The deployment that `begin` would adopt or make, by its name; nothing is begun."""
        name = deployment_name(model, serving, environment, self._workspace.config)
        found = self.resource(endpoint, name).read()
        usable = found is not None and state_of(found) not in ("Failed", "Canceled", "Deleting")
        reason = f"it is {state_of(found).lower()}" if found else "no deployment has this content"
        return DeploymentRef(
            endpoint=endpoint,
            name=name,
            model_name=model.name,
            model_version=model.version,
            origin=Origin(reused=usable, reason=reason),
        )

    def all_of(self, endpoint: str) -> list[dict[str, Any]]:
        """The deployments that are there, the oldest first."""
        found = Resource(self._workspace, f"onlineEndpoints/{endpoint}", f"Endpoint {endpoint}").list_below(
            "deployments"
        )
        there = [one for one in found if state_of(one) != "Deleting"]
        return sorted(there, key=lambda one: str((one.get("systemData") or {}).get("createdAt") or ""))

    def read(self, endpoint: str, name: str) -> dict[str, Any]:
        """One that is there; NotFoundError when there is none."""
        found = self.resource(endpoint, name).read()
        if found is None or state_of(found) == "Deleting":
            raise NotFoundError(f"There is no deployment {name} on endpoint {endpoint}.")
        return found

    def status(self, endpoint: str, deployment: dict[str, Any], percent: int) -> DeploymentStatus:
        """What a resource says, with the reason and the end of its log when it has failed."""
        name, state = deployment["name"], _STATES.get(state_of(deployment), "starting")
        told: dict[str, Any] = self._explain(endpoint, deployment) if state == "failed" else {}
        version = tags_of(deployment).get(VERSION, "")
        cost = f"It bills by the hour until it is deleted: {self.delete_command(endpoint, name)}"
        return DeploymentStatus(name=name, model_version=version, state=state, percent=percent, cost=cost, **told)

    def delete(self, endpoint: str, name: str) -> None:
        """Delete it, and wait until it is gone; whatever ends the wait early says what is left and how to delete it."""
        resource = self.resource(endpoint, name)
        if resource.read() is None:
            return
        with self._telling_what_is_left(endpoint, name):
            delete = self._workspace.ml.online_deployments.begin_delete

            def is_going() -> bool:
                found = resource.read()
                return found is None or state_of(found) == "Deleting"

            if not is_going():
                resource.begin(lambda: delete(name, endpoint), is_going, _BEGIN_DELETE_SECONDS)
            if resource.await_settled(_DELETE_SECONDS) is not None:
                raise ConflictError(f"Deployment {name} on endpoint {endpoint} is there after its deletion.")

    def delete_command(self, endpoint: str, name: str) -> str:
        """What a person types to delete a deployment."""
        config = self._workspace.config
        return (
            f"az ml online-deployment delete --yes --name {name} --endpoint-name {endpoint} "
            f"--workspace-name {config.workspace} --resource-group {config.resource_group} "
            f"--subscription {config.subscription_id}"
        )

    def resource(self, endpoint: str, name: str) -> Resource:
        """The deployment's resource, there or not."""
        path = f"onlineEndpoints/{endpoint}/deployments/{name}"
        return Resource(self._workspace, path, f"Deployment {name} on endpoint {endpoint}")

    @contextlib.contextmanager
    def _telling_what_is_left(self, endpoint: str, name: str) -> Iterator[None]:
        left = f"It bills until it is deleted: {self.delete_command(endpoint, name)}"
        try:
            yield
        except PhiflowError as error:
            error.fix = f"{error.fix} {left}".strip()
            raise
        except BaseException:  # a person or a signal ended the wait, and nobody else will say it
            _log.warning("Deployment %s on endpoint %s may be left. %s", name, endpoint, left)
            raise

    def _explain(self, endpoint: str, deployment: dict[str, Any]) -> dict[str, Any]:
        """Why a deployment failed: the service's reason, its class, and the last words of its log."""
        name = deployment["name"]
        code, message = self.resource(endpoint, name).why_failed(deployment)
        log = self._log_tail(endpoint, name)
        reason = message.partition(" Please see troubleshooting")[0].rstrip(". ")
        # Of a container that ended, the log says why; of one that never started, it has nothing.
        signature = signature_of(reason, code, *log[-1:])
        reason = reason or "the service gives no reason"
        words = f"; the last words of its log: {log[-1]}" if log else ""
        return {
            "error": f"{reason}{f' ({code})' if code else ''}{words}",
            "fix": signature.fix if signature else "",
            "failure": str(signature.failure) if signature else "",
            "log_tail": tuple(log[-_TOLD_LINES:]),
        }

    def _log_tail(self, endpoint: str, name: str) -> list[str]:
        try:
            with translated(f"The log of deployment {name}"):
                text = self._workspace.ml.online_deployments.get_logs(name, endpoint, _LOG_LINES)
        except PhiflowError as error:  # the reason matters more than its log
            _log.info("No log of deployment=%s: %s", name, error.message)
            return []
        said = text.partition("Container logs:")[2] or text
        return [line for line in clean_lines(said) if line]


def deployment_name(
    model: ModelVersion, serving: ServingConfig, environment: EnvironmentRef, config: AzurePlatformConfig
) -> str:
    """The name of what is served, from its content: the same content is the same deployment."""
    # How long a run waits does not change what is served, so it is not in the name.
    content = serving.model_dump(mode="json", exclude={"start_timeout_seconds"})
    # A model that is served without code brings its own environment.
    version = environment.version if serving.server == "openai" else ""
    digest = digest_of(content, version, model.digest, config.identity.client_id)
    return f"v{model.version}-{digest[:8]}"


def require_request_time(serving: ServingConfig) -> None:
    """Refuse a time-out that the service refuses."""
    if serving.request_timeout_seconds > _LONGEST_REQUEST_SECONDS:
        raise ConfigError(
            f"serving.request_timeout_seconds is {serving.request_timeout_seconds:g}, and managed online endpoints "
            f"allow {_LONGEST_REQUEST_SECONDS:g} at most.",
            fix="Lower it, or limit the answers with chat.max_tokens.",
        )


def deployment_entity(
    endpoint: str,
    name: str,
    model: ModelVersion,
    serving: ServingConfig,
    environment: EnvironmentRef,
    config: AzurePlatformConfig,
) -> Any:
    """What the SDK sends; everything that the service has a default for that chat does not suit is set."""
    from azure.ai.ml.entities import ManagedOnlineDeployment, OnlineRequestSettings

    require_request_time(serving)
    return ManagedOnlineDeployment(
        name=name,
        endpoint_name=endpoint,
        description=f"Version {model.version} of {model.name}, by phiflow",
        tags={
            "phiflow": "1",
            MODEL: model.name,
            VERSION: model.version,
            DIGEST: model.digest,
            SERVER: serving.server,
        },
        model=f"azureml:{model.name}:{model.version}",
        # A model in MLflow's format is served without code by the service's own image.
        environment=None if serving.server == "mlflow" else environment.location,
        environment_variables=_variables(model, serving, config),
        instance_type=serving.instance_type,
        instance_count=serving.instance_count,
        request_settings=OnlineRequestSettings(
            max_concurrent_requests_per_instance=serving.max_concurrent_requests,
            request_timeout_ms=int(serving.request_timeout_seconds * 1000),
            max_queue_wait_ms=int(serving.queue_wait_seconds * 1000),
        ),
        liveness_probe=_probe(serving.liveness),
        readiness_probe=_probe(serving.readiness),
        app_insights_enabled=False,
    )


def tags_of(resource: dict[str, Any]) -> dict[str, str]:
    """The tags of a resource, which may have none."""
    return resource.get("tags") or {}


def _variables(model: ModelVersion, serving: ServingConfig, config: AzurePlatformConfig) -> dict[str, str]:
    variables = {"SUBSCRIPTION_ID": config.subscription_id, "RESOURCE_GROUP_NAME": config.resource_group}
    if config.identity.client_id:
        variables["UAI_CLIENT_ID"] = config.identity.client_id
    if serving.server == "openai":
        variables |= {
            "PHIFLOW_MODEL_NAME": model.name,
            "PHIFLOW_MAX_CONCURRENT_REQUESTS": str(serving.max_concurrent_requests),
            "PHIFLOW_REQUEST_TIMEOUT_SECONDS": f"{serving.request_timeout_seconds:g}",
        }
    return variables | serving.environment_variables


def _probe(probe: ProbeConfig) -> Any:
    from azure.ai.ml.entities import ProbeSettings

    return ProbeSettings(
        initial_delay=probe.initial_delay_seconds,
        period=probe.period_seconds,
        timeout=probe.timeout_seconds,
        failure_threshold=probe.failure_threshold,
        success_threshold=probe.success_threshold,
    )
