"""Texts to token ids, many at a time: fastokens, or tokenizers where it does not agree."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np

log = logging.getLogger(__name__)

_CHECK_EVERY = 2_000


class EncoderRefusedError(Exception):
    """An encoder cannot be used for this tokenizer; the message says why."""


class BatchEncoder(Protocol):
    """Encodes texts as they are, adding no token."""

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts one behind the other, and num_texts + 1 offsets into them."""
        ...


def batch_encoder(kind: str, backend: str) -> BatchEncoder:
    """Build an encoder from the text of a tokenizer.json.

    Args:
        kind: fastokens or tokenizers.
    Raises:
        EncoderRefusedError: it is not installed, or does not know this tokenizer.
    """
    return _fastokens(backend) if kind == "fastokens" else _tokenizers(backend)


class CheckedEncoder:
    """Encodes with fastokens as long as it agrees with tokenizers, which is asked now and then.

    For counting: the rows that train are held against ChatEncoder instead.
    """

    def __init__(self, backend: str) -> None:
        self._truth = batch_encoder("tokenizers", backend)
        self._seen = 0
        self._fast: BatchEncoder | None = None
        try:
            self._fast = batch_encoder("fastokens", backend)
        except EncoderRefusedError as error:
            log.warning("Did not use encoder=fastokens reason=%s", error)

    def __call__(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """As BatchEncoder."""
        if self._fast is None or not texts:
            return self._truth(texts)
        ids, offsets = self._fast(texts)
        if self._seen == 0 or self._seen // _CHECK_EVERY != (self._seen + len(texts)) // _CHECK_EVERY:
            truth, ends = self._truth(texts)
            if not (np.array_equal(ids, truth) and np.array_equal(offsets, ends)):
                log.warning("Did not use encoder=fastokens reason=it gives other tokens")
                self._fast = None
                return truth, ends
        self._seen += len(texts)
        return ids, offsets


def encode_alone() -> None:
    """Have this process encode on one core: there is one process for each."""
    os.environ["RAYON_NUM_THREADS"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _fastokens(backend: str) -> BatchEncoder:
    try:
        import fastokens

        tokenizer = fastokens.Tokenizer.from_json_str(backend)
    except Exception as error:  # it has no wheel for every machine, and refuses what it does not know in many ways
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EncoderRefusedError(f"it cannot load the tokenizer: {reason}") from error

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, offsets = tokenizer.encode_batch_flat(list(texts), add_special_tokens=False)
        return np.frombuffer(ids, np.uint32).astype(np.int32), np.frombuffer(offsets, np.uint64).astype(np.int64)

    return encode


def _tokenizers(backend: str) -> BatchEncoder:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(backend)

    def encode(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
        rows = [np.array(encoding.ids, np.int32) for encoding in encodings]
        offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
        return np.concatenate([np.empty(0, np.int32), *rows]), offsets.astype(np.int64)

    return encode
