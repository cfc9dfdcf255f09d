"""The direction of imports, read from the source: what ships alone knows nothing of what does not."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PORT = {f"tasks.platforms.{name}" for name in ("refs", "upkeep", "port", "errors", "connect")}
# What an adapter may use from outside itself; of the trainer what is the standard library alone.
FOR_ADAPTERS = {
    f"tasks.platforms.{name}" for name in ("refs", "upkeep", "port", "errors", "contracts", "events", "retention")
} | {"tasks.config"}
SHIPS_ALONE = ["trainer", "deployments/server", "promptflow_app"]


def sources(folder: str) -> list[Path]:
    """Every Python file below a folder of the repository."""
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, folder
    return found


def module_of(path: Path) -> str:
    """The dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def package_of(path: Path) -> list[str]:
    """The parts that a relative import starts from."""
    return list(path.relative_to(ROOT).parent.parts)


def imports(path: Path, text: str | None = None) -> set[str]:
    """The modules a file imports anywhere, inside functions too; `from a import b` is a.b when that is a module."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text if text is not None else path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package_of(path)[: len(package_of(path)) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            for alias in node.names:
                inner = ROOT.joinpath(*base.split("."), alias.name)
                is_module = inner.with_suffix(".py").exists() or inner.is_dir()
                found.add(f"{base}.{alias.name}" if is_module else base)
    return found


def of(modules: set[str], *packages: str) -> set[str]:
    """Those of the modules that are in one of the packages."""
    return {name for name in modules if any(f"{name}.".startswith(f"{package}.") for package in packages)}


def test_imports_are_seen_wherever_they_stand() -> None:
    """The reader of this test finds plain, relative, nested and renamed imports."""
    text = (
        "import a.b as c\nfrom tasks.platforms import refs, local\nfrom . import jobs\n"
        "def f():\n    from ..errors import X\n    from tasks.config import Y\n"
    )
    assert imports(ROOT / "tasks/platforms/local/fake.py", text) == {
        "a.b",
        "tasks.platforms.refs",
        "tasks.platforms.local",
        "tasks.platforms.local.jobs",
        "tasks.platforms.errors",
        "tasks.config",
    }


@pytest.mark.parametrize("folder", SHIPS_ALONE)
def test_what_ships_alone_imports_nothing_of_ours(folder: str) -> None:
    """trainer/, deployments/server/ and promptflow_app/ import nothing from tasks or flows."""
    for path in sources(folder):
        assert of(imports(path), "tasks", "flows") == set(), path


@pytest.mark.parametrize("folder", ["deployments/server", "promptflow_app"])
def test_what_ships_alone_does_not_take_the_trainer_along(folder: str) -> None:
    """The model server and the chat app do not import the trainer either."""
    for path in sources(folder):
        assert of(imports(path), "trainer") == set(), path


def test_tasks_import_no_flow() -> None:
    """Flows import tasks, never the other way round."""
    for path in sources("tasks"):
        assert of(imports(path), "flows") == set(), path


def test_flows_and_tasks_know_platforms_by_the_port_alone() -> None:
    """Outside the adapters only refs, port, errors and connect of tasks.platforms are imported."""
    for path in [*sources("flows"), *sorted((ROOT / "tasks").glob("*.py"))]:
        assert of(imports(path), "tasks.platforms") <= PORT, path


def test_only_the_composition_root_imports_an_adapter() -> None:
    """connect.py imports adapters, inside its functions; nothing beside it does."""
    for path in sorted((ROOT / "tasks" / "platforms").glob("*.py")):
        adapters = of(imports(path), "tasks.platforms") - PORT
        assert not adapters or path.name == "connect.py", (path, adapters)
    tree = ast.parse((ROOT / "tasks" / "platforms" / "connect.py").read_text(encoding="utf-8"))
    when_loaded = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom)]
    assert of(set(when_loaded), "tasks.platforms.local", "tasks.platforms.azure") == set()


def adapter_files() -> list[Path]:
    """The source files of every adapter."""
    return [path for path in sources("tasks/platforms") if path.parent != ROOT / "tasks" / "platforms"]


@pytest.mark.parametrize("path", adapter_files(), ids=lambda path: path.name)
def test_adapter_keeps_to_itself(path: Path) -> None:
    """An adapter imports the port's values, the configuration and itself; never Prefect, another adapter or flows.

    Azure's alone stands on another: this machine's, which prepares its data and serves its chat app.
    """
    seen = imports(path)
    itself = ".".join(module_of(path).split(".")[:3])
    stands_on = {"tasks.platforms.azure": "tasks.platforms.local"}.get(itself, itself)
    assert of(seen, "prefect") == set()
    assert of(seen, "tasks") - of(seen, itself, stands_on) <= FOR_ADAPTERS
    assert of(seen, "trainer") <= {"trainer.files", "trainer.config", "trainer.data.listing"}


def test_values_and_errors_do_no_io() -> None:
    """refs, port and errors import the standard library and each other alone, and nothing that opens files."""
    allowed = {"tasks.platforms.refs", "tasks.platforms.upkeep", "tasks.platforms.errors", "tasks.config"}
    for name in ("refs", "upkeep", "port", "errors"):
        for module in imports(ROOT / "tasks" / "platforms" / f"{name}.py") - allowed:
            assert module.partition(".")[0] in sys.stdlib_module_names, (name, module)
            assert module.partition(".")[0] not in {"os", "pathlib", "io", "shutil", "subprocess", "socket"}


def test_nothing_in_flows_hides_a_dependency() -> None:
    """Loading a flow by its entrypoint puts flows/ first on sys.path: no file there is named like a module we use."""
    names = {path.stem for path in (ROOT / "flows").glob("*") if path.suffix == ".py" or path.is_dir()}
    names -= {"__init__", "__main__", "__pycache__"}
    top_level = {path.name for path in ROOT.iterdir() if path.is_dir()}
    required = re.findall(
        r"^([A-Za-z0-9_-]+)==",
        (ROOT / "environments" / "orchestrator" / "requirements.txt").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert len(required) > 20
    used = {name.lower().replace("-", "_") for name in required} | {
        "yaml",
        "prefect",
        "mlflow",
        "datasets",
        "torch",
    }
    assert names & (sys.stdlib_module_names | top_level | used) == set()
