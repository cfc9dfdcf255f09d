"""Prepare data sources: canonical train and test files, the rejected records, and a manifest."""

from __future__ import annotations

import contextlib
import errno
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data import split
from trainer.data.manifest import Tally, finish_manifest
from trainer.data.options import DataOptions
from trainer.data.output import durable, require_replaceable, whole_or_absent
from trainer.data.shapes import Conversation, to_conversation
from trainer.data.side import Row, Side
from trainer.data.sources import Input, Source, open_inputs, open_tests
from trainer.data.tokens import TokenStatistics
from trainer.data.values import RejectedRecordError, kind_of
from trainer.errors import TrainerError

NUM_REJECTED_LISTED = 100
_PROGRESS_SECONDS = 5.0
_MAX_REASON_CHARS = 300
# Up to this many records an unlucky split gets a seed that would work suggested.
_MAX_KEYS_KEPT = 1000
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, default=str)


class RejectedDataError(TrainerError):
    """More records were rejected than the options allow; `rejected` lists the first of them."""

    def __init__(self, message: str, fix: str, rejected: list[dict[str, Any]]) -> None:
        super().__init__(message, fix)
        self.rejected = rejected


@dataclass(frozen=True, slots=True)
class _Accepted:
    """A usable record: `key` names its content, `side_key` decides its side."""

    conversation: Conversation
    key: bytes
    side_key: bytes
    line: bytes


def prepare(options: DataOptions) -> dict[str, Any]:
    """Write the folder `options.output_dir`, whole or not at all, and return its manifest.

    Raises:
        RejectedDataError: too many records were rejected.
        TrainerError: the sources, the options or the disk do not allow it.
    """
    inputs, tests = open_inputs(options), open_tests(options)
    output_dir = Path(options.output_dir).resolve()
    require_replaceable(output_dir)
    tokens = TokenStatistics(options.tokenizer, options.max_length) if options.tokenizer else None
    try:
        output_dir.parent.mkdir(parents=True, exist_ok=True)
        with whole_or_absent(output_dir) as folder:
            with contextlib.ExitStack() as files:
                writer = _Writer(folder, options, files)
                writer.write(inputs, tests)
                _require_few_rejected(writer.tally, options, [*inputs, *tests])
                sides = {name: side.finish() for name, side in writer.sides.items()}
                counts = writer.tally.counts
                counts.update({name: side.num_rows for name, side in sides.items()})
                counts["duplicates"] = sum(side.num_repeats for side in writer.sides.values())
                counts["left_out"] += sum(side.num_over for side in writer.sides.values())
                _require_both_sides(writer.tally, options)
            return finish_manifest(folder, writer.tally, sides, (inputs, tests), tokens)
    except OSError as error:
        is_full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        raise TrainerError(
            f"The data could not be written to {output_dir}: {error.strerror or error}.",
            f"{'Free some space' if is_full else 'Mend that'} or name another folder; nothing was left.",
        ) from None


class _Writer:
    """The two sides of one output folder and the tally of what was read for them."""

    def __init__(self, folder: Path, options: DataOptions, files: contextlib.ExitStack) -> None:
        self.tally = Tally(is_deduplicated=options.deduplicate)
        self.sides = {
            name: Side(folder / f"{name}.jsonl", most=most, deduplicate=options.deduplicate)
            for name, most in _caps(options).items()
        }
        for side in self.sides.values():
            files.callback(side.discard)
        self._rejected = files.enter_context(durable(folder / "rejected.jsonl"))
        self._options = options
        self._reported = time.monotonic()

    def write(self, inputs: list[Input], tests: list[Input]) -> None:
        """Send every record to its side: the one its hash decides, or that of its source when there is a test source.

        What is tested on is not trained on; its keys, 16 bytes each, are kept in memory.
        """
        options, test_keys = self._options, set()
        for number, source in enumerate(tests, len(inputs)):
            for accepted in self._accepted(source, number):
                test_keys.add(accepted.side_key)
                self._place("test", accepted, number, 1.0)
        for number, source in enumerate(inputs):
            for accepted in self._accepted(source, number):
                if accepted.side_key in test_keys:
                    self.tally.counts["overlap"] += 1
                    continue
                is_test = not tests and split.is_test(accepted.side_key, options.test_share, options.seed)
                self._place("test" if is_test else "train", accepted, number, source.weight)

    def _accepted(self, opened: Input, number: int) -> Iterator[_Accepted]:
        source, shape, group_by = opened.source, opened.shape, self._options.group_by
        for line, record in source.records():
            self._report(source)
            self.tally.read[number] += 1
            try:
                if isinstance(record, RejectedRecordError):
                    raise record
                conversation = to_conversation(record, shape)
                key = split.content_key(conversation.messages, conversation.tools)
                side_key = key if group_by is None else _group_key(record, group_by)
                encoded = _encode(conversation)
            except RejectedRecordError as error:
                self.tally.unusable[number] += 1
                self._reject({"file": source.name, "line": line, "reason": str(error)[:_MAX_REASON_CHARS]})
                continue
            self.tally.with_tools[number] += conversation.has_tools
            if len(self.tally.keys) < _MAX_KEYS_KEPT:
                self.tally.keys.append(side_key)
            yield _Accepted(conversation, key, side_key, encoded)

    def _place(self, name: str, accepted: _Accepted, source: int, weight: float) -> None:
        """Write a conversation as often as its weight says; what is tested on is never repeated."""
        messages, seed = accepted.conversation.messages, self._options.seed
        copies = 1 if weight == 1 else split.num_copies(accepted.key, weight, seed)
        copies = min(copies, 1) if name == "test" else copies
        self.tally.counts["left_out"] += copies == 0
        key, trimmed = split.exact_key(messages, accepted.key), accepted.conversation.trimmed
        for copy in range(copies):
            rank = 0 if self._options.max_examples is None else split.rank(accepted.key, copy, seed)
            row = Row(key, copy, rank, len(accepted.line), len(messages), source, trimmed)
            self.sides[name].add(accepted.line, row)

    def _reject(self, rejected: dict[str, Any]) -> None:
        self.tally.counts["rejected"] += 1
        self._rejected.write(_line(rejected))
        if len(self.tally.rejected) < NUM_REJECTED_LISTED:
            self.tally.rejected.append(rejected)

    def _report(self, source: Source) -> None:
        now = time.monotonic()
        if now - self._reported >= _PROGRESS_SECONDS:
            self._reported = now
            share = f" ({source.read_bytes / source.num_bytes:.0%})" if source.read_bytes else ""
            num = self.tally.read.total() - self.tally.counts["rejected"]
            print(f"Prepared {num} conversations of {source.name}{share}", file=sys.stderr, flush=True)


def _caps(options: DataOptions) -> dict[str, int | None]:
    """Most conversations of each side; together the cap, in the proportion of the split."""
    most = options.max_examples
    if most is None or options.test_source:
        return {"train": most, "test": None}
    num_test = max(1, round(most * options.test_share))
    return {"train": most - num_test, "test": num_test}


def _group_key(record: dict[str, Any], group_by: str) -> bytes:
    value = record.get(group_by)
    if value is None or isinstance(value, dict | list) or value == "":
        raise RejectedRecordError(f"the group key {group_by!r} is {kind_of(value) if value != '' else 'empty'}")
    return split.group_key(value)


def _encode(conversation: Conversation) -> bytes:
    carried = {
        key: value
        for key, value in conversation.metadata.items()
        # NaN is a missing number.
        if key not in ("messages", "tools") and not isinstance(value, bytes) and value == value
    }
    tools = {"tools": conversation.tools} if conversation.tools else {}
    try:
        return _line({"messages": conversation.messages, **tools, **carried})
    except UnicodeEncodeError:
        raise RejectedRecordError("a column contains half a surrogate pair, which is not text") from None
    except ValueError:
        raise RejectedRecordError("a column contains a number that JSON cannot hold, such as NaN") from None


def _line(value: dict[str, Any]) -> bytes:
    return (_ENCODER.encode(value) + "\n").encode("utf-8")


def _require_few_rejected(tally: Tally, options: DataOptions, inputs: list[Input]) -> None:
    num_rejected, num_read = tally.counts["rejected"], tally.read.total()
    if num_read == 0:
        raise TrainerError(f"The data source {options.label} holds no records.")
    if num_rejected > options.max_rejected_share * num_read or num_rejected == num_read:
        raise RejectedDataError(
            f"{num_rejected} of {num_read} records of {options.label} were rejected; max_rejected_share "
            f"{options.max_rejected_share:g} allows {int(options.max_rejected_share * num_read)}.",
            "Mend them, or allow a share that covers them." if num_rejected < num_read else "Mend them.",
            tally.rejected,
        )
    for number, opened in enumerate(inputs):
        if tally.unusable[number] and tally.unusable[number] == tally.read[number]:
            raise RejectedDataError(
                f"All {tally.read[number]} records of {opened.source.name} were rejected.",
                "Mend them, or leave that source out.",
                [item for item in tally.rejected if item["file"] == opened.source.name],
            )


def _require_both_sides(tally: Tally, options: DataOptions) -> None:
    num_train, num_test = tally.counts["train"], tally.counts["test"]
    if num_train and num_test:
        return
    if options.test_source:
        raise TrainerError(
            f"No conversation is left to train on: all {tally.counts['overlap']} of {options.label} "
            f"are also in the test source {options.test_source.source}.",
            "Name another test source.",
        )
    empty = "test" if num_train else "train"
    seed = split.nearest_working_seed(tally.keys, options.test_share)
    advice = f"set the seed to {seed}, " if seed is not None else ""
    raise TrainerError(
        f"The {empty} side is empty: all {num_train + num_test} conversations of {options.label} "
        f"fall on the other side with test_share {options.test_share:g} and seed {options.seed}.",
        f"Add records, {advice}change test_share, or name a test_source.",
    )
