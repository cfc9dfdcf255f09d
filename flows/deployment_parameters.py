"""A Prefect build step: a run configuration as a deployment's parameters, and where its runs keep their results."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tasks.config import WORKSPACE_VARIABLES, AzurePlatformConfig, PipelineConfig
from tasks.config_files import load_config, parse_yaml
from tasks.platforms.connect import home_folder

_NOT_YET_KNOWN = "not-yet-known"


def read_configuration(path: str) -> dict[str, Any]:
    """Read and check a configuration file; the UI then shows it as a form.

    Paths inside the project stay relative to it: the worker runs in its own copy of the project. The state
    folder is made absolute, since a worker may start anywhere. A workspace that is not known here is left to
    the worker's own environment.
    """
    unknown = _unknown_coordinates(path)
    resolved = load_config(path, [f"platform.{key}={_NOT_YET_KNOWN}" for key in unknown])
    config = resolved.model_dump(mode="json")
    project = Path.cwd().resolve()
    for section, key in (("data", "source"), ("data", "test_source"), ("model", "base")):
        value = Path(config[section][key])
        if value.is_absolute() and value.is_relative_to(project):
            config[section][key] = str(value.relative_to(project))
    config["platform"]["home"] = str(home_folder(config["platform"]["home"]))
    config["platform"] |= dict.fromkeys(unknown, "")
    return {"config": config, "environment": {} if unknown else _where_results_go(resolved)}


def _unknown_coordinates(path: str) -> list[str]:
    """The keys of the workspace that neither the file nor the environment says."""
    written = parse_yaml(Path(path).read_text(encoding="utf-8"), path).get("platform") or {}
    if written.get("kind") != "azure":
        return []
    return [key for key, name in WORKSPACE_VARIABLES.items() if not written.get(key) and not os.environ.get(name)]


def _where_results_go(config: PipelineConfig) -> dict[str, str]:
    """The variable that tells a worker's run to keep its results in the workspace; none for this machine's disk."""
    if not isinstance(config.platform, AzurePlatformConfig):
        return {}
    from tasks.results import results_block

    block = results_block(config.platform)
    return {"PREFECT_DEFAULT_RESULT_STORAGE_BLOCK": f"{block.get_block_type_slug()}/{block._block_document_name}"}
