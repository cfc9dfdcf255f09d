"""Shows a few conversations as they are learned from, token by token: in the log, and as a page in the log folder."""

from __future__ import annotations

import html
import logging
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.chat_template import IGNORED
from trainer.files import write_in_place
from trainer.ranks import is_first

if TYPE_CHECKING:
    from trainer.job import Run

log = logging.getLogger(__name__)

PAGE = "preview.html"
_TOKENS_SHOWN = 4000  # of one conversation on the page
_CHARACTERS_SHOWN = 160  # of one learned, or not learned, stretch in the log
_CONTEXT_TOKENS = 4  # decoded before a token: alone, some lose the space in front of them
_MOST_TOKENS_A_CHARACTER = 8
_GREEN, _PLAIN = "\x1b[32m", "\x1b[0m"
_STYLE = """\
:root { color-scheme: light dark; --text: #1f2328; --ground: #ffffff; --quiet: #59636e; --line: #d1d9e0;
  --learned: #d3f5dc; --edge: #1a7f37; }
@media (prefers-color-scheme: dark) { :root { --text: #e6edf3; --ground: #0d1117; --quiet: #9198a1; --line: #3d444d;
  --learned: #12391f; --edge: #57ab5a; } }
body { color: var(--text); background: var(--ground); font: 15px/1.5 system-ui, sans-serif; max-width: 60rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.4rem; } h2 { font-size: 1rem; margin-top: 2rem; }
p { color: var(--quiet); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid var(--line); border-radius: 6px; padding: 1rem;
  font: 14px/1.9 ui-monospace, monospace; }
span { border-right: 1px solid var(--line); padding: 2px 0; }
.l { background: var(--learned); border-bottom: 2px solid var(--edge); }
i { color: var(--quiet); font-style: normal; }
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token, or the few that are one character together.

    Args:
        ids: of the tokens.
        learned: whether they are.
    """

    text: str
    ids: tuple[int, ...]
    learned: bool


def pieces_of(tokenizer: Any, row: Any) -> list[Piece]:
    """The tokens of a row, as text."""
    ids, labels = [int(token) for token in row.input_ids], [int(label) for label in row.labels]
    pieces, start = [], 0
    for end in range(1, len(ids) + 1):
        learned = labels[start] != IGNORED
        ends_run = end == len(ids) or (labels[end] != IGNORED) != learned
        text = _decoded(tokenizer, ids, start, end)
        if "\ufffd" in text and not ends_run and end - start < _MOST_TOKENS_A_CHARACTER:
            continue  # part of a character
        pieces.append(Piece(text, tuple(ids[start:end]), learned))
        start = end
    return pieces


def preview_run(run: Run) -> None:
    """Show train.preview_examples of the conversations that are trained on, spread over the file."""
    number, name = min(run.config.preview_examples, len(run.train_chats)), run.job.train_file.name
    if not number or not is_first():
        return
    rows = [run.train_chats[index * len(run.train_chats) // number] for index in range(number)]
    lines: list[Sequence[int]] = [getattr(row, "lines", ()) for row in rows]
    names = [f"{name} line {line[0]}" if len(line) else f"{name}, one chat" for line in lines]
    page = show_preview(run.tokenizer, rows, names, run.reporting.events.folder)
    run.reporting.tracker.page(PAGE, page.read_text(encoding="utf-8"))


def show_preview(tokenizer: Any, rows: Sequence[Any], names: Sequence[str], folder: Path) -> Path:
    """Log the rows with what is learned of them marked, write the page, and return where it is."""
    shown = [pieces_of(tokenizer, _middle_cut(row)) for row in rows]
    marks = _marks()
    for name, row, pieces in zip(names, rows, shown, strict=True):
        log.info("Preview %s: %s", name, _counts(row))
        log.info("  %s", _line(pieces, marks))
    page = folder / PAGE
    write_in_place(page, _page(names, rows, shown))
    log.info("Wrote %s (learned tokens marked, hover for ids)", page)
    return page


def _decoded(tokenizer: Any, ids: list[int], start: int, end: int) -> str:
    before = ids[max(0, start - _CONTEXT_TOKENS) : start]
    context, text = (
        tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for part in (before, before + ids[start:end])
    )
    if before and text.startswith(context):
        return text[len(context) :]
    return tokenizer.decode(ids[start:end], skip_special_tokens=False, clean_up_tokenization_spaces=False)


@dataclass(frozen=True, slots=True)
class _Cut:
    input_ids: Sequence[int]
    labels: Sequence[int]


def _middle_cut(row: Any) -> Any:
    if len(row.input_ids) <= _TOKENS_SHOWN:
        return row
    half = _TOKENS_SHOWN // 2
    return _Cut(
        [*row.input_ids[:half], *row.input_ids[-half:]], [*row.labels[:half], *row.labels[-half:]]
    )  # the counts are of all of it


def _counts(row: Any) -> str:
    num_learned = sum(int(label) != IGNORED for label in row.labels)
    return f"{len(row.input_ids)} tokens, {num_learned} learned"


def _marks() -> tuple[str, str]:
    coloured = sys.stderr.isatty() and "NO_COLOR" not in os.environ
    return (_GREEN, _PLAIN) if coloured else ("{+", "+}")


def _line(pieces: list[Piece], marks: tuple[str, str]) -> str:
    stretches = []
    for learned, group in groupby(pieces, key=lambda piece: piece.learned):
        text = "".join(piece.text for piece in group).replace("\n", "\u21b5")
        text = "".join(character if character.isprintable() else "\u00b7" for character in text)
        if len(text) > _CHARACTERS_SHOWN:
            half = _CHARACTERS_SHOWN // 2
            text = f"{text[:half]} ... {text[-half:]}"
        stretches.append(f"{marks[0]}{text}{marks[1]}" if learned else text)
    return "".join(stretches)


def _page(names: Sequence[str], rows: Sequence[Any], shown: list[list[Piece]]) -> str:
    parts = [
        "<!doctype html>\n<html lang=en>\n<meta charset=utf-8>\n<title>What is learned</title>\n"
        '<meta name=viewport content="width=device-width">\n'
        f"<style>\n{_STYLE}</style>\n<h1>What is learned</h1>\n"
        "<p>Conversations as the model sees them. <span class=l>Marked tokens</span> are learned, all others are "
        "context. A line divides tokens; hover one for its id.</p>\n"
    ]
    for name, row, pieces in zip(names, rows, shown, strict=True):
        cut = "" if len(row.input_ids) <= _TOKENS_SHOWN else f"; its first and last {_TOKENS_SHOWN // 2} are shown"
        parts.append(f"<h2>{html.escape(name)}</h2>\n<p>{_counts(row)}{cut}</p>\n<pre>")
        parts += [_span(piece) for piece in pieces]
        parts.append("</pre>\n")
    return "".join(parts) + "</html>\n"


def _span(piece: Piece) -> str:
    text = html.escape(piece.text).replace("\n", "<i>\u21b5</i>\n")
    ids = ", ".join(map(str, piece.ids))
    return f'<span{" class=l" if piece.learned else ""} title="{ids}">{text}</span>'
