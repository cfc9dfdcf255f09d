"""Encoded conversations gathered until a window is full, then packed and written; and the counts of all of them."""

from __future__ import annotations

import logging

import numpy as np

from trainer.tokens.block import EncodedBlock
from trainer.tokens.packing import WINDOW_CHATS, WINDOW_TOKENS, pack
from trainer.tokens.plan import TokenPlan, TokenSummary
from trainer.tokens.store import RowWriter

log = logging.getLogger(__name__)

_LINES_SHOWN = 20


class PackedWriter:
    """Packs conversations in the order they come, window by window."""

    def __init__(self, plan: TokenPlan, writer: RowWriter, encoder: str) -> None:
        self._plan = plan
        self._writer = writer
        self._encoder = encoder
        self._blocks: list[EncodedBlock] = []
        self._held_chats = self._held_tokens = 0
        self._num_chats = self._num_tokens = self._num_supervised = self._num_cut = self._num_rows = 0
        self._longest_chat = self._longest_row = 0
        self._num_left_out = self._num_one_by_one = 0
        self._left_out: list[int] = []
        self._stops: set[int] = set()

    def add(self, block: EncodedBlock) -> None:
        """Take the conversations of a block; write when there are enough."""
        if block.left_out:
            self._leave_out(block.left_out)
        self._num_cut += block.num_cut
        self._num_supervised += block.num_supervised
        self._num_one_by_one += block.num_one_by_one
        self._stops |= block.stop_token_ids
        self._blocks.append(block)
        self._held_chats += len(block.lengths)
        self._held_tokens += len(block.ids)
        if self._held_tokens >= WINDOW_TOKENS or self._held_chats >= WINDOW_CHATS:
            self._flush()

    def finish(self) -> TokenSummary:
        """Write what is left and say what was written."""
        self._flush()
        if self._num_left_out > _LINES_SHOWN:
            log.warning("Left out num_chats=%d in all, for the same reason", self._num_left_out)
        places = self._num_rows * self._plan.max_length
        return TokenSummary(
            num_chats=self._num_chats,
            num_tokens=self._num_tokens,
            num_supervised=self._num_supervised,
            num_cut=self._num_cut,
            num_left_out=self._num_left_out,
            left_out_lines=tuple(self._left_out),
            longest_chat=self._longest_chat,
            longest_row=self._longest_row,
            num_rows=self._num_rows,
            fill_share=round(self._num_tokens / places, 6) if places else 0.0,
            stop_token_ids=tuple(sorted(self._stops)),
            num_one_by_one=self._num_one_by_one,
            encoder=self._encoder,
        )

    def _leave_out(self, lines: list[int]) -> None:
        for line in lines[: max(_LINES_SHOWN - len(self._left_out), 0)]:
            self._left_out.append(line)
            log.warning(
                "Left out row=%s line %d reason=no answer within max_length=%d tokens",
                self._plan.file.name,
                line,
                self._plan.max_length,
            )
        self._num_left_out += len(lines)

    def _flush(self) -> None:
        blocks, self._blocks = self._blocks, []
        self._held_chats = self._held_tokens = 0
        lengths = _all([block.lengths for block in blocks], np.int32)
        if not len(lengths):
            return
        rows = pack(lengths.tolist(), self._plan.max_length, self._plan.short_context)
        order = np.array([chat for row in rows for chat in row])
        lines = _all([block.lines for block in blocks], np.int64)[order]
        ids = _gathered(_all([block.ids for block in blocks], np.int32), lengths, order)
        learned = _gathered(_all([block.learned for block in blocks], bool), lengths, order)
        sizes = np.array([len(row) for row in rows])
        self._writer.write(ids, learned, lengths[order], lines, sizes)
        self._num_chats += len(lengths)
        self._num_tokens += len(ids)
        self._num_rows += len(rows)
        self._longest_chat = max(self._longest_chat, int(lengths.max()))
        ends = np.cumsum(sizes) - sizes
        self._longest_row = max(self._longest_row, int(np.add.reduceat(lengths[order], ends).max()))


def _gathered(values: np.ndarray, lengths: np.ndarray, order: np.ndarray) -> np.ndarray:
    """The values of each conversation, the conversations in another order."""
    ends = np.cumsum(lengths, dtype=np.int64)
    starts = ends - lengths
    return np.concatenate([values[starts[chat] : ends[chat]] for chat in order])


def _all(parts: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.empty(0, dtype), *parts])
