"""A process that encodes parts of one file: python -m trainer.tokens, with pickles on its standard streams.

The first says how; every other one names a part of the file, and is answered, until the stream ends. It imports
neither torch nor transformers.
"""

from __future__ import annotations

import logging
import os
import pickle
import sys
from typing import Any

from trainer.errors import TrainerError
from trainer.interruption import worker_signals
from trainer.tokens.block import Block, BlockEncoder, BlockSetup
from trainer.tokens.encoders import EncoderRefusedError, encode_alone
from trainer.tokens.parts import Failure, read_part


def main() -> int:
    """Answer until standard input ends."""
    worker_signals()
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    encode_alone()
    encoder = None
    try:
        path, setup = pickle.load(sys.stdin.buffer)
        encoder = _encoder(setup)
        with open(path, "rb") as file:
            while True:
                part = pickle.load(sys.stdin.buffer)
                pickle.dump(_answer(encoder, read_part(file, part)), answers, protocol=5)
                answers.flush()
    except (EOFError, BrokenPipeError):  # the first process is done, or gone
        return 0


def _encoder(setup: BlockSetup) -> BlockEncoder | Failure:
    try:
        return BlockEncoder(setup)
    except (EncoderRefusedError, TrainerError) as error:
        return Failure.of(error)


def _answer(encoder: BlockEncoder | Failure, block: Block) -> Any:
    if isinstance(encoder, Failure):
        return encoder
    try:
        return encoder.encode(block)
    except TrainerError as error:
        return Failure.of(error)


if __name__ == "__main__":
    sys.exit(main())
