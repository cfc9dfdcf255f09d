"""The job that scores the version now serving on a run's test set, named from everything that decides its scores."""

from __future__ import annotations

import ast
import json
from dataclasses import replace
from pathlib import Path

import trainer
from tasks.job_spec import trainer_digest
from tasks.platforms.refs import BaseModelRef, JobKind, JobSpec, ModelVersion

_KEYS = (
    "max_length",
    "bf16",
    "attn_implementation",
    "per_device_eval_batch_size",
    "max_eval_examples",
    "num_eval_generations",
    "max_new_tokens_eval",
)
_ENTRY = "trainer.evaluate"
# How a job is told what to do, and how it tells what it did: no score depends on them.
_NEUTRAL = {"base_model.py", "command_line.py", "config.py", "errors.py", "events.py", "files.py", "hub_token.py"} | {
    "interruption.py",
    "ranks.py",
}


def evaluation_spec(trained: JobSpec, champion: ModelVersion) -> JobSpec:
    """What was trained says on which test set, and where; only what changes a score is in the name."""
    settings = {key: value for key, value in json.loads(trained.settings).items() if key in _KEYS}
    code = {path: digest for path, digest in trainer_digest().items() if path in evaluation_code()}
    model = BaseModelRef(
        base=f"{champion.name}:{champion.version}",
        revision="",
        digest=champion.digest,
        location=champion.location,
        origin=champion.origin,
    )
    return replace(
        trained,
        kind=JobKind.EVALUATION,
        code_digest=json.dumps(code, sort_keys=True),
        settings=json.dumps(settings, sort_keys=True),
        model=model,
        command_dir="",
        num_nodes=1,
        processes_per_node=1,
    )


def evaluation_code() -> set[str]:
    """The trainer's files that decide a score: what `trainer.evaluate` imports, and what that imports in turn."""
    root = Path(trainer.__file__).parent
    found: set[str] = set()
    waiting = [_ENTRY]
    while waiting:
        path = _file_of(root, waiting.pop())
        name = path.relative_to(root).as_posix() if path else ""
        if path and name not in found | _NEUTRAL:
            found.add(name)
            waiting += _imported(path)
    return found


def _file_of(root: Path, module: str) -> Path | None:
    """The file of one of the trainer's modules; None for a name inside a module, or another package."""
    if module != "trainer" and not module.startswith("trainer."):
        return None
    path = root.joinpath(*module.split(".")[1:])
    files = (path.with_suffix(".py"), path / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imported(path: Path) -> list[str]:
    """Every module that a file may import, inside its functions too; `from a import b` may be a.b."""
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return names
