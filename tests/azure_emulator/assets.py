"""Versioned assets: environments, code, data and models. A version is made once; only what describes it changes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from tests.azure_emulator.asset_spec import SPECS, AssetSpec
from tests.azure_emulator.names import PRINCIPAL
from tests.azure_emulator.web import Answer, Request, not_found, now, user_error, validation_error

if TYPE_CHECKING:
    from tests.azure_emulator.server import Emulator

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,29}")
_CODE_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,254}")
_DESCRIPTIVE = ("description", "tags", "properties", "isArchived", "isAnonymous", "stage", "autoDeleteSetting")


def install(emulator: Emulator) -> None:
    """Register the routes of all kinds of assets."""
    for kind, spec in SPECS.items():
        assets = Assets(emulator, kind, spec)
        register = emulator.register
        register("GET", f"W/{kind}", assets.list_containers)
        register("GET", f"W/{kind}/{{name}}", assets.read_container)
        register("PUT", f"W/{kind}/{{name}}", assets.put_container)
        register("GET", f"W/{kind}/{{name}}/versions", assets.list_versions)
        register("GET", f"W/{kind}/{{name}}/versions/{{version}}", assets.read)
        register("PUT", f"W/{kind}/{{name}}/versions/{{version}}", assets.put)
        register("DELETE", f"W/{kind}/{{name}}/versions/{{version}}", assets.delete)
        register("POST", f"W/{kind}/{{name}}/versions/{{version}}/startPendingUpload", assets.start_upload)


class Assets:
    """The assets of one kind."""

    def __init__(self, emulator: Emulator, kind: str, spec: AssetSpec) -> None:
        self._emulator = emulator
        self._store = emulator.store
        self._kind = kind
        self._spec = spec
        self._base = f"{emulator.workspace_id}/{kind}"

    def put(self, request: Request) -> Answer:
        name, version = request.parameters["name"], request.parameters["version"]
        self._require_name(name, version)
        given = request.json.get("properties")
        if not isinstance(given, dict):
            raise validation_error("The properties field is required.")
        resource_id = f"{self._base}/{name}/versions/{version}"
        with self._store.lock:
            before = self._store.get(resource_id)
            properties = self._spec.properties(given, self._emulator)
            if before is not None:
                self._require_unchanged(before["properties"], properties, name, version)
                properties = before["properties"] | {key: properties[key] for key in _DESCRIPTIVE if key in properties}
            resource = self._resource(resource_id, version, properties, before)
            self._store.put(resource_id, resource)
            self._touch_container(name, properties)
        location = f"{self._emulator.url}{resource_id}?api-version={request.api_version}"
        return Answer(200, resource) if before else Answer(201, resource, {"Location": location})

    def read(self, request: Request) -> Answer:
        return Answer(200, self._find(request))

    def delete(self, request: Request) -> Answer:
        found = self._store.get(self._id(request))
        if found is None:
            return Answer(204)
        self._store.delete(found["id"])
        return Answer(200)

    def list_versions(self, request: Request) -> Answer:
        """Versions, the newest first; code is looked for by hash among all names."""
        query, name = request.query, request.parameters["name"]
        if query.get("hash"):
            found = [one for one in self._store.walk(self._base) if _hash(one) == query["hash"]]
            return self._emulator.page(request, found)
        if self._store.get(f"{self._base}/{name}") is None:
            raise self._no_container(name)
        found = _listed(self._store.list(f"{self._base}/{name}/versions"), query)
        found.sort(key=lambda one: one["systemData"]["createdAt"], reverse=True)
        return self._emulator.page(request, found)

    def list_containers(self, request: Request) -> Answer:
        found = [self._shown(one) for one in self._store.list(self._base)]
        return self._emulator.page(request, _listed(found, request.query))

    def read_container(self, request: Request) -> Answer:
        found = self._store.get(f"{self._base}/{request.parameters['name']}")
        if found is None:
            raise self._no_container(request.parameters["name"])
        return Answer(200, self._shown(found))

    def put_container(self, request: Request) -> Answer:
        name, given = request.parameters["name"], request.json.get("properties") or {}
        self._require_name(name, "1")
        with self._store.lock:
            before = self._store.get(f"{self._base}/{name}")
            self._touch_container(name, given)
            resource = self._store.get(f"{self._base}/{name}")
            assert resource is not None
            for field in ("description", "tags", "properties", "isArchived"):
                if given.get(field) is not None:
                    resource["properties"][field] = given[field]
            self._store.put(resource["id"], resource)
        return Answer(200 if before else 201, self._shown(resource))

    def start_upload(self, request: Request) -> Answer:
        """Give out a container for the content of a version that is about to be made."""
        name, version = request.parameters["name"], request.parameters["version"]
        self._require_name(name, version)
        if request.json.get("pendingUploadType") != "TemporaryBlobReference":
            raise validation_error(f"The pendingUploadType '{request.json.get('pendingUploadType')}' is not supported.")
        upload = self._emulator.storage.open_upload()
        return Answer(200, upload)

    def _require_name(self, name: str, version: str) -> None:
        if not _NAME.fullmatch(name):
            raise validation_error(
                f"The name '{name}' is invalid: letters, digits, '-', '_' and '.', at most 255, none of them first."
            )
        pattern = _CODE_VERSION if self._kind == "codes" else _VERSION
        if not pattern.fullmatch(version):
            raise validation_error(
                f"The version '{version}' is invalid: letters, digits, '-', '_' and '.', at most 30."
            )

    def _require_unchanged(self, before: dict[str, Any], wanted: dict[str, Any], name: str, version: str) -> None:
        for field in self._spec.immutable:
            if wanted.get(field) != before.get(field):
                raise user_error(self._spec.refusal.format(name=name, version=version, field=field), 409)

    def _resource(
        self, resource_id: str, version: str, properties: dict[str, Any], before: dict[str, Any] | None
    ) -> dict[str, Any]:
        return {
            "id": resource_id,
            "name": version,
            "type": f"Microsoft.MachineLearningServices/workspaces/{self._kind}/versions",
            "properties": properties,
            "systemData": _system_data(before),
        }

    def _touch_container(self, name: str, properties: dict[str, Any]) -> None:
        resource_id = f"{self._base}/{name}"
        before = self._store.get(resource_id)
        own = {"description": None, "tags": {}, "properties": {}, "isArchived": False}
        if self._kind == "data":
            own["dataType"] = properties.get("dataType")
        resource = {
            "id": resource_id,
            "name": name,
            "type": f"Microsoft.MachineLearningServices/workspaces/{self._kind}",
            "properties": before["properties"] if before else own,
            "systemData": _system_data(before),
        }
        self._store.put(resource_id, resource)

    def _shown(self, container: dict[str, Any]) -> dict[str, Any]:
        """A container with the versions that the service computes."""
        versions = self._store.list(f"{container['id']}/versions")
        versions.sort(key=lambda one: one["systemData"]["createdAt"])
        numbers = [int(one["name"]) for one in versions if one["name"].isdecimal()]
        told = {
            "latestVersion": versions[-1]["name"] if versions else None,
            "nextVersion": str(max(numbers, default=0) + 1),
        }
        properties = dict(container["properties"])
        if "dataType" not in properties:
            return {**container, "properties": {**properties, **told}}
        kind = {"dataType": properties.pop("dataType")}
        # Of data alone the service does not say who changed the container.
        times = {key: said for key, said in container["systemData"].items() if not key.startswith("lastModifiedBy")}
        return {**container, "properties": {**properties, **told, **kind}, "systemData": times}

    def _id(self, request: Request) -> str:
        return f"{self._base}/{request.parameters['name']}/versions/{request.parameters['version']}"

    def _find(self, request: Request) -> dict[str, Any]:
        found = self._store.get(self._id(request))
        if found is None:
            name, version = request.parameters["name"], request.parameters["version"]
            raise not_found(self._spec.missing.format(name=name, version=version))
        return found

    def _no_container(self, name: str) -> Exception:
        return not_found(self._spec.missing.format(name=name, version=""))


def _system_data(before: dict[str, Any] | None) -> dict[str, Any]:
    moment = now()
    created = before["systemData"]["createdAt"] if before else moment
    return {
        "createdAt": created,
        "createdBy": PRINCIPAL,
        "createdByType": "Application",
        "lastModifiedAt": moment,
        "lastModifiedBy": PRINCIPAL,
        "lastModifiedByType": "Application",
    }


def _hash(resource: dict[str, Any]) -> str:
    return str((resource["properties"].get("properties") or {}).get("hash_sha256", ""))


def _listed(found: list[dict[str, Any]], query: dict[str, str]) -> list[dict[str, Any]]:
    """Those that the view and the tags ask for."""
    view = query.get("listViewType", "ActiveOnly").lower()
    if view != "all":
        found = [one for one in found if bool(one["properties"].get("isArchived")) == (view == "archivedonly")]
    for wanted in filter(None, query.get("tags", "").split(",")):
        key, equals, value = wanted.partition("=")
        found = [
            one
            for one in found
            if key in (tags := one["properties"].get("tags") or {}) and (not equals or tags[key] == value)
        ]
    return found
