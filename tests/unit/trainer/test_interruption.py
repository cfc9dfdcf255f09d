"""What a signal does to a trainer: at once, after the step, or in spite of a call that does not hear it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def started(script: str) -> subprocess.Popen[str]:
    """A process that has said it is ready, and what it does then."""
    beginning = """
        import os, signal, sys, time
        from trainer import interruption
        from trainer.interruption import Interrupted, Interruption
        asked = Interruption()
        asked.listen()
    """
    script = textwrap.dedent(beginning) + textwrap.dedent(script)
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline().startswith("ready")
    return process


def test_no_library_can_swallow_it():
    """Outside of training it ends the run at once, through whoever survives any exception."""
    process = started("""
        print("ready", flush=True)
        try:
            try:
                time.sleep(60)
            except Exception:  # as a library would
                print("swallowed", flush=True)
        except Interrupted as stop:
            print(stop.error.kind, flush=True)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "preempted\n"


def test_training_ends_itself_and_one_request_may_come_twice():
    """While deferred, a signal and the launcher's copy of it are one request, which waits for the step."""
    process = started("""
        interruption._ONE_REQUEST_SECONDS = 60
        heard = []
        listener = asked._on_signal
        signal.signal(signal.SIGTERM, lambda *given: (heard.append(given), listener(*given)))
        try:
            with asked.deferred():
                print("ready", flush=True)
                while not asked.requested:
                    time.sleep(0.01)
                print("asked", flush=True)
                while len(heard) < 2:
                    time.sleep(0.01)
                print("step", flush=True)
        except Interrupted:
            print("ended", flush=True)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "step\nended\n"


def test_a_second_request_does_not_wait():
    """Asked again, it ends within the step."""
    process = started("""
        interruption._ONE_REQUEST_SECONDS = 0
        try:
            with asked.deferred():
                print("ready", flush=True)
                while not asked.requested:
                    time.sleep(0.01)
                print("asked", flush=True)
                time.sleep(60)
        except Interrupted:
            print("ended", flush=True)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.stdout is not None and process.stdout.readline() == "asked\n"
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=20)[0] == "ended\n"


def test_a_call_that_does_not_hear_it_is_ended():
    """A process stuck in a library's call ends with code 75 when its patience is over."""
    process = started("""
        import hashlib
        interruption._PATIENCE_SECONDS = 0.3
        print("ready", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2**31 - 1)
    """)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 75


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not tell a process that its parent is gone")
def test_a_worker_ends_with_its_parent():
    """A worker process of a trainer that is killed is gone, too."""
    process = started("""
        worker = os.fork()
        if not worker:
            interruption.worker_signals()
            print("ready", os.getpid(), flush=True)
            time.sleep(60)
        os.waitpid(worker, 0)
    """)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(Path(f"/proc/{pid}").exists() for pid in children):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert len(children) == 1
