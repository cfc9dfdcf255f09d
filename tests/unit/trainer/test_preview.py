"""Conversations shown with what is learned of them, and the checks before a training starts."""

from __future__ import annotations

import html
import logging
import re

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

from conftest import chat
from test_chat_template import sentencepiece_tokenizer
from transformers import AutoTokenizer

from trainer.chat_template import IGNORED, ChatEncoder
from trainer.chats import Chat
from trainer.checks import Supervision, require_learned_stop, require_supervision
from trainer.errors import TrainerError
from trainer.preview import pieces_of, show_preview

RECORD = chat("<b>Wo?</b> & 草", "In water 🐄.\n\n<i>Yes</i>", "And?", "No. " * 200)


@pytest.fixture(scope="module", params=["byte-level", "sentencepiece"])
def tokenizer(request, tiny_model):
    return AutoTokenizer.from_pretrained(tiny_model) if request.param == "byte-level" else sentencepiece_tokenizer()


def encoded(tokenizer, record=RECORD):
    return ChatEncoder(tokenizer).encode(Chat(tuple(record["messages"]), "train.jsonl line 3"), 4096)


def test_the_pieces_are_the_conversation(tokenizer):
    """Put together, the pieces read as the conversation; the learned ones as its answers; no character is split."""
    row = encoded(tokenizer)
    pieces = pieces_of(tokenizer, row)
    whole = tokenizer.decode(row.input_ids, skip_special_tokens=False)
    assert "".join(piece.text for piece in pieces) == whole
    assert "\ufffd" not in whole
    learned = "".join(piece.text for piece in pieces if piece.learned)
    assert learned.replace(" ", "") == ("Inwater🐄.\n\n<i>Yes</i><|end|>" + "No." * 200 + "<|end|>")
    assert [token for piece in pieces for token in piece.ids] == row.input_ids
    assert sum(len(piece.ids) for piece in pieces if piece.learned) == sum(x != IGNORED for x in row.labels)


def test_the_log_marks_what_is_learned_in_few_lines(tiny_model, tmp_path, caplog):
    """Two lines a conversation, long texts cut in the middle, marks instead of colours where there is no terminal."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    with caplog.at_level(logging.INFO):
        show_preview(tokenizer, [encoded(tokenizer)], ["train.jsonl line 3"], tmp_path)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 3
    assert re.fullmatch(r"Preview train\.jsonl line 3: \d+ tokens, \d+ learned", lines[0])
    assert "<|assistant|>↵{+In water 🐄.↵↵<i>Yes</i><|end|>+}" in lines[1]
    assert "No. No. ... " in lines[1].replace("No.  ...", "No. ...")
    assert len(lines[1]) < 600
    assert "\x1b" not in lines[1]


def test_the_page_stands_alone_and_escapes(tiny_model, tmp_path):
    """The page names no other file, holds the text escaped, and marks the learned tokens."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    row = encoded(tokenizer)
    page = show_preview(tokenizer, [row], ["train.jsonl line 3 <x>"], tmp_path)
    text = page.read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=|@import|url\(", text)
    assert "<b>" not in text and "line 3 &lt;x&gt;" in text
    shown = text[text.index("<pre>") : text.index("</pre>")].replace("<i>↵</i>", "")
    assert html.unescape(re.sub(r"<[^>]+>", "", shown)) == tokenizer.decode(row.input_ids, skip_special_tokens=False)
    assert "prefers-color-scheme: dark" in text
    assert shown.count("class=l") == sum(piece.learned for piece in pieces_of(tokenizer, row))


@pytest.mark.parametrize(
    ("num_chats", "num_left_out", "allowed", "refused"),
    [(90, 10, 0.1, False), (89, 11, 0.1, True), (0, 3, 1.0, True), (5, 0, 0.0, False)],
)
def test_too_little_to_learn_is_refused(num_chats, num_left_out, allowed, refused):
    """Conversations without an answer within max_length are allowed up to a share, and never all of them."""
    found = Supervision(
        num_chats=num_chats, num_tokens=10 * num_chats, num_supervised_tokens=num_chats, num_left_out=num_left_out,
        num_truncated=num_left_out,
    )  # fmt: skip
    if not refused:
        return require_supervision(found, "train.jsonl", 64, allowed)
    with pytest.raises(TrainerError, match=f"in {num_left_out} of {num_chats + num_left_out} conversations no answer"):
        require_supervision(found, "train.jsonl", 64, allowed)


@pytest.mark.parametrize(
    ("learned", "pad", "reason"),
    [
        ({5}, "<|end|>", "is the token that ends an answer"),
        ({7}, "<unk>", "is never learned, so the model would never stop"),
        ({6, 0}, "<unk>", "'<unk>' is a learned token"),
    ],
)
def test_a_training_that_would_go_wrong_does_not_start(tiny_model, learned, pad, reason):
    """The stop token must be learned, the pad token must not, and they must be two."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.pad_token = pad
    assert tokenizer.convert_tokens_to_ids("<|end|>") == 6
    with pytest.raises(TrainerError, match=reason):
        require_learned_stop(learned.__contains__, {6}, tokenizer, "train.jsonl")


def test_counts_become_shares():
    """result.json has the shares that a person would work out."""
    found = Supervision(num_chats=8, num_tokens=1000, num_supervised_tokens=250, num_left_out=2, num_truncated=3)
    values = found.to_dict()
    assert (values["supervised_share"], values["truncated_share"]) == (0.25, 0.3)
