from __future__ import annotations

import errno
import json
import os
import pickle
import random
from dataclasses import replace
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

import numpy as np
from conftest import chat, write_chats
from token_chats import (
    CHATML,
    FORGETFUL,
    LLAMA_3,
    PHI,
    by_line,
    byte_level,
    calls_of_tools,
    conversations,
    sentencepiece,
    truth,
)

from trainer.batches import chat_lengths, row_lengths
from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.templates import adapt_template
from trainer.tokens import TokenPlan, encoders, tokenise, tokenising
from trainer.tokens.packing import pack
from trainer.tokens.store import RowWriter
from trainer.train import _train_rows


@pytest.fixture(scope="module")
def phi(tiny_model):
    return byte_level(tiny_model, PHI)


@pytest.mark.parametrize("name", ["phi", "tools", "sentencepiece", "chatml", "llama3", "forgetful"])
def test_tokens_and_labels_are_those_of_the_exact_encoder(tiny_model, tmp_path, name):
    """Every conversation has the tokens and labels that ChatEncoder gives; where a template is plain, none needs it."""
    tokenizer = {
        "phi": lambda: byte_level(tiny_model, PHI),
        "tools": lambda: byte_level(tiny_model, PHI),
        "sentencepiece": sentencepiece,
        "chatml": lambda: byte_level(tiny_model, CHATML, "<|im_start|>", "<|im_end|>"),
        "llama3": lambda: byte_level(tiny_model, LLAMA_3, "<|start|>", "<|stop|>", "<|eot|>"),
        "forgetful": lambda: byte_level(tiny_model, FORGETFUL),
    }[name]()
    records = conversations()
    if name == "tools":
        adapt_template(tokenizer, None)
        records = calls_of_tools() * 5 + records
    if name == "forgetful":  # whose last prompt would not be the beginning either
        records = [record for record in records if record["messages"][0]["role"] != "system"]
    path = write_chats(tmp_path / "chats.jsonl", records)
    rows = tokenise(TokenPlan(file=path, max_length=300), tokenizer, tmp_path / "tokens")
    assert by_line(rows) == truth(path, tokenizer, 300)
    assert rows.summary.encoder == "fastokens"
    assert (rows.summary.num_one_by_one > 0) == (name == "forgetful")
    assert rows.summary.num_cut > 0 and rows.summary.num_supervised == sum(
        sum(label >= 0 for label in labels[1:]) for _, labels in by_line(rows).values()
    )


def test_tokenised_once(phi, tmp_path, monkeypatch):
    """The same content is not tokenised again; another length is."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(5))
    plan = TokenPlan(file=path, max_length=300)
    first = tokenise(plan, phi, tmp_path / "tokens")

    def refuse(*_):
        raise AssertionError("tokenised again")

    monkeypatch.setattr(tokenising, "_built", refuse)
    again = tokenise(replace(plan, file=path.rename(tmp_path / "other-name.jsonl")), phi, tmp_path / "tokens")
    assert again.summary == first.summary and by_line(again) == by_line(first)
    with pytest.raises(AssertionError, match="tokenised again"):
        tokenise(replace(plan, file=tmp_path / "other-name.jsonl", max_length=299), phi, tmp_path / "tokens")


@pytest.mark.parametrize("harm", ["truncated", "changed", "no marker"])
def test_a_damaged_file_is_written_again(phi, tmp_path, harm):
    """Rows that are not whole are not trained on."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(5))
    plan = TokenPlan(file=path, max_length=300)
    first = tokenise(plan, phi, tmp_path / "tokens")
    content = first.path.read_bytes()
    if harm == "no marker":
        first.path.with_suffix(".json").unlink()
    first.path.unlink()  # the file that is mapped stays as it is
    first.path.write_bytes(content[:-100] if harm == "truncated" else content[:2000] + b"\xff" + content[2001:])
    again = tokenise(plan, phi, tmp_path / "tokens")
    assert again.path.read_bytes() == content
    assert by_line(again) == truth(path, phi, 300)


def test_an_encoder_that_disagrees_is_refused(phi, tmp_path, monkeypatch, caplog):
    """One token that differs in a sample, and the file is encoded by another encoder; the log says why."""
    real = encoders._fastokens

    def wrong(backend):
        encode = real(backend)

        def encode_wrongly(texts):
            ids, offsets = encode(texts)
            if len(texts) > 1:
                ids[offsets[:-1] + 2] = 1
            return ids, offsets

        return encode_wrongly

    monkeypatch.setattr(encoders, "_fastokens", wrong)
    path = write_chats(tmp_path / "chats.jsonl", conversations(5))
    rows = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "tokens")
    assert rows.summary.encoder == "tokenizers"
    assert by_line(rows) == truth(path, phi, 300)
    assert "Did not use encoder=fastokens reason=chats.jsonl line 1 has other tokens" in caplog.text


def test_rows_hold_whole_conversations_side_by_side(phi, tmp_path):
    """A packed row is its conversations one behind the other, also after a trip to another process."""
    path = write_chats(tmp_path / "chats.jsonl", conversations())
    rows = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "tokens")
    alone = by_line(rows)
    rows = pickle.loads(pickle.dumps(rows))
    assert len(rows) == rows.summary.num_rows < len(alone)
    for row in rows:
        assert row.input_ids.tolist() == [token for line in row.lines for token in alone[line][0]]
        assert row.labels.tolist() == [label for line in row.lines for label in alone[line][1]]
        assert [len(alone[line][0]) for line in row.lines] == list(row.lengths)
        assert len(row.input_ids) <= 300
    assert sorted(line for row in rows for line in row.lines) == sorted(alone)


@pytest.mark.parametrize("seed", range(20))
def test_packing_places_every_conversation_once(seed):
    """Whatever the lengths: each conversation in one row, no row too long, long contexts apart, the same every time."""
    chance = random.Random(seed)
    max_length = chance.choice([8, 100, 2048])
    lengths = [chance.randint(1, max_length) for _ in range(chance.randint(0, 400))]
    short = chance.choice([None, max_length // 2, max_length])
    rows = pack(lengths, max_length, short)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[index] for index in row) <= max_length for row in rows)
    if short:
        assert all(len({lengths[index] > short for index in row}) == 1 for row in rows)
    assert rows == pack(lengths, max_length, short)
    full = sum(lengths) / (max_length * len(rows)) if rows else 1
    assert full > 0.8 or len(lengths) < 30 or short == max_length // 2


def test_a_chat_whose_answer_is_cut_off_is_left_out_by_line(phi, tmp_path, caplog):
    """A conversation that ends before its answer begins is left out, and its line is told."""
    path = write_chats(tmp_path / "chats.jsonl", [chat("Why?", "So."), chat("Why? " * 50, "So."), chat("And?", "So.")])
    rows = tokenise(TokenPlan(file=path, max_length=40), phi, tmp_path / "tokens")
    assert (rows.summary.num_chats, rows.summary.num_left_out, rows.summary.left_out_lines) == (2, 1, (2,))
    assert sorted(by_line(rows)) == [1, 3]
    assert "Left out row=chats.jsonl line 2 reason=no answer within max_length=40" in caplog.text
    with pytest.raises(TrainerError, match="no answer begins within 8 tokens in any conversation"):
        tokenise(TokenPlan(file=write_chats(path, [chat("Why? " * 50, "So.")]), max_length=8), phi, tmp_path / "tokens")
    assert list((tmp_path / "tokens").glob("*.arrow")) == [rows.path]


@pytest.mark.parametrize("processes", [False, True])
@pytest.mark.parametrize(
    ("line", "reason"),
    [(b'{"messages": [', "is not JSON"), (b'{"messages": []}', "no list of messages"), (b"\xff", "is not UTF-8")],
)
def test_a_line_that_is_no_chat_is_named(phi, tmp_path, monkeypatch, processes, line, reason):
    """A malformed line ends it by file and line, also when another process finds it."""
    if processes and reason != "is not JSON":
        pytest.skip("one is enough")
    good = json.dumps(chat("Why?", "So.")).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([good, b"", good, line, good, b"{"]))
    monkeypatch.setattr(tokenising, "_LINES_FOR_WORKERS", 0 if processes else 100)
    with pytest.raises(TrainerError, match=f"rows.jsonl line 4 .*{reason}") as refused:
        tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "tokens")
    assert refused.value.kind == "data"
    assert list((tmp_path / "tokens").iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_no_file(phi, tmp_path, monkeypatch):
    """A disk that fills up ends it in one line, and no part of a file stays."""

    def fill_up(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RowWriter, "write", fill_up)
    path = write_chats(tmp_path / "chats.jsonl", conversations(5))
    with pytest.raises(TrainerError, match=r"The disk of .*tokens is full"):
        tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []


def test_packed_rows_train_when_they_are_enough_for_a_step(phi, tmp_path):
    """With packing the packed rows are trained on; without it, or with fewer of them than a step takes, each chat."""
    path = write_chats(tmp_path / "chats.jsonl", conversations())
    chats = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "tokens").chats()

    def rows(packing: bool, batch_size: int) -> int:
        config = TrainConfig(per_device_train_batch_size=batch_size)
        return len(
            _train_rows(SimpleNamespace(config=config, train_chats=chats, hardware=SimpleNamespace(packing=packing)))
        )

    num_rows, num_chats = chats.summary.num_rows, chats.summary.num_chats
    assert num_rows < num_chats
    assert (rows(True, 4), rows(False, 4), rows(True, num_rows + 1)) == (num_rows, num_chats, num_chats)


def test_lengths_and_learned_tokens_are_told_without_reading_rows(phi, tmp_path):
    """What a dataset says of its rows, conversations and learned tokens is what they hold."""
    path = write_chats(tmp_path / "chats.jsonl", conversations())
    rows = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "tokens")
    assert row_lengths(rows).tolist() == [len(row.input_ids) for row in rows]
    assert chat_lengths(rows).tolist() == row_lengths(rows.chats()).tolist()
    assert chat_lengths(rows).tolist() == [length for row in rows for length in row.lengths]
    learned = {int(label) for row in rows for label in row.labels if label >= 0}
    assert {token for token in range(len(phi)) if rows.learns(token)} == learned


def test_rows_of_labels_match_what_is_learned(phi, tmp_path):
    """Labels are the ids where an answer is, and -100 elsewhere."""
    path = write_chats(tmp_path / "chats.jsonl", [chat("What do bees make?", "Bees make honey.")])
    row = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "tokens")[0]
    learned = row.labels >= 0
    assert np.array_equal(row.labels[learned], row.input_ids[learned])
    assert phi.decode(row.input_ids[learned]) == "Bees make honey.<|end|>"
