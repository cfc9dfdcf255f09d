"""Checks of what there is: the workspace, sizes in the region, names that are taken or not free yet, base images."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Iterator
from typing import Any

import requests

from tasks.platforms.azure.checks.facts import Facts
from tasks.platforms.azure.checks.quota import CONFIGURATION
from tasks.platforms.azure.foundation.names import last_name, resource_names
from tasks.platforms.azure.resources import Resource
from tasks.platforms.errors import ConfigError, Failure, PermissionDeniedError, PhiflowError
from tasks.platforms.local.checking import failed, passed, warned
from tasks.platforms.local.state import project_folder
from tasks.platforms.upkeep import Check

_SKUS_API = "2021-07-01"
_VAULTS_API = "2023-07-01"
_STORAGE_API = "2023-05-01"
_REGISTRY_API = "2023-07-01"
_SECONDS = 10
# Of these one type is what a registry answers a manifest's name with.
_MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "oci.image.index.v1",
        "oci.image.manifest.v1",
        "docker.distribution.manifest.list.v2",
        "docker.distribution.manifest.v2",
    )
)


def check_workspace(facts: Facts) -> Iterator[Check]:
    """Whether the workspace is there, for a run, and which region it is in or would be."""
    if facts.existing_workspace is not None:
        location = facts.existing_workspace.get("location")
        yield passed("workspace", f"{facts.workspace.name} in {location}")
    elif facts.purpose == "run":
        where = "" if facts.group else ", nor the resource group"
        yield failed(
            "workspace",
            f"{facts.workspace.name} in {facts.place.resource_group} does not exist{where}",
            f"phiflow up {CONFIGURATION}",
        )
    try:
        _ = facts.regions
    except ConfigError as error:
        yield failed("region", error.message, error.fix)


def check_sizes(facts: Facts) -> Iterator[Check]:
    """Whether the region has the sizes, for this subscription."""
    wanted = {
        "training": ("compute.size", facts.config.compute.size),
        "serving": ("serving.instance_type", facts.config.serving.instance_type),
    }
    for location, parts in facts.regions.items():
        sizes, restricted = facts.sizes(location), _restricted(facts, location)
        for key, name in (wanted[part] for part in parts if wanted[part][1]):
            known, reason = sizes.get(name.lower()), restricted.get(name.lower(), "")
            if known is None:
                reason = "the region does not offer it"
            elif key == "compute.size" and facts.config.compute.tier == "low_priority" and not known.low_priority:
                reason = "it has no low priority"
            if not reason:
                yield passed("size", f"{name} ({key}) is available in {location}")
                continue
            near = [other for other in _like(name, sizes) if other.lower() not in restricted]
            fix = (
                f"--set {key}={near[0]}" + (f", or {', '.join(near[1:])}" if near[1:] else "") if near else f"Set {key}"
            )
            yield failed("size", f"{name} ({key}) is not available in {location}: {reason}", fix, Failure.CAPACITY)


def check_endpoint_name(facts: Facts) -> Iterator[Check]:
    """Whether the endpoint's name, one in its region, is ours or free."""
    name = facts.config.endpoint_name
    location = next(region for region, parts in facts.regions.items() if "serving" in parts)
    taken = is_name_taken(name, location)
    if taken is False:
        yield passed("endpoint", f"{name} is free in {location}")
    elif facts.has_workspace and Resource(facts.workspace, f"onlineEndpoints/{name}", f"Endpoint {name}").read():
        yield passed("endpoint", f"{name} is in this workspace")
    elif taken:
        found = f"the name {name} is taken in {location} by somebody else's endpoint"
        yield failed("endpoint", found, f"--set endpoint.name={name[:25].rstrip('-')}-{secrets.token_hex(3)}")
    else:
        yield warned("endpoint", f"whether {name} is free in {location} could not be seen in the names of hosts")


def is_name_taken(name: str, location: str) -> bool | None:
    """Whether an endpoint of that name answers in a region; None when the resolver cannot tell.

    No call of the service says it, but each endpoint has a host name: that of its scoring address.
    """
    domain = f"{location}.inference.ml.azure.com"
    try:
        if not _resolves(f"{name}.{domain}"):
            return False
        return None if _resolves(f"phi-{secrets.token_hex(6)}.{domain}") else True
    except OSError:
        return None


def check_names(facts: Facts) -> Iterator[Check]:
    """Whether what `phiflow up` makes can have the names it gives: none in use elsewhere, or kept by a soft delete."""
    if not facts.makes_workspace:
        return
    location = next(iter(facts.regions))
    names, existing = resource_names(facts.place), facts.place.resources
    kinds = (
        ("storage account", existing.storage_account, names.storage_account, _STORAGE_API),
        ("key vault", existing.key_vault, names.key_vault, _VAULTS_API),
        ("container registry", existing.container_registry, names.container_registry, _REGISTRY_API),
    )
    free = []
    for kind, named, resource_id, version in kinds:
        if named:
            if facts.find(named, version, f"The {kind}") is None:
                found = f"platform.resources names the {kind} {last_name(named)}, which does not exist"
                fix = f"Correct platform.resources.{kind.replace(' ', '_')}, or empty it to have one made"
                yield failed("name", found, fix)
            continue
        if facts.find(resource_id, version, f"The {kind}"):
            continue
        check = _deleted_vault(facts, last_name(resource_id), location) if kind == "key vault" else None
        check = check or _taken(facts, kind, resource_id, version)
        if check:
            yield check
        else:
            free.append(kind)
    if free:
        yield passed("names", f"{names.base} is free as {', '.join(free)}")


def check_images(facts: Facts) -> Iterator[Check]:
    """Whether the base images of the environments exist where their Dockerfiles say."""
    folders = {facts.config.environment.training, facts.config.serving_environment}
    images: set[str] = set()
    for name in folders:
        dockerfile = project_folder("environments", name) / "Dockerfile"
        text = dockerfile.read_text(encoding="utf-8") if dockerfile.is_file() else ""
        images |= {image for image in re.findall(r"(?m)^FROM\s+(\S+)", text) if "/" in image and "$" not in image}
    for image in sorted(images):
        yield _image(image)


def _image(image: str) -> Check:
    host, _, path = image.partition("/")
    repository, _, tag = path.partition(":")
    try:
        url = f"https://{host}/v2/{repository}/manifests/{tag or 'latest'}"
        response = requests.head(url, headers={"Accept": _MANIFESTS}, timeout=_SECONDS, allow_redirects=True)
    except requests.RequestException as error:
        found = f"{path}: not checked, {host} was not reached ({type(error).__name__})"
        return warned("image", found)
    if response.status_code == 404:
        found = f"{image} does not exist"
        return failed("image", found, "Correct FROM in environments/*/Dockerfile")
    if not response.ok:
        found = f"{path}: not checked, {host} answered {response.status_code}"
        return warned("image", found)
    return passed("image", path)


def _resolves(host: str) -> bool:
    """Whether a host name exists; OSError when the resolver does not answer."""
    try:
        socket.getaddrinfo(host, 443, type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
            return False
        raise
    return True


def _restricted(facts: Facts, location: str) -> dict[str, str]:
    """Sizes that the region has and this subscription may not use, with the reason; nothing where it cannot be read."""
    url, chosen = f"{facts.subscription_id}/providers/Microsoft.Compute/skus", f"location eq '{location}'"
    try:
        entries = list(facts.pages(url, _SKUS_API, "The sizes of virtual machines", **{"$filter": chosen}))
    except PhiflowError:
        return {}
    found = {}
    for entry in entries:
        for restriction in entry.get("restrictions") or ():
            if restriction.get("type") == "Location" and entry.get("resourceType") == "virtualMachines":
                found[str(entry["name"]).lower()] = str(restriction.get("reasonCode") or "restricted")
    return found


def _like(name: str, sizes: dict[str, Any]) -> list[str]:
    """Sizes of the region whose names begin as that one does."""
    letters = re.match(r"standard_[a-z]+", name.lower())
    start = letters[0] if letters else name.lower()
    return sorted(size.name for key, size in sizes.items() if key.startswith(start) and key != name.lower())[:4]


def _deleted_vault(facts: Facts, name: str, location: str) -> Check | None:
    url = f"{facts.subscription_id}/providers/Microsoft.KeyVault/locations/{location}/deletedVaults/{name}"
    try:
        deleted = facts.find(url, _VAULTS_API, f"Deleted key vault {name}")
    except PermissionDeniedError:
        return None
    if deleted is None:
        return None
    until = str((deleted.get("properties") or {}).get("scheduledPurgeDate") or "")[:10]
    found = f"key vault {name} was deleted and keeps its name{f' until {until}' if until else ''}"
    return failed("name", found, f"az keyvault purge --name {name} --location {location}")


def _taken(facts: Facts, kind: str, resource_id: str, version: str) -> Check | None:
    """Whether somebody else has the name of something that is not there."""
    namespace = resource_id.split("/providers/")[1].split("/")
    url = f"{facts.subscription_id}/providers/{namespace[0]}/checkNameAvailability"
    body = {"name": last_name(resource_id), "type": "/".join(namespace[:2])}
    try:
        answer = facts.workspace.send(
            "POST", url, params={"api-version": version}, json=body, what=f"The name of the {kind}", idempotent=True
        ).json()
    except PermissionDeniedError:
        return None
    if answer.get("nameAvailable", True):
        return None
    found = f"the name {body['name']} for the {kind} is not free: {answer.get('message') or answer.get('reason')}"
    key = kind.replace(" ", "_")
    fix = f"Choose another platform.workspace, or name an existing one in platform.resources.{key}"
    return failed("name", found, fix)
