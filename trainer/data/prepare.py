"""Prepare a data source: canonical train and test files, the rejected records, and a manifest."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from trainer.data import split
from trainer.data.options import DataOptions
from trainer.data.output import durable, require_replaceable, whole_or_absent, write_durably
from trainer.data.shapes import Conversation, to_conversation
from trainer.data.sources import Source, choose_shape, open_source
from trainer.data.tokens import TokenStatistics
from trainer.data.values import RejectedRecordError, kind_of
from trainer.errors import TrainerError

NUM_REJECTED_LISTED = 100
_PROGRESS_SECONDS = 5.0
_MAX_REASON_CHARS = 300
# Up to this many records an unlucky split gets a seed that would work suggested.
_MAX_KEYS_KEPT = 1000


class RejectedDataError(TrainerError):
    """More records were rejected than the options allow; `rejected` lists the first of them."""

    def __init__(self, message: str, fix: str, rejected: list[dict[str, Any]]) -> None:
        super().__init__(message, fix)
        self.rejected = rejected


@dataclass(frozen=True, slots=True)
class _Accepted:
    conversation: Conversation
    key: bytes
    line: bytes


@dataclass(slots=True)
class _Tally:
    """What has been seen so far, in bounded memory."""

    counts: Counter[str] = field(default_factory=Counter)
    num_messages: int = 0
    rejected: list[dict[str, Any]] = field(default_factory=list)
    keys: list[bytes] = field(default_factory=list)
    sha256: dict[str, Any] = field(default_factory=lambda: {"train": hashlib.sha256(), "test": hashlib.sha256()})


def prepare(options: DataOptions) -> dict[str, Any]:
    """Write the folder `options.output_dir`, whole or not at all, and return its manifest.

    Raises:
        RejectedDataError: too many records were rejected.
        TrainerError: the source, the options or the disk do not allow it.
    """
    source = open_source(options.source, options)
    test_source = open_source(options.test_source) if options.test_source else None
    shape = choose_shape(source, options.shape, options.group_by)
    output_dir = Path(options.output_dir).resolve()
    require_replaceable(output_dir)
    tokens = TokenStatistics(options.tokenizer, options.max_length) if options.tokenizer else None
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_absent(output_dir) as folder, contextlib.ExitStack() as files:
            writer = _Writer(folder, files, tokens)
            if test_source:
                test_shape = choose_shape(test_source, options.shape, options.group_by)
                test_keys = writer.write_test(test_source, test_shape, options.group_by)
                writer.write_train(source, shape, options.group_by, test_keys)
            else:
                writer.write_split(source, shape, options)
            _require_few_rejected(writer.tally, options)
            _require_both_sides(writer.tally, options)
            files.close()
            manifest = _manifest(folder, writer, shape, source, test_source)
            write_durably(folder / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=2) + "\n")
            return manifest
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise TrainerError(
            f"The data could not be written to {output_dir}: {error.strerror or error}.",
            f"{'Free some space' if is_full else 'Mend that'} or name another folder; nothing was left.",
        ) from None


class _Writer:
    """The open files of one output folder and the tally of what went into them."""

    def __init__(self, folder: Path, files: contextlib.ExitStack, tokens: TokenStatistics | None) -> None:
        self.tally = _Tally()
        self.tokens = tokens
        self._files: dict[str, BinaryIO] = {
            name: files.enter_context(durable(folder / file))
            for name, file in (
                ("train", "train.jsonl"),
                ("test", "test.jsonl"),
                ("rejected", "rejected.jsonl"),
                ("keys", ".keys"),
            )
        }
        self._reported = time.monotonic()

    def write_split(self, source: Source, shape: str, options: DataOptions) -> None:
        """Send every record to the side its hash decides."""
        for accepted in self._accepted(source, shape, options.group_by):
            side = "test" if split.is_test(accepted.key, options.test_share, options.seed) else "train"
            self._write(side, accepted)

    def write_test(self, source: Source, shape: str, group_by: str | None) -> set[bytes]:
        """Send every record to the test side; returns their keys, 16 bytes each, kept in memory."""
        keys = set()
        for accepted in self._accepted(source, shape, group_by):
            keys.add(accepted.key)
            self._write("test", accepted)
        return keys

    def write_train(self, source: Source, shape: str, group_by: str | None, test_keys: set[bytes]) -> None:
        """Send every record to the train side, but for those that are also tested on."""
        for accepted in self._accepted(source, shape, group_by):
            if accepted.key in test_keys:
                self.tally.counts["overlap"] += 1
            else:
                self._write("train", accepted)

    def _accepted(self, source: Source, shape: str, group_by: str | None) -> Iterator[_Accepted]:
        for line, record in source.records():
            self._report(source)
            try:
                if isinstance(record, RejectedRecordError):
                    raise record
                conversation = to_conversation(record, shape)
                key = _side_key(record, conversation, group_by)
                encoded = _encode(conversation)
            except RejectedRecordError as error:
                self._reject({"file": source.name, "line": line, "reason": str(error)[:_MAX_REASON_CHARS]})
                continue
            yield _Accepted(conversation, key, encoded)

    def _write(self, side: str, accepted: _Accepted) -> None:
        tally, messages = self.tally, accepted.conversation.messages
        self._files[side].write(accepted.line)
        self._files["keys"].write(split.content_key(messages, accepted.conversation.tools))
        tally.sha256[side].update(accepted.line)
        tally.counts[side] += 1
        tally.counts["trimmed"] += accepted.conversation.trimmed
        tally.num_messages += len(messages)
        if len(tally.keys) < _MAX_KEYS_KEPT:
            tally.keys.append(accepted.key)
        if self.tokens:
            self.tokens.add(messages)

    def _reject(self, rejected: dict[str, Any]) -> None:
        self.tally.counts["rejected"] += 1
        self._files["rejected"].write(_line(rejected))
        if len(self.tally.rejected) < NUM_REJECTED_LISTED:
            self.tally.rejected.append(rejected)

    def _report(self, source: Source) -> None:
        now = time.monotonic()
        if now - self._reported >= _PROGRESS_SECONDS:
            self._reported = now
            counts = self.tally.counts
            share = f" ({source.read_bytes / source.num_bytes:.0%})" if source.read_bytes else ""
            num = counts["train"] + counts["test"]
            print(f"Prepared {num} conversations of {source.name}{share}", file=sys.stderr, flush=True)


def _side_key(record: dict[str, Any], conversation: Conversation, group_by: str | None) -> bytes:
    if group_by is None:
        return split.content_key(conversation.messages, conversation.tools)
    value = record.get(group_by)
    if value is None or isinstance(value, dict | list) or value == "":
        raise RejectedRecordError(f"the group key {group_by!r} is {kind_of(value) if value != '' else 'empty'}")
    return split.group_key(value)


def _encode(conversation: Conversation) -> bytes:
    carried = {
        key: value
        for key, value in conversation.metadata.items()
        if key not in ("messages", "tools")
        and not isinstance(value, bytes)
        and value == value  # NaN is a missing number
    }
    tools = {"tools": conversation.tools} if conversation.tools else {}
    try:
        return _line({"messages": conversation.messages, **tools, **carried})
    except UnicodeEncodeError:
        raise RejectedRecordError("a column contains half a surrogate pair, which is not text") from None
    except ValueError:
        raise RejectedRecordError("a column contains a number that JSON cannot hold, such as NaN") from None


def _line(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, ensure_ascii=False, allow_nan=False, default=str) + "\n").encode("utf-8")


def _require_few_rejected(tally: _Tally, options: DataOptions) -> None:
    num_rejected = tally.counts["rejected"]
    num_read = num_rejected + tally.counts["train"] + tally.counts["test"] + tally.counts["overlap"]
    if num_read == 0:
        raise TrainerError(f"The data source {options.source} holds no records.")
    if num_rejected <= options.max_rejected_share * num_read and num_rejected < num_read:
        return
    raise RejectedDataError(
        f"{num_rejected} of {num_read} records of {options.source} were rejected; max_rejected_share "
        f"{options.max_rejected_share:g} allows {int(options.max_rejected_share * num_read)}.",
        "Mend them, or allow a share that covers them." if num_rejected < num_read else "Mend them.",
        tally.rejected,
    )


def _require_both_sides(tally: _Tally, options: DataOptions) -> None:
    num_train, num_test = tally.counts["train"], tally.counts["test"]
    if num_train and num_test:
        return
    if options.test_source:
        raise TrainerError(
            f"No conversation is left to train on: all {tally.counts['overlap']} of {options.source} "
            f"are also in the test source {options.test_source}.",
            "Name another test source.",
        )
    empty = "test" if num_train else "train"
    seed = split.nearest_working_seed(tally.keys, options.test_share)
    advice = f"set the seed to {seed}, " if seed is not None else ""
    raise TrainerError(
        f"The {empty} side is empty: all {num_train + num_test} conversations of {options.source} "
        f"fall on the other side with test_share {options.test_share:g} and seed {options.seed}.",
        f"Add records, {advice}change test_share, or name a test_source.",
    )


def _manifest(folder: Path, writer: _Writer, shape: str, source: Source, test_source: Source | None) -> dict[str, Any]:
    tally = writer.tally
    keys = folder / ".keys"
    tally.counts["duplicates"] = split.count_duplicates(keys)
    keys.unlink()
    sha256 = {side: digest.hexdigest() for side, digest in tally.sha256.items()}
    names = ("train", "test", "rejected", "duplicates", "overlap", "trimmed")
    manifest = {
        "train_file": "train.jsonl",
        "test_file": "test.jsonl",
        "sha256": sha256,
        "digest": hashlib.sha256(f"{sha256['train']}\n{sha256['test']}\n".encode()).hexdigest(),
        "counts": {name: tally.counts[name] for name in names},
        "num_messages": tally.num_messages,
        "shape": shape,
        "source": {"resolved_revision": None, **source.describe()},
        "rejected": tally.rejected,
    }
    if test_source:
        manifest["test_source"] = {"resolved_revision": None, **test_source.describe()}
    if writer.tokens:
        manifest["tokens"] = writer.tokens.summary()
    return manifest
