"""What is to be tokenised, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPlan:
    """One file of canonical chats and the rows it becomes.

    Args:
        max_length: conversations are cut after this many tokens, and no row has more.
        short_context: conversations above this many tokens share no row with others below; None: all do. A model
            whose positions are scaled for long contexts (longrope) treats a row by its longest conversation.
    """

    file: Path
    max_length: int
    short_context: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSummary:
    """What a tokenised file holds.

    Args:
        num_tokens: of all conversations after the cut.
        num_supervised: tokens whose label counts; a conversation's first never does.
        num_cut: conversations that were longer than the plan allows.
        num_left_out: conversations of which no answer begins before the cut.
        left_out_lines: the first of those, by line.
        longest_chat, longest_row: tokens.
        fill_share: of the rows' places, how many hold a token.
        num_one_by_one: conversations whose template, or text, only the slow exact encoder understands.
        encoder: what encoded: fastokens, tokenizers or transformers.
    """

    num_chats: int
    num_tokens: int
    num_supervised: int
    num_cut: int
    num_left_out: int
    left_out_lines: tuple[int, ...]
    longest_chat: int
    longest_row: int
    num_rows: int
    fill_share: float
    stop_token_ids: tuple[int, ...]
    num_one_by_one: int
    encoder: str
