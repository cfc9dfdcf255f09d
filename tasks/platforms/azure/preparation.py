"""What a job starts from, in the workspace's storage by its content: prepared data and the base model.

Data is prepared on this machine, by the local platform, and only when no prepared data of this input is there:
a container that starts empty adopts what an earlier one uploaded, without building any environment.
"""

from __future__ import annotations

import functools
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.sources import (
    Remote,
    data_elsewhere,
    data_here,
    is_elsewhere,
    is_remote,
    open_remote,
    registered_model,
    workspace_model,
)
from tasks.platforms.azure.translate import translated
from tasks.platforms.errors import ConfigError, DataError, NotFoundError, PermissionDeniedError, PhiflowError
from tasks.platforms.local.files import digest_files, file_lock, write_atomic
from tasks.platforms.local.preflight import BUILTIN, registered_version, require_source
from tasks.platforms.local.preparation import builtin_key, data_key, identify
from tasks.platforms.refs import BaseModelRef, DataManifest, EnvironmentRef, Origin, digest_of

if TYPE_CHECKING:
    from tasks.config import DataConfig, ModelConfig, SourceConfig
    from tasks.platforms.azure.client import Workspace
    from tasks.platforms.local.local_platform import LocalPlatform

_log = logging.getLogger(__name__)
DATA, DATA_KEYS = "phiflow/data", "phiflow/data-keys"
BASE_MODELS, BASE_MODEL_KEYS = "phiflow/base-models", "phiflow/base-model-keys"
_TOKENIZER_FILES = ("tokenizer*", "*.jinja", "*.model", "vocab.*", "merges.txt", "*_tokens*.json", "config.json")
_DOWNLOAD_SECONDS = 3600


class Preparation:
    """Prepared data and base models of one workspace."""

    def __init__(self, workspace: Workspace, this_machine: LocalPlatform) -> None:
        self._workspace = workspace
        self._this_machine = this_machine
        self._home = this_machine.home

    def data(
        self,
        data: DataConfig,
        base: BaseModelRef,
        environment: EnvironmentRef,
        max_length: int,
        *,
        create: bool = True,
    ) -> DataManifest:
        """Adopt the prepared data of this input, or prepare it here and upload it under its digest."""
        with self._hub_token():
            identity, pinned = self._source_identity(data)
        key = data_key(identity, data, base, max_length)
        manifest = self._read_manifest(key)
        reused = manifest is not None
        if manifest is None:
            prepared = self._prepare(pinned, base, environment, max_length)
            if create:
                self._upload_data(key, prepared)
            manifest = json.loads(Path(prepared.manifest_file).read_bytes())
            self._keep_beside_manifest(key, Path(prepared.train_file))
        reason = "the source and its settings are unchanged" if reused else "no data of this input was in the workspace"
        return self._data_manifest(key, manifest, Origin(reused=reused, reason=reason))

    def base_model(self, model: ModelConfig, environment: EnvironmentRef, *, create: bool = True) -> BaseModelRef:
        """A hub id becomes a commit, a folder here its content in the workspace's storage; `azureml:` stays."""
        if version := registered_version(model.base):
            return self._remote_model(model.model_copy(update={"base": f"azureml:{version[0]}:{version[1]}"}))
        if is_remote(model.base):
            return self._remote_model(model)
        if model.base == BUILTIN:
            return self._builtin(model, environment, create=create)
        with self._hub_token():
            found = self._this_machine.resolve_base_model(model, environment)
        if not Path(model.base).is_absolute() or not create:
            return found  # jobs load it from the hub, by its commit
        return self._upload_model(found, Path(found.location))

    # Data

    def _source_identity(self, data: DataConfig) -> tuple[list[str], DataConfig]:
        """What the sources are now, wherever they lie, and the data at that state."""
        require_source(data_here(data))
        addresses = dict((address, key) for key, address in reversed(data_elsewhere(data)))
        identity: list[str] = []

        def pin(source: SourceConfig) -> SourceConfig:
            if not is_elsewhere(source):
                found, source = identify(source)
                identity.extend(found)
                return source
            address = source.source
            settings = source.model_dump(mode="json", include={"weight", "shape"}, exclude_defaults=True)
            version = require_file(open_remote(self._workspace, address, addresses[address]), address)
            identity.extend(["source", address, version, *([json.dumps(settings, sort_keys=True)] if settings else [])])
            return source

        return identity, data.with_sources(pin)

    def _read_manifest(self, key: str) -> dict[str, Any] | None:
        storage = self._workspace.storage
        try:
            manifest: dict[str, Any] = json.loads(storage.read(f"{DATA_KEYS}/{key}.json"))
        except NotFoundError:
            return None
        folder = f"{DATA}/{manifest['digest']}"
        kept = set(storage.names(f"{folder}/"))
        return manifest if {f"{folder}/train.jsonl", f"{folder}/test.jsonl"} <= kept else None

    def _prepare(
        self, data: DataConfig, base: BaseModelRef, environment: EnvironmentRef, max_length: int
    ) -> DataManifest:
        here = self._this_machine.ensure_environment(environment.name)
        data = data.with_sources(self._local)
        with self._hub_token():
            tokenizer = replace(base, location=self._tokenizer(base, here))
            return self._this_machine.prepare_data(data, tokenizer, here, max_length)

    def _upload_data(self, key: str, prepared: DataManifest) -> None:
        text = Path(prepared.manifest_file).read_bytes()
        storage, folder = self._workspace.storage, f"{DATA}/{prepared.digest}"
        if not storage.exists(f"{folder}/manifest.json"):  # the last that is uploaded, so all are there
            storage.upload_file(f"{folder}/train.jsonl", prepared.train_file)
            storage.upload_file(f"{folder}/test.jsonl", prepared.test_file)
            storage.write(f"{folder}/manifest.json", text)
        storage.write(f"{DATA_KEYS}/{key}.json", text)

    def _data_manifest(self, key: str, manifest: dict[str, Any], origin: Origin) -> DataManifest:
        here = self._home.path("azure", "data", key, "manifest.json")
        write_atomic(here, json.dumps(manifest, indent=2, ensure_ascii=False) + "\n")
        uri = self._workspace.storage.uri
        return DataManifest(
            digest=manifest["digest"],
            train_file=uri(f"{DATA}/{manifest['digest']}/train.jsonl"),
            test_file=uri(f"{DATA}/{manifest['digest']}/test.jsonl"),
            manifest_file=str(here),
            train_sha256=manifest["sha256"]["train"],
            test_sha256=manifest["sha256"]["test"],
            num_train=manifest["counts"]["train"],
            num_test=manifest["counts"]["test"],
            num_rejected=manifest["counts"]["rejected"],
            origin=origin,
        )

    def _keep_beside_manifest(self, key: str, train_file: Path) -> None:
        """Let an estimate see how long the conversations are, where they were prepared on this machine."""
        link = self._home.folder("azure", "data", key) / train_file.name
        link.unlink(missing_ok=True)
        link.symlink_to(train_file)

    def _local(self, source: SourceConfig) -> SourceConfig:
        """A file in Azure as one of this machine, downloaded once; any other source as it is."""
        if not is_elsewhere(source):
            return source
        address = source.source
        remote = open_remote(self._workspace, address, "data.source")
        version = digest_of(address, require_file(remote, address))[:16]
        target = self._home.path("azure", "sources", version, PurePosixPath(remote.path).name)
        with file_lock(target.parent.with_suffix(".lock"), _DOWNLOAD_SECONDS, f"data {address}"):
            if not target.exists():
                remote.storage.download_file(remote.path, target)
        return source.model_copy(update={"source": str(target), "config": "", "split": "", "revision": ""})

    # Base model

    def _builtin(self, model: ModelConfig, environment: EnvironmentRef, *, create: bool) -> BaseModelRef:
        """The built-in model as it was uploaded, or built here and uploaded now."""
        storage, key = self._workspace.storage, f"{BASE_MODEL_KEYS}/{builtin_key(environment)}.json"
        label = model.revision
        try:
            known = json.loads(storage.read(key))
            if storage.exists(f"{BASE_MODELS}/{known['digest']}.json"):
                origin = Origin(reused=True, reason="uploaded before, from its recipe")
                return self._uploaded(model, known["digest"], label, origin)
        except NotFoundError:
            pass
        here = self._this_machine.ensure_environment(environment.name)
        built = self._this_machine.resolve_base_model(model.model_copy(update={"revision": ""}), here)
        if not create:
            return replace(self._uploaded(model, built.digest, label, built.origin), location=built.location)
        uploaded = self._upload_model(built, Path(built.location))
        digest = storage.path_of(uploaded.location).rpartition("/")[2]
        storage.write(key, json.dumps({"digest": digest}).encode())
        return self._uploaded(model, digest, label, uploaded.origin)

    def _uploaded(self, model: ModelConfig, digest: str, label: str, origin: Origin) -> BaseModelRef:
        return BaseModelRef(
            base=model.base,
            revision="",
            digest=digest_of(digest, label) if label else digest,
            location=self._workspace.storage.uri(f"{BASE_MODELS}/{digest}"),
            origin=origin,
        )

    def _upload_model(self, model: BaseModelRef, folder: Path) -> BaseModelRef:
        digest = digest_files(folder)
        storage, prefix = self._workspace.storage, f"{BASE_MODELS}/{digest}"
        reused = storage.exists(f"{prefix}.json")
        if not reused:
            storage.upload_folder(prefix, folder)
            storage.write(f"{prefix}.json", json.dumps({"base": model.base}).encode())  # last, so all are there
        reason = "uploaded before, by its content" if reused else "uploaded now"
        return replace(model, location=storage.uri(prefix), origin=Origin(reused=reused, reason=reason))

    def _remote_model(self, model: ModelConfig) -> BaseModelRef:
        """A registered model by its version; a folder in a datastore by what is in it now."""
        content: Any = []
        if registered_model(model.base):
            reason = "a registered version"
            if found := workspace_model(model.base):
                self._require_registered(*found)
        else:
            reason = "a folder in a datastore, as it is now"
            remote = open_remote(self._workspace, model.base, "model.base")
            try:
                content = sorted(remote.versions().items())
                if not content:
                    raise ConfigError(f"Base model {model.base} does not exist.", fix="Check model.base.")
            except PermissionDeniedError as error:
                _log.warning("May not look into the base model, so its address alone names it: %s", error.message)
        digest = digest_of(model.base, content, model.revision)
        origin = Origin(reused=True, reason=reason)
        return BaseModelRef(base=model.base, revision="", digest=digest, location=model.base, origin=origin)

    def _require_registered(self, name: str, version: str) -> str:
        try:
            with translated(f"Model {name}:{version}"):
                return str(self._workspace.ml.models.get(name, version=version).path or "")
        except NotFoundError as error:
            raise ConfigError(
                f"There is no model {name}:{version} in the workspace.", fix="Check model.base."
            ) from error

    def _tokenizer(self, base: BaseModelRef, here: EnvironmentRef) -> str:
        """What counts tokens while data is prepared: a folder here or a hub id; empty when none can be had."""
        if base.base == BUILTIN:
            return self._this_machine.resolve_base_model(_builtin_config(), here).location
        if not is_remote(base.base):
            return base.base
        address = base.base
        if found := workspace_model(address):
            address = self._require_registered(*found)
        try:
            folder = self._download_tokenizer(open_remote(self._workspace, address, "model.base"), base.digest)
        except PhiflowError as error:  # statistics are no reason to stop a run; the job finds the model itself
            _log.info("Prepared data without token statistics: %s", error.message)
            return ""
        if not folder:
            _log.info("Prepared data without token statistics, for there is no tokenizer at %s", address)
        return folder

    def _download_tokenizer(self, remote: Remote, digest: str) -> str:
        paths = [PurePosixPath(name) for name in remote.versions()]
        folders = [path.parent for path in paths if path.name in ("tokenizer.json", "tokenizer_config.json")]
        if not folders:
            return ""
        folder = min(folders, key=lambda path: len(path.parts))
        target = self._home.path("azure", "tokenizers", digest[:16])
        for path in paths:
            if path.parent == folder and any(path.match(pattern) for pattern in _TOKENIZER_FILES):
                remote.storage.download_file(str(path), target / path.name)
        return str(target)

    @contextmanager
    def _hub_token(self) -> Iterator[None]:
        """The hub token of the key vault, for this block and what it starts, where no HF_TOKEN is set here."""
        token = "" if os.environ.get("HF_TOKEN") else self._hub_token_value
        if token:
            os.environ["HF_TOKEN"] = token
        try:
            yield
        finally:
            if token:
                os.environ.pop("HF_TOKEN", None)

    @functools.cached_property
    def _hub_token_value(self) -> str:
        """The secret's value; empty, with a line that says so, where this caller may not read it."""
        name = self._workspace.config.hub_token_secret
        if not name:
            return ""
        try:
            what = f"Secret {name} of the workspace's key vault"
            url = f"{self._workspace.vault_url}/secrets/{name}"
            answer = self._workspace.send("GET", url, params={"api-version": "7.4"}, scope="vault", what=what)
            return str(answer.json()["value"])
        except (NotFoundError, PermissionDeniedError) as error:
            _log.warning("Looking at the hub without a token: %s", error.message)
            return ""


def require_file(remote: Remote, source: str) -> str:
    """What changes when the file's content does.

    Raises:
        DataError: there is no such file, or it is a folder.
    """
    version = remote.versions()
    if remote.path in version:
        return version[remote.path]
    if version:
        raise DataError(f"Data {source} is a folder, not a file.", fix="Name one file in it.")
    raise DataError(f"Data {source} does not exist.", fix="Check data.source.")


def _builtin_config() -> ModelConfig:
    from tasks.config import ModelConfig

    return ModelConfig(base=BUILTIN)
