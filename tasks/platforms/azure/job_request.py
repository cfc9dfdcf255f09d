"""JobSpec -> the command job that azure-ai-ml submits: the trainer's own command line, its data, its places."""

from __future__ import annotations

import os
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tasks.platforms.azure.sources import is_remote
from tasks.platforms.local.files import copy_folder
from tasks.platforms.local.state import project_folder
from tasks.platforms.refs import COMMAND_DIR, JobKind, JobSpec

if TYPE_CHECKING:
    from azure.ai.ml.entities import Command

    from tasks.platforms.azure.client import Workspace

JOBS, CHECKPOINTS = "phiflow/jobs", "phiflow/checkpoints"
EVENTS = "logs/events.jsonl"


def write_snapshot(spec: JobSpec, folder: Path) -> Path:
    """Put what runs into a folder: the trainer and its configuration; returns the code's root."""
    # The service hashes the root's name with the content, so the name is always the same.
    root = folder / "phiflow-trainer"
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    shutil.copytree(project_folder("trainer"), root / "trainer", ignore=ignore)
    if spec.command_dir:
        copy_folder(Path(spec.command_dir), root / COMMAND_DIR)
    (root / "train.json").write_text(f"{spec.settings}\n", encoding="utf-8")
    return root


def command_job(workspace: Workspace, spec: JobSpec, name: str, tags: dict[str, str], code: Path) -> Command:
    """The job, named; nothing is sent."""
    from azure.ai.ml import ManagedIdentityConfiguration, PyTorchDistribution, command

    inputs, arguments = _model(workspace, spec)
    is_training = spec.kind == JobKind.TRAINING
    inputs |= {"eval_file": _input("uri_file", spec.data.test_file)}
    if is_training:
        inputs |= {"train_file": _input("uri_file", spec.data.train_file)}
    identity = workspace.config.identity
    spread = spec.num_nodes > 1 or spec.processes_per_node > 1
    job: Any = command(
        name=name,
        display_name=name,
        experiment_name=spec.run_name,
        description=f"phiflow {spec.kind} of {spec.run_name}",
        tags=tags,
        compute=spec.compute.name,
        environment=spec.environment.location,
        code=str(code),
        command=" ".join(["python", "-m", *arguments, "--config", "train.json"]),
        inputs=inputs,
        outputs=_outputs(workspace, spec, name),
        environment_variables=_variables(workspace, name) | spec.provenance,
        instance_count=spec.num_nodes,
        shm_size=spec.shm_size,
        timeout=spec.timeout_seconds,
        distribution=PyTorchDistribution(process_count_per_instance=spec.processes_per_node) if spread else None,
        identity=ManagedIdentityConfiguration(client_id=identity.client_id or None, resource_id=identity.resource_id)
        if identity.resource_id
        else None,
    )
    command_: Command = job
    return command_


def _model(workspace: Workspace, spec: JobSpec) -> tuple[dict[str, Any], list[str]]:
    """The model as an input, or a hub id as text; and the command's arguments with it."""
    location, is_training = spec.model.location, spec.kind == JobKind.TRAINING
    inputs: dict[str, Any] = {}
    if is_remote(location):
        inputs["model"] = _input(_kind_of(workspace, location), location, mode="download")
        model = ["${{inputs.model}}"]
    else:
        model = [shlex.quote(location)]
        if spec.model.revision:
            model += ["--base-model-revision", shlex.quote(spec.model.revision)]
    if not is_training:
        return inputs, [
            *("trainer.evaluate", "--model-dir", *model, "--eval-file", "${{inputs.eval_file}}"),
            *("--result-dir", "${{outputs.result}}"),
        ]
    return inputs, [
        *("trainer", "--base-model", *model),
        *("--train-file", "${{inputs.train_file}}", "--eval-file", "${{inputs.eval_file}}"),
        *("--model-output-dir", "${{outputs.model}}", "--checkpoint-dir", "${{outputs.checkpoints}}"),
        *("--log-dir", "./logs", "--result-dir", "${{outputs.result}}"),
    ]


def _kind_of(workspace: Workspace, location: str) -> str:
    """A registered model is an input of its own type; any other address is a folder."""
    from tasks.platforms.azure.sources import workspace_model
    from tasks.platforms.azure.translate import translated

    if found := workspace_model(location):
        with translated(f"Model {':'.join(found)}"):
            return str(workspace.ml.models.get(found[0], version=found[1]).type or "custom_model")
    return "mlflow_model" if location.startswith("azureml://registries/") else "uri_folder"


def _outputs(workspace: Workspace, spec: JobSpec, name: str) -> dict[str, Any]:
    """Where results go; what a failed or preempted job leaves must outlive it, so those two are mounted."""
    from azure.ai.ml import Output

    uri = workspace.storage.uri
    outputs = {"result": Output(type="uri_folder", mode="rw_mount", path=uri(f"{JOBS}/{name}/result"))}
    if spec.kind == JobKind.TRAINING:
        outputs |= {
            "model": Output(type="mlflow_model", mode="upload", path=uri(f"{JOBS}/{name}/model")),
            "checkpoints": Output(type="uri_folder", mode="rw_mount", path=uri(f"{CHECKPOINTS}/{spec.key}")),
        }
    return outputs


def _input(kind: str, path: str, mode: str | None = None) -> Any:
    from azure.ai.ml import Input

    return Input(type=kind, path=path, mode=mode)


def _variables(workspace: Workspace, name: str) -> dict[str, str]:
    config = workspace.config
    variables = {"PHIFLOW_JOB_NAME": name, "PYTHONUNBUFFERED": "1"}
    if os.environ.get("HF_ENDPOINT"):
        variables["HF_ENDPOINT"] = os.environ["HF_ENDPOINT"]
    if config.hub_token_secret:
        variables["PHIFLOW_HUB_TOKEN_SECRET"] = f"{workspace.vault_url}/secrets/{config.hub_token_secret}"
    if config.identity.client_id:
        variables["DEFAULT_IDENTITY_CLIENT_ID"] = variables["AZURE_CLIENT_ID"] = config.identity.client_id
    return variables
