"""Names that the service's MLflow has and a plain MLflow server cannot be given: runs called as their job, GUIDs of
experiments. Requests and answers are translated on their way."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from typing import Any

Change = Callable[[str], str]
_RUN_KEYS = ("run_id", "run_uuid", "run_ids")
_EXPERIMENT_KEYS = ("experiment_id", "experiment_ids")


def experiment_guid(name: str) -> str:
    """The GUID of the experiment with this name, always the same."""
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"azureml-experiment:{name}"))


def translated(value: Any, run: Change, experiment: Change) -> Any:
    """Return the JSON value with the ids of runs and experiments changed, wherever they are."""
    if isinstance(value, list):
        return [translated(item, run, experiment) for item in value]
    if not isinstance(value, dict):
        return value
    result = {}
    for key, item in value.items():
        change = run if key in _RUN_KEYS else experiment if key in _EXPERIMENT_KEYS else None
        if change and isinstance(item, str):
            result[key] = change(item)
        elif change and isinstance(item, list):
            result[key] = [change(one) if isinstance(one, str) else one for one in item]
        else:
            result[key] = translated(item, run, experiment)
    return result


def translated_text(body: bytes, run: Change, experiment: Change) -> bytes:
    """The same for a body; one that is not JSON is left as it is."""
    try:
        value = json.loads(body)
    except ValueError:
        return body
    return json.dumps(translated(value, run, experiment)).encode()
