"""Tokenises a file of chats into packed rows, or finds that an earlier attempt already has."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from trainer import ranks
from trainer.chat_template import ChatEncoder
from trainer.errors import TrainerError
from trainer.tokens.block import Block, BlockEncoder, BlockSetup, EncodedBlock, ExactEncoder, Sample
from trainer.tokens.encoders import EncoderRefusedError
from trainer.tokens.light_tokenizer import TokenizerSpec
from trainer.tokens.parts import Part, read_part
from trainer.tokens.plan import TokenPlan, TokenSummary
from trainer.tokens.progress import OnProgress, Progress
from trainer.tokens.scan import Scan, scan
from trainer.tokens.store import TokenRows, mark_whole, marker, read_rows, rows_written
from trainer.tokens.window import PackedWriter
from trainer.tokens.workers import MOST_WORKERS, Workers, usable_cores

log = logging.getLogger(__name__)

# Below these lines the start of a process takes longer than the work.
_LINES_FOR_WORKERS = 2_000
_SAMPLES = 100
_SAMPLE_EVERY = 1_000
# Modules of trainer besides this package that decide a conversation's tokens.
_RENDERING = ("chat_template", "answers", "control_tokens", "rendering", "chats")
_PATIENCE_SECONDS = 24 * 3600.0


def tokenise(plan: TokenPlan, tokenizer: Any, cache_dir: Path, on_progress: OnProgress | None = None) -> TokenRows:
    """Tokenise the plan's file, once: the same content, tokenizer and limits are found in cache_dir again.

    Every token and label is what ChatEncoder gives; a sample of the file is compared with it.

    Args:
        tokenizer: of transformers, with the chat template that trains.
        cache_dir: may be mounted; of several processes the first of the first machine writes there.
        on_progress: called every few seconds with file, num_lines, of_lines, lines_per_second, seconds_left.
    Raises:
        TrainerError: the file or a line of it cannot be learned from, by file and line; a worker died; the disk is
            full.
    """
    reference = ChatEncoder(tokenizer)
    spec = TokenizerSpec.of(tokenizer)
    scanned = scan(plan.file)
    path = _folder(cache_dir) / f"tokens-{_digest(plan, spec, scanned)}.arrow"
    found = read_rows(path) if ranks.local_rank() == 0 else _waited_for(path)
    if found:
        log.info("Found tokens file=%s num_chats=%d path=%s", plan.file.name, found.summary.num_chats, path)
        return found
    summary = _built(plan, spec, scanned, _Means(reference, path, on_progress))
    mark_whole(path, summary)
    return TokenRows(path, summary)


@dataclass(frozen=True, slots=True)
class _Means:
    """What compares, where it is written, whom it is told."""

    reference: ChatEncoder
    path: Path
    on_progress: OnProgress | None


def _built(plan: TokenPlan, spec: TokenizerSpec, scanned: Scan, means: _Means) -> TokenSummary:
    """Write the rows with the fastest encoder that agrees with ChatEncoder."""
    if not scanned.num_lines:
        raise _empty(plan)
    for encoder in ("fastokens", "tokenizers"):
        setup = BlockSetup(
            spec=spec,
            file_name=plan.file.name,
            max_length=plan.max_length,
            encoder=encoder,
            sample_every=min(max(scanned.num_lines // _SAMPLES, 1), _SAMPLE_EVERY),
        )
        try:
            return _written(plan, setup, scanned, means)
        except EncoderRefusedError as error:
            log.warning("Did not use encoder=%s reason=%s", encoder, error)
    return _written(plan, None, scanned, means)


def _written(plan: TokenPlan, setup: BlockSetup | None, scanned: Scan, means: _Means) -> TokenSummary:
    """Write every row; without a setup, by ChatEncoder alone."""
    progress = Progress(plan.file.name, scanned.num_lines, means.on_progress)
    with rows_written(means.path) as file, _blocks(plan, setup, scanned, means) as blocks:
        writer = PackedWriter(plan, file, setup.encoder if setup else "transformers")
        for block in blocks:
            for sample in block.samples:
                _compare(sample, means.reference, plan.max_length)
            writer.add(block)
            progress.add(block.num_lines)
        summary = writer.finish()
        if not summary.num_chats:
            raise _nothing(plan, summary)
    log.info(
        "Tokenised file=%s num_chats=%d num_tokens=%d num_supervised=%d num_cut=%d num_left_out=%d num_rows=%d "
        "fill_share=%.3f encoder=%s num_one_by_one=%d seconds=%.1f",
        plan.file.name,
        summary.num_chats,
        summary.num_tokens,
        summary.num_supervised,
        summary.num_cut,
        summary.num_left_out,
        summary.num_rows,
        summary.fill_share,
        summary.encoder,
        summary.num_one_by_one,
        progress.seconds,
    )
    return summary


@contextmanager
def _blocks(
    plan: TokenPlan, setup: BlockSetup | None, scanned: Scan, means: _Means
) -> Iterator[Iterable[EncodedBlock]]:
    """The blocks of the file, encoded here when they are few, or nothing but ChatEncoder may be trusted."""
    num_workers = min(usable_cores(), MOST_WORKERS, len(scanned.parts))
    if setup and scanned.num_lines >= _LINES_FOR_WORKERS:
        with Workers(plan.file, setup, num_workers) as workers:
            yield workers.encode(scanned.parts)
    elif setup:
        yield _encoded_here(plan.file, BlockEncoder(setup).encode, scanned.parts)
    else:
        exact = ExactEncoder(means.reference, plan.file.name, plan.max_length)
        yield _encoded_here(plan.file, exact.encode, scanned.parts)


def _encoded_here(path: Path, encode: Callable[[Block], EncodedBlock], parts: Iterable[Part]) -> Iterator[EncodedBlock]:
    with open(path, "rb") as file:
        for part in parts:
            yield encode(read_part(file, part))


def _compare(sample: Sample, reference: ChatEncoder, max_length: int) -> None:
    """Hold a sample against ChatEncoder, which may refuse the row as well."""
    truth = reference.encode(sample.chat, max_length)
    for what, seen, wanted in (
        ("tokens", sample.ids, truth.input_ids),
        ("learned tokens", sample.labels, truth.labels),
    ):
        if seen.tolist() != list(wanted):
            raise EncoderRefusedError(f"{sample.chat.where} has other {what} with it")


def _digest(plan: TokenPlan, spec: TokenizerSpec, scanned: Scan) -> str:
    """Names all that decides the rows, this code included."""
    here = Path(__file__).parent
    code = [*sorted(here.glob("*.py")), *(here.parent / f"{name}.py" for name in _RENDERING)]
    parts = [
        scanned.sha256,
        asdict(spec),
        plan.max_length,
        plan.short_context,
        [hashlib.sha256(path.read_bytes()).hexdigest() for path in code],
        [_version(name) for name in ("tokenizers", "fastokens", "jinja2")],
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _folder(cache_dir: Path) -> Path:
    """Where this machine's processes find the rows: only the first machine may write to a shared folder."""
    if ranks.on_first_machine():
        return cache_dir
    return Path(tempfile.gettempdir()) / f"phiflow-tokens-{os.getuid()}"


def _waited_for(path: Path) -> TokenRows:
    """What the first process of this machine writes; when that fails, the launcher ends all."""
    begun = time.monotonic()
    while not marker(path).exists() or (rows := read_rows(path)) is None:
        if time.monotonic() - begun > _PATIENCE_SECONDS:
            raise TrainerError(f"{path} was not written by this machine's first process.", "See its log.", "bug")
        time.sleep(0.5)
    return rows


def _empty(plan: TokenPlan) -> TrainerError:
    return TrainerError(f"{plan.file} holds no chat.", "Give a file with at least one conversation.")


def _nothing(plan: TokenPlan, summary: TokenSummary) -> TrainerError:
    if not summary.num_left_out:
        return _empty(plan)
    return TrainerError(
        f"{plan.file.name}: no answer begins within {plan.max_length} tokens in any conversation.",
        "Raise train.max_length.",
    )
