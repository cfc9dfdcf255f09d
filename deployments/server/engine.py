"""The engine's process: starts it, passes on its log, and never leaves it behind.

On Linux the kernel kills the engine when the front dies; elsewhere, and for belt and braces, a record of its
process id and start time is kept, and the next start of the same front reaps what it finds.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from pathlib import Path

import psutil

from .errors import StartError

PR_SET_PDEATHSIG = 1
STOP_SECONDS = 5.0
# The engine's own lines about each request and its start; the front writes its own.
QUIET_PREFIXES = ("INFO:", "Loading weights", "[transformers] Loading", "[transformers] [Request received]")


class Engine:
    """A running engine; `create` starts it."""

    def __init__(self, process: subprocess.Popen[str], port: int, record: Path) -> None:
        self.process = process
        self.base_url = f"http://127.0.0.1:{port}"
        self.last_lines: deque[str] = deque(maxlen=20)
        self._record = record
        self._reader = threading.Thread(target=self._pass_on_log, name="engine-log", daemon=True)
        self._reader.start()

    @classmethod
    def create(
        cls, kind: str, model_path: Path, *, device: str, state_dir: Path, name: str, threads: int = 1
    ) -> Engine:
        """Start an engine on a free loopback port; must be called from the main thread.

        The kernel ties the child's life to the thread that started it, not to the process.

        Args:
            threads: of an engine on a CPU, 0 for one a core; OMP_NUM_THREADS, where it is set, wins.
        """
        record = state_dir / f"engine-{name}.json"
        reap_recorded(record)
        port = find_free_port()
        env = os.environ | {
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "VLLM_NO_USAGE_STATS": "1",
            "PYTHONUNBUFFERED": "1",
        }
        if device == "cpu":
            # With one thread a server, a second server that loads does not starve this one.
            env.setdefault("OMP_NUM_THREADS", str(threads or os.cpu_count() or 1))
        try:
            process = subprocess.Popen(
                build_command(kind, device=device, port=port),
                cwd=model_path,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
                preexec_fn=_die_with_parent if sys.platform == "linux" else None,
            )
        except OSError as error:
            raise StartError(f"Cannot start the engine: {error}.") from error
        write_record(record, process.pid)
        return cls(process, port, record)

    @property
    def exit_code(self) -> int | None:
        """The engine's exit status, None while it runs."""
        return self.process.poll()

    def stop(self) -> None:
        """End the engine and everything it started, and forget it."""
        end_process_tree(self.process.pid)
        self.process.wait()
        self._reader.join(timeout=1.0)
        self._record.unlink(missing_ok=True)

    def _pass_on_log(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip() and not line.startswith(QUIET_PREFIXES):
                self.last_lines.append(line.strip())
                print(f"engine: {line.rstrip()}", file=sys.stderr, flush=True)


def build_command(kind: str, *, device: str, port: int) -> list[str]:
    """Return the engine's command line; it runs inside the model's folder.

    `.` as the model's name keeps a path with `@` or `:` from being read as a revision or a file.
    """
    # -P keeps the model's folder off the import path.
    python = [sys.executable, "-P", "-m"]
    listen = ["--host", "127.0.0.1", "--port", str(port)]
    if kind == "vllm":
        return [*python, "vllm.entrypoints.cli.main", "serve", ".", "--served-model-name", "model", *listen]
    quiet = ["--log-level", "error"]
    return [*python, "transformers.cli.transformers", "serve", ".", "--device", device, *listen, *quiet]


def find_free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def write_record(record: Path, pid: int) -> None:
    """Record a process so that the next start can recognise it, even if its number is given out again."""
    record.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"pid": pid, "start_time": psutil.Process(pid).create_time()})
    temporary = record.with_name(f".{record.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, record)


def reap_recorded(record: Path) -> bool:
    """End the recorded process if it still runs; return whether it did."""
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
        process = psutil.Process(int(known["pid"]))
        same = abs(process.create_time() - float(known["start_time"])) < 1.0
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        same = False
    if same:
        end_process_tree(process.pid)
    record.unlink(missing_ok=True)
    return same


def end_process_tree(pid: int) -> None:
    """End a process and its children: politely, and after a few seconds not."""
    try:
        process = psutil.Process(pid)
        tree = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in tree:
        _signal(each, signal.SIGTERM)
    _, alive = psutil.wait_procs(tree, timeout=STOP_SECONDS)
    for each in alive:
        _signal(each, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=STOP_SECONDS)


def _signal(process: psutil.Process, number: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(number)


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
