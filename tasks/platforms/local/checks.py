"""The checks of this machine: what phiflow itself needs, and what a run here stands on; nothing is changed."""

from __future__ import annotations

import functools
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.platforms.errors import ConfigError
from tasks.platforms.local import environments
from tasks.platforms.local.chat import program_name
from tasks.platforms.local.checking import all_at_once, failed, passed, warned
from tasks.platforms.local.checks_hub import check_base_model, check_data, check_memory
from tasks.platforms.local.ports import PortBook, is_free, listener
from tasks.platforms.local.services import CHAT_PORT, GATEWAY_PORT, MLFLOW_PORT, PREFECT_PORT
from tasks.platforms.local.state import LEAST_FREE_BYTES, home_folder, project_folder
from tasks.platforms.local.supervisor import Supervisor
from tasks.platforms.upkeep import Check

if TYPE_CHECKING:
    from tasks.config import PipelineConfig

_LEAST_PYTHON = (3, 11)
# An environment takes up to 1 GB with torch for a CPU; its build needs as much again for a moment.
_ENVIRONMENT_BYTES = 2_000_000_000
_LOCK = ("environments", "orchestrator", "requirements.txt")
_INSTALL = "make setup (in a clone), or pip install --upgrade 'phiflow[azure]'"
_TOLD = 5

Named = tuple[str, Callable[[], Iterable[Check]]]


def run_checks(config: PipelineConfig) -> Iterator[Check]:
    """Look at what a run on this machine needs."""
    names = (config.environment.training, config.serving_environment, config.environment.chat)
    yield from all_at_once(
        [
            *checks_of_installation(config),
            *checks_of_machine(config, names),
            ("base model", functools.partial(check_base_model, config.model)),
            ("memory", functools.partial(check_memory, config)),
            ("data", functools.partial(check_data, config.data)),
        ]
    )


def checks_of_installation(config: PipelineConfig) -> tuple[Named, ...]:
    """What any command needs: Python and the packages."""
    return (
        ("python", check_python),
        ("packages", functools.partial(check_packages, is_remote=config.is_remote)),
    )


def checks_of_machine(config: PipelineConfig, names: tuple[str, ...]) -> tuple[Named, ...]:
    """What a run does here, wherever its jobs are: environments, the Prefect server, the chat app."""
    home = home_folder(config.platform.home)
    return (
        ("disk", functools.partial(check_disk, home, names)),
        ("environments", functools.partial(check_environments, home, names)),
        ("ports", functools.partial(check_ports, home, config)),
        ("services", functools.partial(check_services, home)),
    )


def check_python() -> Iterator[Check]:
    """The interpreter that runs this."""
    told = f"{'.'.join(map(str, sys.version_info[:3]))} ({sys.executable})"
    least = ".".join(map(str, _LEAST_PYTHON))
    if sys.version_info < _LEAST_PYTHON:
        yield failed("python", f"{told}, and phiflow needs {least}", f"make setup PYTHON=python{least}")
    else:
        yield passed("python", told)


def check_packages(*, is_remote: bool) -> Iterator[Check]:
    """The installed packages against the lock, by their metadata; what only Azure needs counts only there."""
    from packaging.requirements import Requirement

    try:
        lines = project_folder(*_LOCK).read_text(encoding="utf-8").splitlines()
    except ConfigError:  # a wheel has no lock
        yield passed("packages", "installed without the lock, which only a clone has")
        return
    missing, other, num_same = [], [], 0
    for requirement in (Requirement(line) for line in lines if line and not line.startswith(("#", " ", "-"))):
        if requirement.marker and not requirement.marker.evaluate():
            continue
        if not is_remote and requirement.name.startswith(("azure", "msal", "msrest")):
            continue
        try:
            version = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            missing.append(requirement.name)
            continue
        if requirement.specifier.contains(version, prereleases=True):
            num_same += 1
        else:
            other.append(f"{requirement.name} {version} for {requirement.specifier}")
    if missing:
        yield failed("packages", f"not installed: {_listed(missing)}", _INSTALL)
    if other:
        yield warned("packages", f"not the tested versions: {_listed(other)}", _INSTALL)
    if not missing and not other:
        yield passed("packages", f"{num_same} as locked")


def check_disk(home: Path, names: tuple[str, ...]) -> Iterator[Check]:
    """Space for the state folder, and for the environments that are not built yet."""
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    told = f"{free / 1e9:.1f} GB free for state folder {home}"
    unbuilt = [name for name in names if _fault(home, name)]
    fix = "Free some space, or set PHIFLOW_HOME to a folder on a larger disk"
    if not os.access(existing, os.W_OK):
        yield failed("disk", f"{existing} may not be written", "Set PHIFLOW_HOME to a folder of yours")
    elif free < LEAST_FREE_BYTES:
        yield failed("disk", f"{told}, {LEAST_FREE_BYTES / 1e6:.0f} MB needed", fix)
    elif free < len(unbuilt) * _ENVIRONMENT_BYTES:
        wanted = len(unbuilt) * _ENVIRONMENT_BYTES / 1e9
        yield warned("disk", f"{told}; about {wanted:.0f} GB to build {', '.join(unbuilt)}", fix)
    else:
        yield passed("disk", told)


def check_environments(home: Path, names: tuple[str, ...]) -> Iterator[Check]:
    """Whether the environments are built, or can be."""
    from tasks.platforms.local.preflight import require_environment

    unbuilt = []
    for name in dict.fromkeys(names):
        require_environment(name)
        fault = _fault(home, name)
        if fault:
            unbuilt.append(f"{name} ({'not built' if fault == 'not finished' else fault})")
    if not unbuilt:
        yield passed("environments", f"{', '.join(dict.fromkeys(names))} are built")
    elif not shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"):
        yield failed("environments", f"{', '.join(unbuilt)}; uv, which builds them, was not found", "pip install uv")
    else:
        yield passed("environments", f"{', '.join(unbuilt)}: the first run builds them")


def check_ports(home: Path, config: PipelineConfig) -> Iterator[Check]:
    """Who has the usual ports; another program only moves a service to the next one, unless its port is configured."""
    chat = config.chat.port or CHAT_PORT
    usual = {"prefect-server": PREFECT_PORT, "mlflow": MLFLOW_PORT, "gateway": GATEWAY_PORT}
    if config.is_remote:
        usual = {"prefect-server": PREFECT_PORT}
    told = []
    for service, preferred in {**usual, program_name(config.endpoint_name): chat}.items():
        ours = PortBook(home).read().get(service) if home.exists() else None
        port = ours or preferred
        if is_free(port):
            told.append(f"{port} free")
            continue
        who, whose = listener(port)
        if whose == str(home.resolve()):
            told.append(f"{port} {service}")
        elif config.chat.port and port == chat:
            yield failed("ports", f"chat.port {port} is in use by {who}", "Set chat.port to a free port")
        else:
            told.append(f"{port} {who}, so {service} takes another")
    yield passed("ports", ", ".join(told))


def check_services(home: Path) -> Iterator[Check]:
    """The Prefect server and worker, and the other programs that outlive a run."""
    api = os.environ.get("PREFECT_API_URL", "")
    if api:
        yield _prefect_elsewhere(api)
    programs = Supervisor(home).programs() if (home / "services").is_dir() else {}
    broken = [name for name, status in programs.items() if status.state in ("waiting", "failing")]
    for name in broken:
        found = f"{name} keeps ending"
        yield failed("services", found, f"tail -n 50 '{home / 'logs' / f'{name}.log'}'")
    running = [name for name, status in programs.items() if status.state == "running"]
    if running:
        yield passed("services", f"running: {', '.join(sorted(running))}")
    elif not broken and not api:
        yield passed("services", "the Prefect server and its worker are not running; the next run starts them")


def _prefect_elsewhere(api: str) -> Check:
    import requests

    try:
        answers = requests.get(f"{api.rstrip('/')}/health", timeout=5).ok
    except requests.RequestException:
        answers = False
    if answers:
        return passed("prefect", f"{api} answers")
    return failed("prefect", f"PREFECT_API_URL is {api}, which does not answer", "unset PREFECT_API_URL")


def _fault(home: Path, name: str) -> str:
    return environments.read_fault(home, project_folder("environments", name))


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - _TOLD} more" if len(names) > _TOLD else ""
    return ", ".join(names[:_TOLD]) + more
