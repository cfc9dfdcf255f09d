"""Runs trainer commands as forks of one process that has imported the slow libraries, several at a time as a group.

python forked.py < GROUPS, a JSON list of groups, each a list of [environment, arguments]; prints the exit codes.
"""

from __future__ import annotations

import json
import os
import sys
import traceback

import mlflow.transformers  # noqa: F401
import torch
import transformers.generation  # noqa: F401

import trainer.evaluate
import trainer.guard
import trainer.loop
import trainer.sharding
import trainer.train  # noqa: F401
from trainer.__main__ import main


def run(environment: dict[str, str], arguments: list[str]) -> int:
    """The command, in this process, which then ends."""
    os.environ.update(environment)
    torch.set_num_threads(1)  # the parent has made no threads, and a fork must make none
    try:
        code = main(arguments)
    except BaseException:  # a fork that went on would run its parent's loop; the code tells the test
        traceback.print_exc()
        code = 99
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def group(commands: list) -> list[int]:
    """Run all at once and wait for all."""
    pids = []
    for environment, arguments in commands:
        pid = os.fork()
        if not pid:
            run(environment, arguments)
        pids.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    codes = [group(commands) for commands in json.load(sys.stdin)]
    print("codes", json.dumps(codes))
