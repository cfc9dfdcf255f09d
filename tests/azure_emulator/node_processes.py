"""The processes of a job's command: what they see, one for each rank, ended together with all they start."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

_LOW_PRIORITY = 5  # a serving model keeps its latency while a job trains
_KILL_SECONDS = 10.0
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Processes = Sequence["subprocess.Popen[bytes]"]


def container_variables(
    folder: Path, python: Path, packages: Sequence[str], values: Mapping[str, str], given: Mapping[str, str]
) -> dict[str, str]:
    """What a process in the job's container sees, and nothing of this machine.

    Args:
        python: of the image; its folder comes first on PATH.
        packages: folders of packages that the image has besides.
        values: what the command's placeholders stand for.
        given: the service's variables and the job's own.
    """
    folders = {}
    for key, value in values.items():
        kind, _, name = key.partition(".")
        folders[f"AZURE_ML_{kind[:-1].upper()}_{name}"] = value
    home, temporary = folder / "home", folder / "tmp"
    for each in (home, temporary):
        each.mkdir(exist_ok=True)
    variables = {
        "PATH": f"{python.parent}:{_PATH}",
        "HOME": str(home),
        "TMPDIR": str(temporary),
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "AZUREML_CR_AZUREML_CONTEXT": "true",
        **folders,
        **given,
    }
    paths = [variables.get("PYTHONPATH", ""), *packages]
    return {**variables, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def log_names(world: int) -> list[str]:
    """The logs of the ranks, as a run shows them."""
    if world == 1:
        return ["user_logs/std_log.txt"]
    return [f"user_logs/std_log_process_{rank:02d}.txt" for rank in range(world)]


def start(command: str, world: int, *, work: Path, kept: Path, variables: Mapping[str, str]) -> Processes:
    """One process, or as many as the distribution says, which then find each other by the usual variables.

    Args:
        work: where they run.
        kept: the folder of what the run keeps, with the logs.
    """
    shutil.rmtree(kept / "user_logs", ignore_errors=True)
    (kept / "user_logs").mkdir(parents=True)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world)}
    started = []
    for rank, name in enumerate(log_names(world)):
        ranks = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0"} if world > 1 else {}
        with (kept / name).open("wb") as log:
            child = subprocess.Popen(
                ["bash", "-c", command],
                cwd=work,
                env={**variables, **ranks},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with_node,
            )
        started.append(child)
    return started


def end(processes: Processes, grace: float) -> None:
    """Ask the processes and all they started to end, and after the grace end them."""
    for number, patience in ((signal.SIGTERM, grace), (signal.SIGKILL, _KILL_SECONDS)):
        if not patience:
            continue
        for child in processes:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, number)
        deadline = time.monotonic() + patience
        while any(child.poll() is None for child in processes) and time.monotonic() < deadline:
            time.sleep(0.05)


def _die_with_node() -> None:
    os.nice(_LOW_PRIORITY)
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
