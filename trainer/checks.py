"""What must hold of the rows before a training starts: something is learned of them, how to stop among it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

from trainer.errors import TrainerError
from trainer.tokens import TokenSummary

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Supervision:
    """What is learned of a file, counted.

    Args:
        num_chats, num_tokens, num_supervised_tokens: of the conversations that are trained on, after the cut.
        num_left_out: conversations of which no answer begins before the cut.
        num_truncated: conversations that were cut.
    """

    num_chats: int
    num_tokens: int
    num_supervised_tokens: int
    num_left_out: int
    num_truncated: int

    def to_dict(self) -> dict[str, Any]:
        """For result.json, as `data`."""
        return {
            "num_chats": self.num_chats,
            "num_left_out": self.num_left_out,
            "num_tokens": self.num_tokens,
            "num_supervised_tokens": self.num_supervised_tokens,
            "supervised_share": round(self.num_supervised_tokens / max(self.num_tokens, 1), 4),
            "num_truncated": self.num_truncated,
            "truncated_share": round(self.num_truncated / max(self.num_chats + self.num_left_out, 1), 4),
        }


def supervision_of(summary: TokenSummary) -> Supervision:
    """What tokenising counted."""
    return Supervision(
        num_chats=summary.num_chats,
        num_tokens=summary.num_tokens,
        num_supervised_tokens=summary.num_supervised,
        num_left_out=summary.num_left_out,
        num_truncated=summary.num_cut,
    )


def require_supervision(found: Supervision, name: str, max_length: int, max_left_out_share: float) -> None:
    """Refuse a file of which too little can be learned; say how much is.

    Raises:
        TrainerError: no conversation, or too small a share, has an answer within max_length.
    """
    total = found.num_chats + found.num_left_out
    share = found.num_left_out / max(total, 1)
    if not found.num_chats or not found.num_supervised_tokens or share > max_left_out_share:
        raise TrainerError(
            f"{name}: in {found.num_left_out} of {total} conversations no answer begins within {max_length} tokens; "
            f"at most {max_left_out_share:.0%} may be left out.",
            "Raise train.max_length, shorten the conversations, or raise train.max_left_out_share.",
        )
    shares = found.to_dict()
    log.info(
        "Supervised file=%s num_chats=%d num_supervised_tokens=%d supervised_share=%.1f%% truncated_share=%.1f%% "
        "num_left_out=%d",
        name, found.num_chats, found.num_supervised_tokens, 100 * shares["supervised_share"],
        100 * shares["truncated_share"], found.num_left_out,
    )  # fmt: skip


def require_learned_stop(
    learns: Callable[[int], bool], stop_token_ids: Collection[int], tokenizer: Any, name: str
) -> None:
    """Refuse a file that teaches no end, or to answer with the token that pads.

    Args:
        learns: whether a token's id is learned anywhere in the file.
    Raises:
        TrainerError: names the token.
    """
    if tokenizer.pad_token_id in stop_token_ids:
        raise TrainerError(
            f"The pad token {tokenizer.pad_token!r} is the token that ends an answer.",
            "Give the tokenizer a pad token of its own.",
            "configuration",
        )
    if not any(learns(token) for token in stop_token_ids):
        told = tokenizer.convert_ids_to_tokens(sorted(stop_token_ids))
        raise TrainerError(
            f"{name}: {', '.join(map(repr, told)) or 'a stop token'} is never learned, so the model would never stop: "
            "every answer is cut before its end.",
            "Raise train.max_length.",
        )
    if learns(tokenizer.pad_token_id):
        raise TrainerError(
            f"{name}: the pad token {tokenizer.pad_token!r} is a learned token.",
            "Give the tokenizer a pad token that stands in no answer.",
            "configuration",
        )
