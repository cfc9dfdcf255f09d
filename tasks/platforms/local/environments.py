"""Builds the virtual environments of `environments/` with uv, each named by the digest of what it holds.

By hand: python -m tasks.platforms.local.environments NAME [--home H] [--source DIR]
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import platform
import re
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tasks.platforms.errors import ConfigError, EnvironmentBuildError, PhiflowError, QuotaError
from tasks.platforms.local import files, processes, uv

SOURCES = Path(__file__).resolve().parents[3] / "environments"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_BUILD_LOCK_SECONDS = 3600.0
_PROGRESS_SECONDS = 5.0
_MARKER = ".complete"
_CREDENTIALS = re.compile(r"(?<=://)[^/@\s]+@")
_DETAIL_LINES = 8

Log = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Environment:
    """A virtual environment that is complete and whose Python runs.

    Attributes:
        reason: why it was reused or built, for a person.
    """

    name: str
    digest: str
    path: Path
    python: Path
    reused: bool
    reason: str


def ensure_environment(
    home: Path, source: Path, python: str | None = None, log: Log = lambda line: None
) -> Environment:
    """Return the environment that a folder of requirements describes, building it when there is none.

    Args:
        home: the state folder; the environment is under `home/environments`.
        source: a folder with `requirements.txt` and, for what no lock may pin, `torch.txt`.
        python: version or path for `uv venv -p`; the version of the running Python when not given.
        log: takes one line of progress, every few seconds while it builds.
    Raises:
        ConfigError: the folder is not an environment's.
        EnvironmentBuildError: uv failed; nothing half-built is left.
    """
    name = source.name
    digest = _digest(source, python)
    path = home.resolve() / "environments" / f"{name}-{digest[:12]}"
    found = Environment(name, digest, path, _python_of(path), True, "its requirements have not changed")
    if not _fault(found):
        return found
    with files.file_lock(path.with_name(f".{path.name}.lock"), _BUILD_LOCK_SECONDS, f"environment '{name}'"):
        fault = _fault(found)
        if not fault:
            return found
        reason = f"it was {fault}" if path.exists() else "none was built from these requirements yet"
        _end_earlier_builder(path)
        _build(found, source, python or sys.executable, log)
        return Environment(name, digest, path, found.python, False, reason)


def read_fault(home: Path, source: Path) -> str:
    """Say what keeps a built environment from being used: "" for nothing, "not finished" for none; changes nothing."""
    digest = _digest(source, None)
    path = home.resolve() / "environments" / f"{source.name}-{digest[:12]}"
    return _fault(Environment(source.name, digest, path, _python_of(path), True, ""))


def content_digest(source: Path) -> str:
    """What an environment of this folder, as it is now and for this Python, is named by; its first letters are."""
    return _digest(source, None)


def remove(path: Path) -> None:
    """Remove an environment; the marker goes first, so that a removal cut short is not taken for whole."""
    (path / _MARKER).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path)


def _running_version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _python_of(path: Path) -> Path:
    return path / "bin" / "python"


def _requirement_files(source: Path) -> list[Path]:
    return [path for path in (source / "torch.txt", source / "requirements.txt") if path.is_file()]


def _digest(source: Path, python: str | None) -> str:
    if not (source / "requirements.txt").is_file() or not _NAME.fullmatch(source.name):
        raise ConfigError(
            f"Environment '{source.name}' has no '{source / 'requirements.txt'}'.", fix=_known(source.parent)
        )
    total = hashlib.sha256()
    machine = sysconfig.get_platform() if sys.platform != "darwin" else f"darwin-{platform.machine()}"
    for part in (source.name, python or _running_version(), machine):
        total.update(f"{part}\n".encode())
    for path in _requirement_files(source):
        total.update(f"{path.name}:{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return total.hexdigest()


def _known(sources: Path) -> str:
    names = sorted(path.parent.name for path in sources.glob("*/requirements.txt"))
    return f"The environments there are: {', '.join(names) or 'none'}."


def _installed(path: Path) -> set[str]:
    """Return the names and versions of the installed packages, as their metadata folders say."""
    return {folder.name for folder in path.glob("lib/python*/site-packages/*.dist-info")}


def _fault(environment: Environment) -> str:
    """Say what keeps an environment from being used, or "" when nothing does."""
    try:
        marker = files.read_json(environment.path / _MARKER, None)
        if marker is None or marker["digest"] != environment.digest:
            return "not finished"
        missing = set(marker["installed"]) - _installed(environment.path)
    except (PhiflowError, KeyError, TypeError):
        return "not finished"
    if missing:
        return f"damaged ({len(missing)} packages are missing)"
    try:
        trial = subprocess.run([environment.python, "-I", "-c", ""], capture_output=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return "damaged (its Python does not run)"
    return "" if trial.returncode == 0 else "damaged (its Python does not run)"


def _builder_file(path: Path) -> Path:
    return path.with_name(f".{path.name}.builder.json")


def _end_earlier_builder(path: Path) -> None:
    """End the uv of a build whose owner was killed: it would go on writing into the folder."""
    builder = processes.read_recorded(_builder_file(path))
    if builder:
        processes.terminate_tree(builder)


def _build(environment: Environment, source: Path, python: str, log: Log) -> None:
    path = environment.path
    program = _find_uv()
    variables = uv.variables()
    log_file = path.parents[1] / "logs" / f"environment-{environment.name}.log"
    install = ["pip", "install", "--python", str(environment.python)]
    for requirements in _requirement_files(source):
        install += ["-r", str(requirements.absolute())]
    started = time.monotonic()
    log(f"Building environment '{environment.name}' in {path}")
    try:
        remove(path)
        files.write_atomic(log_file, "", files.SECRET_MODE)
        for arguments in (["venv", "--python", python, str(path)], install):
            returncode = _run_uv([program, *arguments], variables, environment, log_file, log)
            if returncode:
                raise _build_error(environment.name, returncode, log_file)
        installed = sorted(_installed(path))
        files.write_json(path / _MARKER, {"digest": environment.digest, "installed": installed})
    except BaseException:  # Ctrl-C too must not leave half an environment
        remove(path)
        raise
    finally:
        _builder_file(path).unlink(missing_ok=True)
    seconds = time.monotonic() - started
    log(f"Built environment '{environment.name}' packages={len(installed)} seconds={seconds:.0f}")


def _run_uv(
    command: Sequence[str], variables: Mapping[str, str], environment: Environment, log_file: Path, log: Log
) -> int:
    """Run uv with its output in the log file, and report its latest line every few seconds."""
    with log_file.open("ab") as output:
        child = subprocess.Popen(
            command,
            env=variables,
            cwd=environment.path.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        identity = processes.identify(child.pid)
        if identity:
            files.write_json(_builder_file(environment.path), identity.as_json())
        started = time.monotonic()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(_PROGRESS_SECONDS)
            latest = (_read_log(log_file) or ["starting"])[-1]
            log(f"Environment '{environment.name}' after {time.monotonic() - started:.0f} s: {latest}")
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()


def _read_log(log_file: Path) -> list[str]:
    text = log_file.read_text(encoding="utf-8", errors="replace")
    return [_CREDENTIALS.sub("***@", line.strip()) for line in text.splitlines() if line.strip()]


def _build_error(name: str, returncode: int, log_file: Path) -> PhiflowError:
    lines = _read_log(log_file)
    text = "\n".join(lines)
    if "No space left on device" in text or "Disk quota exceeded" in text:
        return QuotaError(
            f"Environment '{name}' could not be built: the disk is full.",
            fix="Free some space, or set PHIFLOW_HOME to a larger disk, and run the same command again.",
            detail=tuple(lines[-_DETAIL_LINES:]),
        )
    # The line that uv marks with a sign, which differs by terminal, or with "error:".
    cause = next((line for line in lines if re.match(r"error: |[^\w\s] ", line)), f"uv ended with {returncode}")
    return EnvironmentBuildError(
        f"Environment '{name}' could not be built: {cause.partition(' ')[2].rstrip('.')}.",
        fix=f"Check the network and `pip config list`, then run it again; see also '{log_file}'.",
        detail=tuple(lines[-_DETAIL_LINES:]),
    )


# uv and its settings


def _find_uv() -> str:
    beside = Path(sys.executable).with_name("uv")
    found = str(beside) if beside.exists() else shutil.which("uv")
    if not found:
        raise EnvironmentBuildError(
            "uv, which builds the environments, was not found.",
            fix="Install it into this environment, or put it on PATH.",
        )
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Build one environment and print the path of its Python on stdout."""
    from tasks.platforms.local.state import Home

    parser = argparse.ArgumentParser(prog="environments", description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("name", help="a folder of environments/")
    parser.add_argument("--home", default="", help="state folder; PHIFLOW_HOME, else .phiflow, when not given")
    parser.add_argument("--source", type=Path, help="the folder of requirements, when it is another")
    parser.add_argument("--python", help="version or path of the Python to use")
    options = parser.parse_args(arguments)
    try:
        if not _NAME.fullmatch(options.name):
            raise ConfigError(f"'{options.name}' is not the name of an environment.", fix=_known(SOURCES))
        environment = ensure_environment(
            Home.open(options.home).root,
            options.source or SOURCES / options.name,
            options.python,
            log=lambda line: print(line, file=sys.stderr, flush=True),
        )
    except PhiflowError as error:
        print("\n".join([f"error: {error}", *error.detail]), file=sys.stderr)
        return error.exit_code
    print(environment.python)
    return 0


if __name__ == "__main__":
    sys.exit(main())
