from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from conftest import write_chats
from token_chats import PHI, by_line, byte_level, conversations

from trainer.errors import TrainerError
from trainer.tokens import TokenPlan, tokenise, tokenising
from trainer.tokens.block import BlockSetup
from trainer.tokens.light_tokenizer import TokenizerSpec
from trainer.tokens.scan import scan
from trainer.tokens.workers import Workers


@pytest.fixture(scope="module")
def phi(tiny_model):
    return byte_level(tiny_model, PHI)


def test_several_processes_write_the_same_file(phi, tmp_path, monkeypatch):
    """What worker processes encode is, byte for byte, what one process does."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(60))
    alone = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "alone")
    monkeypatch.setattr(tokenising, "_LINES_FOR_WORKERS", 0)
    monkeypatch.setattr(tokenising, "scan", lambda path: scan(path, 4096))
    together = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "together")
    assert together.summary == alone.summary
    assert by_line(together) == by_line(alone)
    assert len(scan(path, 4096).parts) > 10


def test_a_killed_worker_is_an_error_and_leaves_none(phi, tmp_path):
    """When a worker is killed the work ends, says so, and no worker is left."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(60))
    setup = BlockSetup(TokenizerSpec.of(phi), path.name, 300, "fastokens", 1000)
    with pytest.raises(TrainerError, match="ended with signal SIGKILL") as died, Workers(path, setup, 2) as workers:
        for number, _ in enumerate(workers.encode(scan(path, 4096).parts)):
            if number == 0:
                workers._processes[1].send_signal(signal.SIGKILL)
    assert died.value.kind == "out_of_memory"
    assert [process.poll() for process in workers._processes] == [-signal.SIGKILL] * 2


def test_workers_end_with_the_process_that_started_them(phi, tmp_path):
    """A worker whose first process is gone, killed or not, ends by itself."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(5))
    setup = BlockSetup(TokenizerSpec.of(phi), path.name, 300, "fastokens", 1000)
    with Workers(path, setup, 1) as workers:
        next(workers.encode(scan(path).parts))
        process = workers._processes[0]
        os.close(process.stdin.fileno())  # as the kernel does for a dead process
        deadline = time.monotonic() + 60
        while process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.returncode == 0
        process.stdin = None


def test_other_processes_wait_for_the_first_of_their_machine(phi, tmp_path, monkeypatch):
    """Of several processes one tokenises; the others wait for its rows, on another machine in a folder of its own."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(5))
    plan, cache = TokenPlan(file=path, max_length=300), tmp_path / "tokens"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tokenise, plan, phi, cache)
        with pytest.raises(TimeoutError):
            waiting.result(1)
        assert not cache.exists()
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("LOCAL_RANK", "0")
        first = tokenise(plan, phi, cache)
        assert waiting.result(60).path == first.path
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    assert by_line(tokenise(plan, phi, cache)) == by_line(first)
    assert [path.suffix for path in sorted((tmp_path / "elsewhere").glob("*/*"))] == [".arrow", ".json"]


@pytest.mark.slow
def test_sixty_megabytes_stay_within_memory(phi, tmp_path):
    """A file of 60 MB is tokenised by several processes that together take less than 1.5 GB."""
    phi.save_pretrained(tmp_path / "tokenizer")
    rows, path = [json.dumps(record) for record in conversations(2000)], tmp_path / "chats.jsonl"
    with path.open("w") as file:
        while file.tell() < 60e6:
            file.write("\n".join(rows) + "\n")
    command = [sys.executable, "-c", MEASURED, str(path), str(tmp_path / "tokenizer"), str(tmp_path / "tokens")]
    output = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    own, worker, num_workers, torch = json.loads(output.stdout)
    assert not torch
    assert own + worker * num_workers < 1.5e9


MEASURED = """
import json, resource, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from trainer.templates import adapt_template
from trainer.tokens import TokenPlan, tokenise, workers
file, tokenizer, folder = map(Path, sys.argv[1:])
tokenise(TokenPlan(file=file, max_length=2048), PreTrainedTokenizerFast.from_pretrained(tokenizer), folder)
own, child = (resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps([own, child, min(workers.usable_cores(), workers.MOST_WORKERS), "torch" in sys.modules]))
"""
