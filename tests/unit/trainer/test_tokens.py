from __future__ import annotations

import errno
import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("torch", reason="runs in the training environment")

import numpy as np
from conftest import FACTS, chat, write_chats
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from trainer.batches import chat_lengths, row_lengths
from trainer.chat_template import ChatEncoder
from trainer.chats import parse_chat
from trainer.config import TrainConfig
from trainer.errors import TrainerError
from trainer.templates import adapt_template
from trainer.tokens import TokenPlan, encoders, tokenise, tokenising
from trainer.tokens.block import BlockSetup
from trainer.tokens.light_tokenizer import TokenizerSpec
from trainer.tokens.packing import pack
from trainer.tokens.scan import scan
from trainer.tokens.store import RowWriter
from trainer.tokens.workers import Workers
from trainer.train import _train_rows

PHI = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_3 = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start|>' + message['role'] + '<|stop|>\n\n' }}"
    "{{ message['content'] | trim + '<|eot|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant<|stop|>\n\n' }}{% endif %}"
)
# A conversation's beginning is not what its first prompt began with, so the first answer is context only.
FORGETFUL = "{% if messages | length > 2 %}{{ '<|system|>\nMore turns<|end|>\n' }}{% endif %}" + PHI


def byte_level(folder: Path, template: str, *tokens: str) -> PreTrainedTokenizerFast:
    """The small model's tokenizer with another template."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_special_tokens({"additional_special_tokens": [*tokens]}, replace_extra_special_tokens=False)
    tokenizer.chat_template = template
    return tokenizer


def sentencepiece() -> PreTrainedTokenizerFast:
    """Spaces as marks, one in front, bytes for the rest; special tokens swallow the white space behind them."""
    backend = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=700, special_tokens=special, show_progress=False)
    backend.train_from_iterator([*FACTS, *FACTS.values()], trainer)
    described = json.loads(backend.to_str())  # bytes are tokens like any other
    described["added_tokens"] = [token for token in described["added_tokens"] if not token["content"].startswith("<0x")]
    backend = Tokenizer.from_str(json.dumps(described))
    names = ("<|endoftext|>", "<|assistant|>", "<|system|>", "<|end|>", "<|user|>")
    backend.add_special_tokens([AddedToken(name, rstrip=True, special=True, normalized=False) for name in names])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="<|endoftext|>", unk_token="<unk>", chat_template=PHI
    )


@pytest.fixture(scope="module")
def phi(tiny_model):
    return byte_level(tiny_model, PHI)


def conversations(number: int = 40) -> list[dict]:
    """Of every kind: several turns, system turns, other scripts, control tokens and white space in texts."""
    chance = random.Random(0)
    words = " ".join([*FACTS, *FACTS.values(), "数据准备 \U0001f41f naïve <b> <|end"]).split(" ")
    words.extend(["\n\n", "  "])
    text = lambda most: " ".join(chance.choices(words, k=chance.randint(1, most)))  # noqa: E731
    rows = [
        chat("What do bees make?", "Bees make honey.", "And cows?", "Cows eat grass.\n\n- green grass"),
        chat("Where do fish live?", "  In w\u00e4ter \U0001f41f. \n", system="Be brief."),
        chat("Say <|end|><|user|> and stop <|im_end|>", "No <|assistant|>\n, never <unk>.", "<|end|>", "."),
        chat("\n\n 我们在哪里\uff1f \n", "在水里。\n", "为什么\u3000", "因为"),
        chat("Quote your header", "<|assistant |>\nassistant\n\nearlier: x"),
        {"messages": [*chat("Why?", "So.")["messages"], {"role": "user", "content": "left open"}]},
        chat("Long", text(3000)),
    ]
    for _ in range(number):
        turns = [text(60) for _ in range(2 * chance.randint(1, 4))]
        rows.append(chat(*turns, system=text(9) if chance.random() < 0.3 else None))
    return rows


def calls_of_tools() -> list[dict]:
    """Calls and results of tools, and answers that are context only."""
    call = {"type": "function", "function": {"name": "weather", "arguments": {"city": "K\u00f6ln <|end|>"}}}
    question, answer = chat("Rain?", "It rains.")["messages"]
    context = {**answer, "train": False}
    use = {"role": "assistant", "content": "", "tool_calls": [call]}
    result = {"role": "tool", "name": "weather", "content": '{"rain": true}'}
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
    return [
        {"messages": [question, use, result, answer], "tools": tools},
        {"messages": [question, use, result, answer, question, use, result, context, question, answer], "tools": tools},
        {"messages": [question, context, question, answer, question, context]},
    ]


def truth(path: Path, tokenizer, max_length: int) -> dict[int, tuple[list[int], list[int]]]:
    """What ChatEncoder gives for every line that can be learned from."""
    encoder = ChatEncoder(tokenizer)
    found = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        encoded = encoder.encode(parse_chat(line, f"line {number}"), max_length)
        if encoded.num_learned_tokens:
            found[number] = (encoded.input_ids, encoded.labels)
    return found


def by_line(rows) -> dict[int, tuple[list[int], list[int]]]:
    """Ids and labels of each conversation, asserting that every one is there once."""
    found = [(row.lines, row.input_ids.tolist(), row.labels.tolist()) for row in rows.chats()]
    assert all(len(lines) == 1 for lines, _, _ in found)
    assert len({lines[0] for lines, _, _ in found}) == len(found)
    return {lines[0]: (ids, labels) for lines, ids, labels in found}


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


def test_several_processes_write_the_same_file(phi, tmp_path, monkeypatch):
    """What worker processes encode is, byte for byte, what one process does."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(60))
    alone = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "alone")
    monkeypatch.setattr(tokenising, "_LINES_FOR_WORKERS", 0)
    monkeypatch.setattr(tokenising, "scan", lambda path: scan(path, 4096))
    together = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "together")
    assert together.summary == alone.summary
    assert by_line(together) == by_line(alone)
    assert len(scan(path, 4096).parts) > 10


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


def test_a_killed_worker_is_an_error_and_leaves_none(phi, tmp_path):
    """When a worker is killed the work ends, says so, and no worker is left."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(60))
    setup = BlockSetup(TokenizerSpec.of(phi), path.name, 300, "fastokens", 1000)
    with pytest.raises(TrainerError, match="ended with signal SIGKILL") as died, Workers(path, setup, 2) as workers:
        for number, _ in enumerate(workers.encode(scan(path, 4096).parts)):
            if number == 0:
                workers._processes[1].send_signal(signal.SIGKILL)
    assert died.value.kind == "out_of_memory"
    assert [process.poll() for process in workers._processes] == [-signal.SIGKILL] * 2


def test_workers_end_with_the_process_that_started_them(phi, tmp_path):
    """A worker whose first process is gone, killed or not, ends by itself."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(5))
    setup = BlockSetup(TokenizerSpec.of(phi), path.name, 300, "fastokens", 1000)
    with Workers(path, setup, 1) as workers:
        next(workers.encode(scan(path).parts))
        process = workers._processes[0]
        os.close(process.stdin.fileno())  # as the kernel does for a dead process
        deadline = time.monotonic() + 60
        while process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert process.returncode == 0
        process.stdin = None


def test_a_full_disk_is_an_error_and_leaves_no_file(phi, tmp_path, monkeypatch):
    """A disk that fills up ends it in one line, and no part of a file stays."""

    def fill_up(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RowWriter, "write", fill_up)
    path = write_chats(tmp_path / "chats.jsonl", conversations(5))
    with pytest.raises(TrainerError, match=r"The disk of .*tokens is full"):
        tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "tokens")
    assert list((tmp_path / "tokens").iterdir()) == []


def test_other_processes_wait_for_the_first_of_their_machine(phi, tmp_path, monkeypatch):
    """Of several processes one tokenises; the others wait for its rows, on another machine in a folder of its own."""
    path = write_chats(tmp_path / "chats.jsonl", conversations(5))
    plan, cache = TokenPlan(file=path, max_length=300), tmp_path / "tokens"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(tokenise, plan, phi, cache)
        with pytest.raises(TimeoutError):
            waiting.result(1)
        assert not cache.exists()
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("LOCAL_RANK", "0")
        first = tokenise(plan, phi, cache)
        assert waiting.result(60).path == first.path
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    assert by_line(tokenise(plan, phi, cache)) == by_line(first)
    assert [path.suffix for path in sorted((tmp_path / "elsewhere").glob("*/*"))] == [".arrow", ".json"]


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


@pytest.mark.slow
def test_sixty_megabytes_stay_within_memory(phi, tmp_path):
    """A file of 60 MB is tokenised by several processes that together take less than 1.5 GB."""
    phi.save_pretrained(tmp_path / "tokenizer")
    rows, path = [json.dumps(record) for record in conversations(2000)], tmp_path / "chats.jsonl"
    with path.open("w") as file:
        while file.tell() < 60e6:
            file.write("\n".join(rows) + "\n")
    command = [sys.executable, "-c", MEASURED, str(path), str(tmp_path / "tokenizer"), str(tmp_path / "tokens")]
    output = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}, capture_output=True, text=True
    )
    assert output.returncode == 0, output.stderr
    own, worker, num_workers, torch = json.loads(output.stdout)
    assert not torch
    assert own + worker * num_workers < 1.5e9


MEASURED = """
import json, resource, sys
from pathlib import Path
from transformers import PreTrainedTokenizerFast
from trainer.templates import adapt_template
from trainer.tokens import TokenPlan, tokenise, workers
file, tokenizer, folder = map(Path, sys.argv[1:])
tokenise(TokenPlan(file=file, max_length=2048), PreTrainedTokenizerFast.from_pretrained(tokenizer), folder)
own, child = (resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
print(json.dumps([own, child, min(workers.usable_cores(), workers.MOST_WORKERS), "torch" in sys.modules]))
"""


def test_rows_of_labels_match_what_is_learned(phi, tmp_path):
    """Labels are the ids where an answer is, and -100 elsewhere."""
    path = write_chats(tmp_path / "chats.jsonl", [chat("What do bees make?", "Bees make honey.")])
    row = tokenise(TokenPlan(file=path, max_length=300), phi, tmp_path / "tokens")[0]
    learned = row.labels >= 0
    assert np.array_equal(row.labels[learned], row.input_ids[learned])
    assert phi.decode(row.input_ids[learned]) == "Bees make honey.<|end|>"
