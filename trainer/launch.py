"""Starts one training process a GPU of this machine by torch's elastic agent, the one behind torchrun.

Where a platform has started them (WORLD_SIZE is set) nothing is started here. The agent passes SIGTERM and Ctrl-C on,
ends all processes when one fails, and kills what does not end; the processes leave why in error.json, and the
launcher says it, once.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from collections.abc import Sequence
from pathlib import Path

from trainer.errors import EXIT_BUG, EXIT_PREEMPTED
from trainer.interruption import GRACE_SECONDS, die_with_parent

_LAUNCHER = "PHIFLOW_LAUNCHER"


def num_processes_to_start(asked: int | None) -> int:
    """How many processes are still to be started: those asked for, or one a GPU; 1 means that this one trains."""
    if "WORLD_SIZE" in os.environ or "RANK" in os.environ:
        return 1
    return asked or max(1, _num_gpus())


def is_launched() -> bool:
    """Whether a launcher started this process, and tells of its end."""
    return _LAUNCHER in os.environ


def end_with_launcher() -> None:
    """Have this process killed with the launcher that started it, if one has."""
    if is_launched():
        die_with_parent(signal.SIGKILL)
        if os.getppid() != int(os.environ[_LAUNCHER]):  # it was gone already
            sys.exit(EXIT_PREEMPTED)


def launch(num_processes: int, arguments: Sequence[str], log_dir: Path) -> int:
    """Run the trainer's command in several processes of this machine and return the group's exit code.

    Args:
        log_dir: where they leave error.json.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, launch_agent

    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)  # each failure would be told three times
    os.environ[_LAUNCHER] = str(os.getpid())
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // num_processes)))
    with tempfile.TemporaryDirectory(prefix="phiflow-launch-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=num_processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=folder),
            signals_to_handle="SIGTERM,SIGINT",
            shutdown_timeout=int(2 * GRACE_SECONDS),
        )
        try:
            launch_agent(config, sys.executable, ["-u", "-m", "trainer", *arguments])
        except SignalException:
            _say(log_dir, "The training was stopped by a signal.")
            return EXIT_PREEMPTED
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            ended = (
                f"was killed by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with {failure.exitcode}"
            )
            _say(log_dir, f"Process {rank} of {num_processes} {ended}.", told=failure.exitcode > 0)
            return failure.exitcode if failure.exitcode > 0 else EXIT_BUG
    return 0


def _say(log_dir: Path, otherwise: str, told: bool = True) -> None:
    """Print why the processes ended, in the words of the one that failed if it had any."""
    try:
        error = json.loads((log_dir / "error.json").read_text(encoding="utf-8")) if told else None
    except (OSError, ValueError):
        error = None
    message = f"{error['message']} {error['fix']}".strip() if error else otherwise
    print(f"error: {message}", file=sys.stderr, flush=True)


def _num_gpus() -> int:
    """GPUs of this machine; torch, slow to import, is asked only where the system shows several."""
    if len([name for name in os.listdir("/dev") if name.startswith("nvidia") and name[6:].isdigit()]) < 2:
        return 0
    import torch

    return torch.cuda.device_count()
