"""Environments and compute clusters of the workspace: looked up by name, begun when absent, never changed."""

from __future__ import annotations

import logging
import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure import build_context
from tasks.platforms.azure.build_context import Definition
from tasks.platforms.azure.resources import SWEPT, Resource, stop_polling
from tasks.platforms.azure.secrets import clean
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import ConfigError, ConflictError, Failure, NotFoundError, PhiflowError, QuotaError
from tasks.platforms.local.state import project_folder
from tasks.platforms.refs import ComputeRef, EnvironmentRef, Origin, digest_of

if TYPE_CHECKING:
    from tasks.config import AzureIdentityConfig, ComputeConfig
    from tasks.platforms.azure.client import Workspace
    from tasks.platforms.local.local_platform import LocalPlatform

_log = logging.getLogger(__name__)
TAGS = {"phiflow": "1"}
# The service's rule for a cluster's name: it does not end in a hyphen and digits.
_COMPUTE_NAME = re.compile(r"[a-zA-Z](?![a-zA-Z0-9-]*-\d+$)[a-zA-Z0-9-]{2,23}")
_LONGEST_NAME = 24
_CONTEXTS = "phiflow/environments"


class Infrastructure:
    """What jobs and deployments run in and on."""

    def __init__(self, workspace: Workspace, this_machine: LocalPlatform) -> None:
        self._workspace = workspace
        self._this_machine = this_machine

    def environment(self, name: str, *, create: bool = True) -> EnvironmentRef:
        """The environment version of a folder's content; one without a definition for the service is built here.

        The image is built by the service when a job or a deployment first needs it.
        """
        folder = project_folder("environments", name)
        if not build_context.is_defined(folder):
            return self._this_machine.ensure_environment(name)
        with tempfile.TemporaryDirectory(prefix="phiflow-") as assembled:
            definition = build_context.read_definition(folder, Path(assembled))
            asset, version = f"phiflow-{name}", definition.digest[:16]
            reused = self._has_environment(asset, version)
            if not reused and create:
                self._create_environment(asset, version, definition)
        reason = "its folder has not changed" if reused else "no version has this content"
        return EnvironmentRef(
            name=name,
            version=version,
            location=f"azureml:{asset}:{version}",
            origin=Origin(reused=reused, reason=reason),
        )

    def _has_environment(self, asset: str, version: str) -> bool:
        try:
            with translated(f"Environment {asset}:{version}"):
                self._workspace.ml.environments.get(asset, version)
        except NotFoundError:
            return False
        return True

    def _create_environment(self, asset: str, version: str, definition: Definition) -> None:
        from azure.ai.ml import load_environment

        storage = self._workspace.storage
        with translated(f"Environment {asset}:{version}"):
            names: list[dict[str, Any]] = [{"name": asset}, {"version": version}, {"tags": TAGS}]
            environment: Any = load_environment(source=definition.source, params_override=names)
            if definition.context is not None:
                # Ours, not the SDK's upload: that one needs a key where storage accounts may refuse keys.
                prefix = f"{_CONTEXTS}/{asset}/{version}"
                storage.upload_folder(prefix, definition.context)
                environment.build.path = f"{storage.url(prefix)}/"
                environment.path = None
            self._workspace.ml.environments.create_or_update(environment)
        _log.info("Registered environment name=%s version=%s", asset, version)

    def compute(self, compute: ComputeConfig, *, create: bool = True) -> ComputeRef:
        """Begin the cluster unless it exists; jobs wait in its queue until it is there.

        Raises:
            ConfigError: no size, or a name or count the service would refuse.
            ConflictError: a cluster of that name differs; names the setting and both values.
            QuotaError: the cluster failed for want of quota.
        """
        name = cluster_name(compute)
        if compute.num_nodes > compute.max_instances:
            raise ConfigError(
                f"compute.num_nodes is {compute.num_nodes}, but compute.max_instances is {compute.max_instances}.",
                fix="Raise compute.max_instances; a cluster never has more nodes.",
            )
        wanted = self._wanted(compute, name)
        existing = self._read_cluster(name)
        if existing is None:
            if create:
                with translated(f"Compute cluster {name}"):
                    stop_polling(self._workspace.ml.compute.begin_create_or_update(wanted))  # jobs queue until then
            reason = f"there was no cluster {name}"
        else:
            self._require_same(existing, wanted)
            self._require_usable(existing)
            reason = f"cluster {name} exists with these settings"
        return ComputeRef(
            name=name,
            size=compute.size,
            max_instances=compute.max_instances,
            origin=Origin(reused=existing is not None, reason=reason),
        )

    def _read_cluster(self, name: str) -> Any:
        try:
            with translated(f"Compute cluster {name}"):
                return self._workspace.ml.compute.get(name)
        except NotFoundError:
            return None

    def _wanted(self, compute: ComputeConfig, name: str) -> Any:
        from azure.ai.ml.entities import AmlCompute

        return AmlCompute(
            name=name,
            size=compute.size,
            tier=compute.tier,
            min_instances=compute.min_instances,
            max_instances=compute.max_instances,
            idle_time_before_scale_down=compute.idle_seconds,
            enable_node_public_ip=compute.public_ip,
            location=self._workspace.location,
            identity=_identity(self._workspace.config.identity),
            tags=TAGS,
        )

    def _require_same(self, existing: Any, wanted: Any) -> None:
        """Refuse a cluster that is another than the configuration says."""
        if str(existing.type).lower() != "amlcompute":
            raise ConflictError(
                f"Compute {wanted.name} exists and is a {existing.type}, not a cluster.",
                fix="Set another compute.name.",
            )
        compared = {
            "compute.size": (existing.size, wanted.size),
            "compute.tier": (existing.tier, wanted.tier),
            "compute.min_instances": (existing.min_instances, wanted.min_instances),
            "compute.max_instances": (existing.max_instances, wanted.max_instances),
            "compute.idle_seconds": (existing.idle_time_before_scale_down, wanted.idle_time_before_scale_down),
            "compute.public_ip": (existing.enable_node_public_ip, wanted.enable_node_public_ip),
            "platform.identity.resource_id": (_identity_ids(existing), _identity_ids(wanted)),
        }
        if SWEPT in (existing.tags or {}):  # nodes come when a job needs them, so nothing speaks against it
            del compared["compute.min_instances"]
        if self._workspace.config.location:
            compared["platform.location"] = (existing.location, wanted.location)
        for key, (there, configured) in compared.items():
            if _plain(there) != _plain(configured):
                raise ConflictError(
                    f"Cluster {wanted.name} exists with {key} {_shown(there)}, but the configuration says "
                    f"{_shown(configured)}.",
                    fix=f"Set {key} to what it is, or compute.name to another name; phiflow changes no cluster.",
                )

    def _require_usable(self, existing: Any) -> None:
        state = str(existing.provisioning_state or "")
        if state == "Deleting":
            raise ConflictError(f"Cluster {existing.name} is being deleted.", fix="Wait, or set another compute.name.")
        if state not in ("Failed", "Canceled"):
            return
        reason = self._why_not_created(existing.name) or str(existing.provisioning_errors or "no reason given")
        delete = f"az ml compute delete --name {existing.name} --workspace-name {self._workspace.name}"
        message = f"Cluster {existing.name} was not created: {reason}."
        if "quota" in reason.lower():
            raise QuotaError(
                message,
                fix=f"Request quota for {existing.size}, or set compute.size; then delete it: {delete}.",
                failure=Failure.QUOTA,
            )
        raise PhiflowError(message, fix=f"Delete it and run the same command again: {delete}.", failure=Failure.SERVICE)

    def _why_not_created(self, name: str) -> str:
        """The service's words; the SDK keeps the code alone, which is BadRequest for want of quota."""
        cluster = Resource(self._workspace, f"computes/{name}", f"Compute cluster {name}").read() or {}
        errors = (cluster.get("properties") or {}).get("provisioningErrors") or []
        told = (error.get("error") or {} for error in errors)
        return "; ".join(clean(str(one.get("message") or one.get("code") or "")).rstrip(".") for one in told)


def cluster_name(compute: ComputeConfig) -> str:
    """The configured name, else one that says size and tier.

    Raises:
        ConfigError: no size, or a name that the service refuses.
    """
    if not compute.size:
        raise ConfigError(
            "compute.size is empty, and a cluster on Azure needs one.",
            fix="Set it, for example to Standard_E16s_v3, or Standard_NC24ads_A100_v4 for a GPU.",
        )
    size = compute.size.lower().removeprefix("standard_").replace("_", "-")
    name = compute.name or f"{'phi-low' if compute.tier == 'low_priority' else 'phi'}-{size}"
    if not compute.name and not (len(name) <= _LONGEST_NAME and _COMPUTE_NAME.fullmatch(name)):
        name = f"{name[:15].rstrip('-')}-x{digest_of(name)[:7]}"
    if not _COMPUTE_NAME.fullmatch(name):
        raise ConfigError(
            f"compute.name '{name}' is no name for a cluster.",
            fix=f"3 to {_LONGEST_NAME} letters, digits and hyphens, not ending in a hyphen and digits.",
        )
    return name


def _identity(identity: AzureIdentityConfig) -> Any:
    """The user-assigned identity that nodes act as, or None."""
    from azure.ai.ml.entities import IdentityConfiguration, ManagedIdentityConfiguration

    if not identity.resource_id:
        return None
    assigned = ManagedIdentityConfiguration(resource_id=identity.resource_id, client_id=identity.client_id or None)
    return IdentityConfiguration(type="user_assigned", user_assigned_identities=[assigned])


def _identity_ids(compute: Any) -> list[str]:
    assigned = getattr(compute.identity, "user_assigned_identities", None) or []
    return sorted(str(identity.resource_id).lower() for identity in assigned)


def _plain(value: Any) -> Any:
    """Names compare without regard to case and separators, numbers as numbers."""
    if isinstance(value, str):
        return re.sub(r"[\s_]", "", value).lower()
    return float(value) if isinstance(value, int | float) else value


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(value) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
