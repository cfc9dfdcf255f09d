"""Stands for the service's image builds: a virtual environment from the same folder, and what Azure's image adds."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.platforms.errors import PhiflowError
from tasks.platforms.local import uv
from tasks.platforms.local.environments import Environment, ensure_environment
from tasks.platforms.local.environments import _find_uv as find_uv
from tasks.platforms.local.files import file_lock
from tests.azure_emulator import node_errors
from tests.azure_emulator.node_errors import JobError

BUILD_LOG = "azureml-logs/20_image_build_log.txt"


def build(image: Mapping[str, Any], log: Path) -> tuple[Path, list[str]]:
    """Return the image's Python, and the folders of packages that Azure's lock (`azure.txt`) has beyond it.

    Raises:
        JobError: as the service words a build that failed; the reason is in the log.
    """
    lines: list[str] = []

    def add(line: str) -> None:
        lines.append(line)
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("\n".join(lines) + "\n", encoding="utf-8")

    try:
        environment = ensure_environment(Path(image["home"]), Path(image["folder"]), log=add)
        extra = _beyond(Path(image["folder"]))
        return environment.python, [str(_overlay(environment, extra))] if extra else []
    except (PhiflowError, subprocess.CalledProcessError) as error:
        output = getattr(error, "stderr", None) or "\n".join(getattr(error, "detail", ()))
        add(f"{error}\n{output}")
        raise JobError(node_errors.image_build(BUILD_LOG)) from error


def _beyond(folder: Path) -> list[str]:
    """What Azure's lock has and the local one has not."""
    azure = folder / "azure.txt"
    if not azure.is_file():
        return []
    local = set((folder / "requirements.txt").read_text(encoding="utf-8").splitlines())
    return sorted(line for line in set(azure.read_text(encoding="utf-8").splitlines()) - local if line.strip())


def _overlay(environment: Environment, extra: list[str]) -> Path:
    digest = hashlib.sha256("\n".join([environment.digest, *extra]).encode()).hexdigest()[:12]
    folder = environment.path.with_name(f"{environment.name}-azure-{digest}")
    marker = folder / ".complete"
    with file_lock(folder.with_name(f".{folder.name}.lock"), 600, f"the image of {environment.name}"):
        if not marker.exists():
            requirements = folder.with_name(f".{folder.name}.txt")
            requirements.write_text("\n".join(extra), encoding="utf-8")
            command = [find_uv(), "pip", "install", "--python", str(environment.python), "--no-deps"]
            command += ["--target", str(folder), "-r", str(requirements)]
            subprocess.run(command, env=uv.variables(), check=True, capture_output=True, text=True)
            marker.touch()
    return folder
