"""A Prefect build step: a run configuration as a deployment's parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tasks.config_files import load_config
from tasks.platforms.connect import home_folder


def read_configuration(path: str) -> dict[str, Any]:
    """Read and check a configuration file; the UI then shows it as a form.

    Paths inside the project stay relative to it: the worker runs in its own copy of the project. The state
    folder is made absolute, since a worker may start anywhere.
    """
    config = load_config(path).model_dump(mode="json")
    project = Path.cwd().resolve()
    for section, key in (("data", "source"), ("data", "test_source"), ("model", "base")):
        value = Path(config[section][key])
        if value.is_absolute() and value.is_relative_to(project):
            config[section][key] = str(value.relative_to(project))
    config["platform"]["home"] = str(home_folder(config["platform"]["home"]))
    return {"config": config}
