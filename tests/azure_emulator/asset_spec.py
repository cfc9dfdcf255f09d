"""What each kind of asset must have, what the service adds to it, and what never changes in a version."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import yaml

from tests.azure_emulator.uris import NoSuchPlaceError, Uris
from tests.azure_emulator.web import ServiceError, not_found, user_error, validation_error

if TYPE_CHECKING:
    from tests.azure_emulator.job_files import Place
    from tests.azure_emulator.server import Emulator

_DATA_TYPES = ("uri_file", "uri_folder", "mltable")
_MODEL_TYPES = ("custom_model", "mlflow_model", "triton_model")
_SHORT_DATASTORE = re.compile(r"azureml://datastores/([^/]+)/paths/(.*)")


@dataclass(frozen=True)
class AssetSpec:
    """One kind of asset.

    Attributes:
        properties: checks a request and completes it to what is stored.
        immutable: what a request for an existing version must repeat.
        missing, refusal: what the service says, with {name}, {version} and {field}.
    """

    properties: Callable[[dict[str, Any], Emulator], dict[str, Any]]
    immutable: tuple[str, ...]
    missing: str
    refusal: str = "Asset paths cannot be updated."


def _common(given: dict[str, Any]) -> dict[str, Any]:
    tags = given.get("tags") or {}
    if not all(isinstance(value, str) for value in tags.values()):
        raise validation_error("The values of tags must be strings.")
    return {
        "description": given.get("description"),
        "tags": tags,
        "properties": {key: str(value) for key, value in (given.get("properties") or {}).items()},
        "isArchived": bool(given.get("isArchived")),
        "isAnonymous": bool(given.get("isAnonymous")),
    }


def _environment(given: dict[str, Any], emulator: Emulator) -> dict[str, Any]:
    image, build = given.get("image"), given.get("build")
    if bool(image) == bool(build):
        raise validation_error("Exactly one of image and build is required.")
    if build:
        if given.get("condaFile"):
            raise validation_error("condaFile cannot be given together with build.")
        if not build.get("contextUri"):
            raise validation_error("The build.contextUri field is required.")
        _require_content(build["contextUri"], emulator)
        build = {"contextUri": build["contextUri"], "dockerfilePath": build.get("dockerfilePath") or "Dockerfile"}
    return {
        **_common(given),
        "environmentType": "UserCreated",
        **({"image": image} if image else {}),
        "condaFile": _conda(given.get("condaFile")),
        **({"build": build} if build else {}),
        "osType": given.get("osType") or "Linux",
        **({"inferenceConfig": given["inferenceConfig"]} if given.get("inferenceConfig") else {}),
    }


def _conda(text: str | None) -> str:
    """The conda file as the service keeps it: JSON."""
    if not text:
        return ""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise validation_error(f"The condaFile is not valid YAML: {error}.") from error
    if not isinstance(value, dict) or not isinstance(value.get("dependencies"), list):
        raise validation_error("The condaFile has no list of dependencies.")
    return json.dumps(value, indent=2)


def _code(given: dict[str, Any], emulator: Emulator) -> dict[str, Any]:
    uri = _required(given, "codeUri")
    _require_content(uri, emulator)
    return {**_common(given), "codeUri": uri}


def _data(given: dict[str, Any], emulator: Emulator) -> dict[str, Any]:
    uri, kind = _required(given, "dataUri"), _required(given, "dataType")
    if kind not in _DATA_TYPES:
        raise validation_error(f"The dataType '{kind}' is not one of {', '.join(_DATA_TYPES)}.")
    _place(uri, emulator)
    return {**_common(given), "dataUri": long_uri(uri, emulator), "dataType": kind}


def _model(given: dict[str, Any], emulator: Emulator) -> dict[str, Any]:
    uri, kind = _required(given, "modelUri"), given.get("modelType") or "custom_model"
    if kind not in _MODEL_TYPES:
        raise validation_error(f"The modelType '{kind}' is not one of {', '.join(_MODEL_TYPES)}.")
    place = _require_content(uri, emulator)
    flavors = given.get("flavors") or {}
    if kind == "mlflow_model":
        flavors = flavors or _flavors(place, emulator)
    job = re.search(r"/jobs/([^/]+)/outputs/", uri)
    return {
        **_common(given),
        "flavors": flavors,
        "modelType": kind,
        "modelUri": long_uri(uri, emulator),
        "jobName": given.get("jobName") or (job[1] if job else None),
        **({"stage": given["stage"]} if given.get("stage") else {}),
    }


def _flavors(place: Place, emulator: Emulator) -> dict[str, Any]:
    """What the service reads from the model's MLmodel."""
    blob = emulator.storage.client().get_blob_client(place.container, f"{place.path}/MLmodel".lstrip("/"))
    if not blob.exists():
        raise user_error(f"The model of type mlflow_model at {place.path} has no file MLmodel.")
    document = yaml.safe_load(blob.download_blob().readall()) or {}
    return {
        name: {"data": {key: str(value) for key, value in (flavor or {}).items()}}
        for name, flavor in (document.get("flavors") or {}).items()
    }


def _required(given: dict[str, Any], field: str) -> str:
    if not given.get(field):
        raise validation_error(f"The {field} field is required.")
    return str(given[field])


def _place(uri: str, emulator: Emulator) -> Place:
    if uri.startswith("https://") and not uri.startswith(emulator.storage.account().url):
        raise user_error(f"The storage account of {uri.split('?')[0]} is not one that this workspace can read.")
    try:
        return Uris(emulator.workspace_id, emulator.store.get).place(uri)
    except NoSuchPlaceError as error:
        message = str(error)
        raise (not_found(message) if message.startswith("Could not find") else user_error(message)) from error


def _require_content(uri: str, emulator: Emulator) -> Place:
    """The place of a URI, which must have at least one blob."""
    place = _place(uri, emulator)
    container = emulator.storage.client().get_container_client(place.container)
    if not container.exists() or next(iter(container.list_blobs(name_starts_with=place.path)), None) is None:
        raise ServiceError(400, "UserError", f"There is no content at {uri.split('?')[0]}.", inner="BadArgument")
    return place


def long_uri(uri: str, emulator: Emulator) -> str:
    """A datastore's URI as the service shows it, with the workspace's coordinates; others as they are."""
    match = _SHORT_DATASTORE.fullmatch(uri)
    if not match:
        return uri
    scope = emulator.scope
    return (
        f"azureml://subscriptions/{scope.subscription}/resourcegroups/{scope.group}/workspaces/{scope.workspace}"
        f"/datastores/{match[1]}/paths/{match[2]}"
    )


_CHANGED = "The environment {name}:{version} already exists with another {field}. Use another version."
SPECS = {
    "environments": AssetSpec(
        _environment,
        ("image", "condaFile", "build", "osType", "inferenceConfig"),
        "No environment exists for name: {name}, version: {version}, label: ",
        _CHANGED,
    ),
    "codes": AssetSpec(_code, ("codeUri",), "Could not find asset with ID: {name}/versions/{version}"),
    "data": AssetSpec(_data, ("dataUri", "dataType"), "Could not find data: {name}, version: {version}."),
    "models": AssetSpec(_model, ("modelUri", "modelType"), "Model container with name: {name} not found. {version}"),
}
