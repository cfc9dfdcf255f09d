"""What a job starts from: the prepared data and the resolved base model, each named by its content."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.errors import (
    ConfigError,
    DataError,
    PermissionDeniedError,
    PhiflowError,
    TransientPlatformError,
)
from tasks.platforms.local.files import digest_files, file_lock, read_json
from tasks.platforms.local.preflight import BUILTIN, HUB_ID, require_base_model, require_files, require_source
from tasks.platforms.local.state import KEEP_BYTECODE, Home, project_folder
from tasks.platforms.refs import BaseModelRef, DataManifest, EnvironmentRef, Origin, digest_of
from trainer.files import sha256_file

if TYPE_CHECKING:
    from tasks.config import DataConfig, ModelConfig, SourceConfig

_log = logging.getLogger(__name__)
_INPUT_ERROR = 2
CORPUS = "phiflow_questions.jsonl"


class Preparation:
    """Prepared data and base models of one state folder."""

    def __init__(self, home: Home) -> None:
        self._home = home

    def data(self, data: DataConfig, base: BaseModelRef, environment: EnvironmentRef, max_length: int) -> DataManifest:
        """Run `trainer.data` in the training environment unless its output for this input exists."""
        source, pinned = self.source_identity(data)
        key = data_key(source, data, base, max_length)
        folder = self._home.folder("data") / key
        with file_lock(self._home.path("data", f".{key}.lock"), 3600, f"data {key}"):
            reused = _is_whole(folder)
            if not reused:
                shutil.rmtree(folder, ignore_errors=True)
                self._run_data(pinned, base, environment, max_length, folder)
        reason = "the source and its settings are unchanged" if reused else "no data with this content"
        return _manifest(folder, Origin(reused=reused, reason=reason))

    def base_model(self, model: ModelConfig, environment: EnvironmentRef) -> BaseModelRef:
        """A hub id becomes a commit, a folder its content's digest; the built-in one is built on first use."""
        if model.base == BUILTIN:
            return _labelled(self._builtin(environment), model.revision)
        require_base_model(model)
        folder = Path(model.base)
        if folder.is_absolute():
            reason = "a folder on this machine"
            digest = digest_files(folder)
            return _labelled(
                _base(model.base, "", digest, str(folder), Origin(reused=True, reason=reason)), model.revision
            )
        commit = hub_commit(model.base, model.revision, "model")
        reason = f"revision {model.revision or 'main'} is commit {commit[:12]}"
        digest = digest_of(model.base, commit)
        return _base(model.base, commit, digest, model.base, Origin(reused=True, reason=reason))

    def _builtin(self, environment: EnvironmentRef) -> BaseModelRef:
        code = self._home.snapshot(project_folder("trainer"), "trainer")
        corpus = project_folder("deployments", "data", CORPUS)
        key = builtin_key(environment)
        folder = self._home.folder("base-models") / f"tiny-phi3-{key}"
        with file_lock(folder.with_suffix(".lock"), 600, "the built-in base model"):
            reused = (folder / "config.json").exists()
            if not reused:
                command = ["trainer.tiny_model", "--corpus", str(corpus), "--output-dir", str(folder)]
                _run_in(environment, code, command, "The built-in base model")
        reason = "built before" if reused else "built now, from its recipe"
        return _base(BUILTIN, "", digest_files(folder), str(folder), Origin(reused=reused, reason=reason))

    def source_identity(self, data: DataConfig) -> tuple[list[str], DataConfig]:
        """What the sources are now: the content of files, the commits of hub data sets; and the data at those."""
        require_source(data)
        identity: list[str] = []

        def pin(source: SourceConfig) -> SourceConfig:
            found, pinned = identify(source)
            identity.extend(found)
            return pinned

        return identity, data.with_sources(pin)

    def _run_data(
        self, data: DataConfig, base: BaseModelRef, environment: EnvironmentRef, max_length: int, folder: Path
    ) -> None:
        command = ["trainer.data", "--output-dir", str(folder)]
        for source in data.sources:
            command += ["--source", _source_argument(source)]
        options: dict[str, Any] = {
            "--shape": data.shape,
            "--group-by": data.group_by,
            "--test-share": data.test_share,
            "--test-source": _source_argument(data.tests) if data.tests else "",
            "--seed": data.seed,
            "--max-rejected-share": data.max_rejected_share,
            "--max-examples": data.max_examples or "",
            "--tokenizer": base.location,
            "--max-length": max_length,
        }
        for option, value in options.items():
            if value != "":
                command += [option, str(value)]
        command += [f"--{name}" for name in ("streaming", "deduplicate") if getattr(data, name)]
        code = self._home.snapshot(project_folder("trainer"), "trainer")
        _run_in(environment, code, command, f"Data {data.label}", DataError)


def identify(source: SourceConfig) -> tuple[list[str], SourceConfig]:
    """What names one source now, its own settings included, and the source at that state."""
    settings = source.model_dump(mode="json", exclude={"source", "revision"}, exclude_defaults=True)
    told = ["source", *([json.dumps(settings, sort_keys=True)] if settings else [])]
    if source.is_file:
        return [*told, *(sha256_file(path) for path in require_files(source.source))], source
    commit = hub_commit(source.source, source.revision, "dataset")
    return [*told, source.source, commit], source.model_copy(update={"revision": commit})


def _source_argument(source: SourceConfig) -> str:
    """A source as `python -m trainer.data` reads it: a name, or JSON when there is more to say."""
    local = {"config", "split", "revision"} if source.is_file else set()
    values = source.model_dump(mode="json", exclude=local, exclude_defaults=True)
    return json.dumps(values, ensure_ascii=False) if len(values) > 1 else source.source


def data_key(source: list[str], data: DataConfig, base: BaseModelRef, max_length: int) -> str:
    """Names prepared data by all that decides it.

    Args:
        source: what `source_identity` says of the source.
    """
    settings = data.model_dump(mode="json", exclude={"source", "test_source", "revision", "streaming"})
    settings["has_test_source"] = bool(data.test_source)
    data_code = digest_files(project_folder("trainer", "data"))
    return digest_of(source, settings, base.digest, max_length, data_code)[:16]


def builtin_key(environment: EnvironmentRef) -> str:
    """Names the built-in base model by its recipe and the environment that builds it."""
    trainer, corpus = project_folder("trainer"), project_folder("deployments", "data", CORPUS)
    recipe = [sha256_file(path) for path in (trainer / "tiny_model.py", trainer / "chat_template.py", corpus)]
    return digest_of(recipe, environment.version)[:16]


def hub_commit(name: str, revision: str, kind: str) -> str:
    """The commit a hub id and revision stand for; offline, the one in the local cache.

    Raises:
        ConfigError: the hub has no such thing.
        PermissionDeniedError: it is gated and the token does not open it.
        TransientPlatformError: the hub did not answer and the cache has no copy.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    what = "Base model" if kind == "model" else "Data set"
    key = "model.base" if kind == "model" else "data.source"
    try:
        if not HUB_ID.fullmatch(name):
            raise ConfigError(f"{what} '{name}' is neither a folder here nor a hub id.", fix=f"Set {key}.")
        info = HfApi().repo_info(name, revision=revision or None, repo_type=kind, timeout=15)
        return str(info.sha)
    except GatedRepoError as error:
        raise PermissionDeniedError(
            f"{what} {name} is gated.", fix="Accept its licence on the hub and set HF_TOKEN."
        ) from error
    except RevisionNotFoundError as error:
        raise ConfigError(f"{what} {name} has no revision '{revision}'.") from error
    except RepositoryNotFoundError as error:
        raise ConfigError(f"The hub has no {what.lower()} '{name}'.", fix=f"Check {key}.") from error
    except (HfHubHTTPError, OSError, RuntimeError) as error:
        return _cached_commit(name, revision, kind, what, key, error, snapshot_download)
    except Exception as error:  # httpx's connection errors have no base class in common with OSError
        if type(error).__module__.partition(".")[0] not in ("httpx", "httpcore", "httpx2"):
            raise
        return _cached_commit(name, revision, kind, what, key, error, snapshot_download)


def _cached_commit(name: str, revision: str, kind: str, what: str, key: str, cause: Exception, download: Any) -> str:
    try:
        pattern = "config.json" if kind == "model" else "README.md"
        cached = download(
            name, revision=revision or None, repo_type=kind, allow_patterns=[pattern], local_files_only=True
        )
        return Path(cached).name
    except Exception as error:
        raise TransientPlatformError(
            f"{what} '{name}' is not a file or folder here, and the hub did not answer ({type(cause).__name__}).",
            fix=f"Check {key} and the network, or set HF_ENDPOINT to a mirror.",
        ) from error


def _run_in(
    environment: EnvironmentRef,
    code: Path,
    command: list[str],
    what: str,
    error_class: type[PhiflowError] = PhiflowError,
) -> None:
    python = str(Path(environment.location) / "bin" / "python")
    with tempfile.TemporaryDirectory(prefix="phiflow-") as working_folder:
        process = subprocess.Popen(
            [python, "-m", *command],
            cwd=working_folder,
            env={**os.environ, "PYTHONPATH": str(code), **KEEP_BYTECODE},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
        )
        assert process.stderr is not None
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip())
            _log.info(lines[-1])
            del lines[:-200]
        returncode = process.wait()
    if returncode == _INPUT_ERROR and lines:
        start = next((i for i, line in enumerate(lines) if "rror" in line or "rejected" in line), 0)
        raise error_class(lines[start].removeprefix("error: "), detail=tuple(lines[start + 1 :]))
    if returncode:
        raise PhiflowError(
            f"{what} failed with exit code {returncode}: {lines[-1] if lines else 'no output'}",
            detail=tuple(lines[-10:]),
        )


def _is_whole(folder: Path) -> bool:
    manifest = read_json(folder / "manifest.json", None)
    return manifest is not None and all(
        (folder / f"{side}.jsonl").exists() and sha256_file(folder / f"{side}.jsonl") == manifest["sha256"][side]
        for side in ("train", "test")
    )


def _manifest(folder: Path, origin: Origin) -> DataManifest:
    manifest = read_json(folder / "manifest.json")
    return DataManifest(
        digest=manifest["digest"],
        train_file=str(folder / "train.jsonl"),
        test_file=str(folder / "test.jsonl"),
        manifest_file=str(folder / "manifest.json"),
        train_sha256=manifest["sha256"]["train"],
        test_sha256=manifest["sha256"]["test"],
        num_train=manifest["counts"]["train"],
        num_test=manifest["counts"]["test"],
        num_rejected=manifest["counts"]["rejected"],
        origin=origin,
    )


def _labelled(base: BaseModelRef, revision: str) -> BaseModelRef:
    """Content that has no revisions: a label given for one still makes another name."""
    return replace(base, digest=digest_of(base.digest, revision)) if revision else base


def _base(base: str, revision: str, digest: str, location: str, origin: Origin) -> BaseModelRef:
    return BaseModelRef(base=base, revision=revision, digest=digest, location=location, origin=origin)
