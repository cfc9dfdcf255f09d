"""Checks a command job as the service checks it, and turns it into what a node runs."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tests.azure_emulator.mlflow_ids import experiment_guid
from tests.azure_emulator.uris import ARTIFACT_CONTAINER, NoSuchPlaceError, Read, Uris

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_-]{0,254}")
_PLACEHOLDER = re.compile(r"\$\{\{\s*(inputs|outputs)\.([\w]+)\s*\}\}")
_DURATION = re.compile(r"P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:(\d+(?:\.\d+)?)S)?)?")
_SHORT_ENVIRONMENT = re.compile(r"(?:azureml:)?([\w.-]+):([\w.-]+)")
NO_CODE = "training"  # has MLflow whole, and what the models are packaged with
_LONGEST_SECONDS = 30 * 86400.0
# What decides the result cannot be changed once a job has its name.
IMMUTABLE = (
    *("jobType", "computeId", "codeId", "command", "environmentId", "environmentVariables"),
    *("inputs", "outputs", "distribution", "limits", "resources", "identity"),
)


class InvalidJobError(Exception):
    """A job that the service refuses, with the reason."""


def seconds_of(duration: str | None, default: float) -> float:
    """The seconds of an ISO 8601 duration such as PT1H30M."""
    if not duration:
        return default
    match = _DURATION.fullmatch(duration)
    if not match or not any(match.groups()):
        raise InvalidJobError(f"The duration '{duration}' is not in ISO 8601.")
    days, hours, minutes, seconds = (float(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


class JobSpecs:
    """Checks and translates the jobs of one workspace.

    Args:
        workspace: its resource id.
        read: gives a resource by its id, or None.
        sources: the folder with the environments that images are built from.
        home: the state folder that they are built in.
    """

    def __init__(self, workspace: str, read: Read, sources: Path, home: Path) -> None:
        self._workspace = workspace
        self._read = read
        self._sources = sources
        self._home = home
        self._uris = Uris(workspace, read)

    def require_valid(self, name: str, properties: Mapping[str, Any]) -> None:
        """Refuse what the service refuses when a job is submitted.

        Raises:
            InvalidJobError: says which field is wrong.
        """
        if not _NAME.fullmatch(name):
            raise InvalidJobError(f"Job name '{name}' is not valid: letters, digits, '-' and '_', at most 255.")
        if properties.get("jobType") != "Command":
            raise InvalidJobError(f"The job type '{properties.get('jobType')}' is not one that this service runs.")
        for field in ("command", "environmentId"):
            if not properties.get(field):
                raise InvalidJobError(f"The {field} field is required.")
        if self.environment_id(properties["environmentId"]) is None:
            raise InvalidJobError(f"The environment {properties['environmentId']} does not exist in the workspace.")
        if properties.get("codeId") and self._read(properties["codeId"]) is None:
            raise InvalidJobError(f"The code {properties['codeId']} does not exist in the workspace.")
        compute = self._read(properties.get("computeId") or "")
        if compute is None:
            raise InvalidJobError(f"Compute not found: {properties.get('computeId') or 'computeId is missing'}.")
        wanted, nodes = _instances(properties), _max_nodes(compute)
        if wanted > nodes:
            raise InvalidJobError(f"The job needs {wanted} nodes and the cluster has at most {nodes}.")
        seconds_of((properties.get("limits") or {}).get("timeout"), 1)
        self._require_data(properties)

    def _require_data(self, properties: Mapping[str, Any]) -> None:
        known = set()
        for kind in ("inputs", "outputs"):
            for key, given in (properties.get(kind) or {}).items():
                known.add((kind, key))
                literal = kind == "inputs" and given.get("jobInputType") == "literal"
                if literal or (kind == "outputs" and not given.get("uri")):
                    continue
                if not given.get("uri"):
                    raise InvalidJobError(f"The uri of input '{key}' is missing.")
                try:
                    self._uris.place(given["uri"])
                except NoSuchPlaceError as error:
                    raise InvalidJobError(f"{kind[:-1].title()} '{key}': {error}") from error
        for match in _PLACEHOLDER.finditer(properties["command"]):
            if (match[1], match[2]) not in known:
                raise InvalidJobError(f"The command names {match[0]}, which is not among the job's {match[1]}.")

    def environment_id(self, given: str) -> str | None:
        """The resource id of the environment, also when the request has the short form; None when there is none."""
        match = _SHORT_ENVIRONMENT.fullmatch(given)
        full = f"{self._workspace}/environments/{match[1]}/versions/{match[2]}" if match else given
        return full if self._read(full) is not None else None

    def image(self, environment_id: str) -> dict[str, Any]:
        """What stands for the environment's image: the folder that a virtual environment is built from, or none."""
        name = environment_id.split("/environments/")[-1].split("/")[0]
        resource = self._read(environment_id) or {}
        tags = (resource.get("properties") or {}).get("tags") or {}
        for candidate in (tags.get("phiflow.environment"), name, name.removeprefix("phiflow-")):
            if candidate and (self._sources / candidate / "requirements.txt").is_file():
                return {"folder": str(self._sources / candidate), "home": str(self._home), "name": candidate}
        return {"folder": "", "home": str(self._home), "name": name}

    def no_code_image(self) -> dict[str, Any]:
        """What stands for the image that the service makes for an MLflow model deployed without code."""
        return {"folder": str(self._sources / NO_CODE), "home": str(self._home), "name": NO_CODE}

    def outputs(self, name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """The outputs as the service completes them: the default one, and a place for those that name none."""
        artifacts = f"azureml://datastores/workspaceartifactstore/ExperimentRun/dcid.{name}"
        completed = {
            "default": {
                "description": None,
                "uri": artifacts,
                "assetName": None,
                "assetVersion": None,
                "mode": "ReadWriteMount",
                "jobOutputType": "uri_folder",
            }
        }
        for key, given in (properties.get("outputs") or {}).items():
            if key == "default":
                continue
            completed[key] = {
                "description": given.get("description"),
                "uri": given.get("uri") or f"azureml://datastores/workspaceblobstore/paths/azureml/{name}/{key}/",
                "assetName": given.get("assetName"),
                "assetVersion": given.get("assetVersion"),
                "mode": given.get("mode") or "ReadWriteMount",
                "jobOutputType": given.get("jobOutputType"),
            }
        return completed

    def node(self, name: str, properties: Mapping[str, Any]) -> dict[str, Any]:
        """What a node needs to know of the job; the emulator adds its own addresses."""
        compute = self._read(properties["computeId"])
        assert compute is not None
        distribution = properties.get("distribution") or {}
        per_node = int(distribution.get("processCountPerInstance") or 1)
        code = self._read(properties["codeId"]) if properties.get("codeId") else None
        limit = (properties.get("limits") or {}).get("timeout")
        environment_id = self.environment_id(properties["environmentId"])
        assert environment_id is not None
        return {
            "name": name,
            "command": properties["command"],
            "code": code and _place(self._uris, code["properties"]["codeUri"]),
            "inputs": dict(self._inputs(properties)),
            "outputs": {
                key: {**_place(self._uris, value["uri"]), "mode": value["mode"], "type": value["jobOutputType"]}
                for key, value in properties["outputs"].items()
                if key != "default"
            },
            "image": self.image(environment_id),
            "timeout_seconds": min(seconds_of(limit, _LONGEST_SECONDS), _LONGEST_SECONDS),
            "processes": per_node * _instances(properties),
            "cluster": {"name": compute["name"], "nodes": _max_nodes(compute), "needs": _instances(properties)},
            "artifacts": {"container": ARTIFACT_CONTAINER, "path": f"ExperimentRun/dcid.{name}"},
        }

    def _inputs(self, properties: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
        for key, given in (properties.get("inputs") or {}).items():
            if given.get("jobInputType") == "literal":
                yield key, {"value": given["value"]}
            else:
                yield key, {**_place(self._uris, given["uri"]), "type": given["jobInputType"], "uri": given["uri"]}

    def variables(self, name: str, properties: Mapping[str, Any], url: str, token: str) -> dict[str, str]:
        """The variables that the service gives every job, and then the job's own."""
        parts = self._workspace.strip("/").split("/")
        experiment = properties.get("experimentName") or "Default"
        host = url.removeprefix("https://").rstrip("/")
        return {
            "AZUREML_RUN_ID": name,
            "AZUREML_ROOT_RUN_ID": name,
            "AZUREML_ARM_SUBSCRIPTION": parts[1],
            "AZUREML_ARM_RESOURCEGROUP": parts[3],
            "AZUREML_ARM_WORKSPACE_NAME": parts[-1],
            "AZUREML_ARM_PROJECT_NAME": experiment,
            "AZUREML_EXPERIMENT_ID": experiment_guid(experiment),
            "AZUREML_SERVICE_ENDPOINT": url,
            "AZUREML_DISCOVERY_SERVICE_ENDPOINT": f"{url}/discovery",
            "AZUREML_RUN_TOKEN": token,
            "MLFLOW_TRACKING_URI": f"azureml://{host}/mlflow/v2.0{self._workspace}?",
            "MLFLOW_TRACKING_TOKEN": token,
            "MLFLOW_RUN_ID": name,
            "MLFLOW_EXPERIMENT_NAME": experiment,
            "MLFLOW_EXPERIMENT_ID": experiment_guid(experiment),
            **{key: str(value) for key, value in (properties.get("environmentVariables") or {}).items()},
        }


def _place(uris: Uris, uri: str) -> dict[str, str]:
    place = uris.place(uri)
    return {"container": place.container, "path": place.path}


def _instances(properties: Mapping[str, Any]) -> int:
    return int((properties.get("resources") or {}).get("instanceCount") or 1)


def _max_nodes(compute: Mapping[str, Any]) -> int:
    scale = ((compute["properties"].get("properties") or {}).get("scaleSettings")) or {}
    return max(int(scale.get("maxNodeCount") or 1), 1)
