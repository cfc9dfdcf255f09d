"""Chats to packed rows of tokens in Arrow, on all cores, once.

`tokenising` is the whole; `block` turns lines into tokens and what is learned of them, `workers` does so in several
processes, `packing` fills rows, `store` keeps them. What is right is what trainer.chat_template says; this is its
fast form, compared with it on every file.
"""

from trainer.tokens.plan import TokenPlan, TokenSummary
from trainer.tokens.store import TokenRows
from trainer.tokens.tokenising import tokenise

__all__ = ["TokenPlan", "TokenRows", "TokenSummary", "tokenise"]
