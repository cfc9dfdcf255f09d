"""Chats of one file to encoded chats, each verified, and what did not fit counted."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from trainer.chat_template import ChatEncoder, EncodedChat
from trainer.chats import Chat
from trainer.errors import TrainerError

log = logging.getLogger(__name__)


def encode_chats(
    chats: Sequence[Chat], tokenizer: Any, max_length: int, name: str
) -> tuple[list[EncodedChat], set[int]]:
    """Encode every chat of the file called name; also return the tokens that end an answer.

    Raises:
        TrainerError: names the first row that cannot be learned from, or no row fits.
    """
    encoder = ChatEncoder(tokenizer)
    encoded, num_cut = [], 0
    for chat in chats:
        row = encoder.encode(chat, max_length)
        num_cut += len(row.input_ids) == max_length
        if row.num_learned_tokens:
            encoded.append(row)
        else:
            log.warning("Left out row=%s reason=no answer within max_length=%d tokens", chat.where, max_length)
    if not encoded:
        raise TrainerError(
            f"{name}: no answer begins within {max_length} tokens in any conversation.", "Raise train.max_length."
        )
    log.info("Encoded file=%s num_chats=%d num_cut=%d", name, len(encoded), num_cut)
    return encoded, encoder.stop_token_ids
