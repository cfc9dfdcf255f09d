"""The Azure form of an environment's folder: `environment.yaml`, and exactly the files its image is made from.

`environment.yaml` follows the az ml v2 schema: an image with a conda file, or a build context with a
Dockerfile. Of a build context the Dockerfile and what it copies belong to the image, nothing else; what it
copies from outside its folder is one of the shared sources, by their name.
"""

from __future__ import annotations

import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tasks.platforms.errors import ConfigError
from tasks.platforms.local.files import digest_files
from tasks.platforms.local.state import project_folder

DEFINITION = "environment.yaml"
# What a Dockerfile may copy besides its own folder's files; each ships with phiflow.
_SHARED = {"server": ("deployments", "server"), "trainer": ("trainer",)}
_NEVER_COPIED = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")


@dataclass(frozen=True, slots=True)
class Definition:
    """An environment as its folder says.

    Attributes:
        digest: of the definition and of every file that the image is made from.
        context: the assembled build context, or None for an image with or without a conda file.
        dockerfile: its path in the context.
    """

    source: Path
    digest: str
    context: Path | None
    dockerfile: str


def is_defined(folder: Path) -> bool:
    """Whether the environment is one of the service, not only of this machine."""
    return (folder / DEFINITION).is_file()


def read_definition(folder: Path, assembled: Path) -> Definition:
    """Read the definition and copy what its image is made from.

    Args:
        assembled: an empty folder, which then holds the definition and what belongs to the image.
    Raises:
        ConfigError: the definition is not valid, or names a file that is not there.
    """
    source = folder / DEFINITION
    try:
        values: Any = yaml.safe_load(source.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{source} is not valid YAML: {str(error).splitlines()[0]}.") from error
    build = values.get("build") if isinstance(values, dict) else None
    image = values.get("image") if isinstance(values, dict) else None
    if bool(build) == bool(image):
        raise ConfigError(
            f"{source} must have either an image or a build.", fix="See environments/README.md for an example of each."
        )
    shutil.copyfile(source, assembled / DEFINITION)
    conda_file = values.get("conda_file")
    if isinstance(conda_file, str):
        _copy(_existing(folder, conda_file, source), assembled / "conda.yaml")
    if not build:
        return Definition(source=source, digest=digest_files(assembled), context=None, dockerfile="")
    root = _existing(folder, str(build.get("path", ".")), source)
    dockerfile = str(build.get("dockerfile_path", "Dockerfile"))
    context = assembled / "context"
    _copy(_existing(root, dockerfile, source), context / dockerfile)
    for name in copied_by((root / dockerfile).read_text(encoding="utf-8")):
        _copy_source(root, name, context, root / dockerfile)
    return Definition(source=source, digest=digest_files(assembled), context=context, dockerfile=dockerfile)


def copied_by(dockerfile: str) -> list[str]:
    """The sources that a Dockerfile copies from its context, in their order."""
    sources: list[str] = []
    for line in re.sub(r"\\\n", " ", re.sub(r"(?m)^\s*#.*\n", "", dockerfile)).splitlines():
        instruction, _, rest = line.strip().partition(" ")
        if instruction.upper() not in ("COPY", "ADD"):
            continue
        words = shlex.split(rest.strip())
        if any(word.startswith("--from=") for word in words):
            continue
        words = [word.strip("[],") for word in words if not word.startswith("--")]
        sources += [word for word in words[:-1] if word and "://" not in word]
    return list(dict.fromkeys(sources))


def _copy_source(root: Path, name: str, context: Path, dockerfile: Path) -> None:
    relative = name.removeprefix("./").rstrip("/")
    if relative in _SHARED and not (root / relative).exists():
        _copy(project_folder(*_SHARED[relative]), context / relative)
        return
    found = sorted(root.glob(relative)) if any(sign in relative for sign in "*?[") else [root / relative]
    found = [path for path in found if path.exists()]
    if relative in ("", ".") or not found:
        reason = "copies its whole folder" if relative in ("", ".") else f"copies {name}, which is not there"
        raise ConfigError(f"{dockerfile} {reason}.", fix="Name the files that belong to the image.")
    for path in found:
        _copy(path, context / path.relative_to(root))


def _copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, ignore=_NEVER_COPIED, dirs_exist_ok=True)
    else:
        shutil.copyfile(source, target)


def _existing(folder: Path, name: str, source: Path) -> Path:
    path = folder / name
    if not path.exists():
        raise ConfigError(f"{source} names {name}, which is not there.")
    return path
