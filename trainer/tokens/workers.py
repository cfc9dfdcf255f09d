"""Worker processes that encode the parts of a file, answers in order, a bounded number of them under way."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from trainer.errors import TrainerError
from trainer.tokens.block import BlockSetup, EncodedBlock
from trainer.tokens.parts import Failure, Part

# Each takes up to 200 MB; with these all processes stay below 1.5 GB, and few more would wait for the one that writes.
MOST_WORKERS = 6
_UNDER_WAY = 3  # parts a worker has at a time, so that it never waits for the next


def usable_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that encode one file; a context manager that ends them.

    Parts are dealt in turn and answers read in the same order, so a request always fits the pipe and nobody waits in
    a circle. A worker whose standard input ends, because this process is gone, ends as well.
    """

    def __init__(self, file: Path, setup: BlockSetup, num_workers: int) -> None:
        self._file = file
        self._setup = setup
        self._num_workers = num_workers
        self._processes: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Workers:
        command, environment = _command()
        try:
            for _ in range(self._num_workers):
                process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
                self._processes.append(process)
            for process in self._processes:
                self._send(process, (str(self._file.absolute()), self._setup))
        except BaseException:  # Ctrl-C too must leave no process behind
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end()

    def encode(self, parts: Iterable[Part]) -> Iterator[EncodedBlock]:
        """Encode the parts, each answer in its turn.

        Raises:
            TrainerError: a line cannot be learned from, or a worker ended.
            EncoderRefusedError: the encoder does not know this tokenizer.
        """
        under_way: deque[subprocess.Popen[bytes]] = deque()
        for number, part in enumerate(parts):
            process = self._processes[number % len(self._processes)]
            if len(under_way) == _UNDER_WAY * len(self._processes):
                yield self._answer(under_way.popleft())
            self._send(process, part)
            under_way.append(process)
        while under_way:
            yield self._answer(under_way.popleft())

    def _send(self, process: subprocess.Popen[bytes], request: object) -> None:
        assert process.stdin is not None
        try:
            pickle.dump(request, process.stdin, protocol=5)
            process.stdin.flush()
        except BrokenPipeError:
            raise self._died(process) from None

    def _answer(self, process: subprocess.Popen[bytes]) -> EncodedBlock:
        assert process.stdout is not None
        try:
            answer = pickle.load(process.stdout)
        except (EOFError, pickle.UnpicklingError):
            raise self._died(process) from None
        if isinstance(answer, Failure):
            raise answer.error(*answer.arguments)
        return answer

    def _died(self, process: subprocess.Popen[bytes]) -> TrainerError:
        code = process.wait(timeout=60)
        killed = code == -signal.SIGKILL
        return TrainerError(
            f"A process that tokenises {self._file.name} ended with "
            + (f"signal {signal.Signals(-code).name}." if code < 0 else f"exit code {code}."),
            "Run the command again; with less running beside it when memory was short."
            if killed
            else "Its own message stands above; run the command again.",
            "out_of_memory" if killed else "bug",
        )

    def _end(self) -> None:
        for process in self._processes:
            process.kill()  # it holds nothing that must be kept
        for process in self._processes:
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):  # what it was never sent
                        stream.close()


def _command() -> tuple[list[str], dict[str, str]]:
    """Command and environment of a worker."""
    root = str(Path(__file__).resolve().parents[2])
    paths = [root, os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    return [sys.executable, "-m", "trainer.tokens"], environment
