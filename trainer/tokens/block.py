"""Lines of chats to tokens: the unit of work of one process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from trainer.chat_template import IGNORED, ChatEncoder
from trainer.chats import Chat, parse_chat
from trainer.control_tokens import ControlTokens
from trainer.errors import TrainerError
from trainer.tokens.encoders import batch_encoder
from trainer.tokens.light_tokenizer import LightTokenizer, TokenizerSpec
from trainer.tokens.spans import Answer, AnswerFinder, Rendering

_NO_CUT = 1 << 62


@dataclass(frozen=True, slots=True)
class BlockSetup:
    """What every block of a file is encoded with.

    Args:
        file_name: for messages to a person.
        encoder: fastokens or tokenizers.
        sample_every: of so many lines, one is returned to be compared.
    """

    spec: TokenizerSpec
    file_name: str
    max_length: int
    encoder: str
    sample_every: int


@dataclass(frozen=True, slots=True)
class Block:
    """Lines of a file.

    Args:
        first_line: the number of its first line, counted from 1.
    """

    text: bytes
    first_line: int


@dataclass(frozen=True, slots=True)
class Sample:
    """One conversation to compare, as it was encoded: cut, and empty when it was left out."""

    chat: Chat
    ids: np.ndarray
    labels: np.ndarray


@dataclass(slots=True)
class EncodedBlock:
    """Conversations of a block, cut, one behind the other, without those of which nothing is learned.

    Args:
        ids, learned: int32 and bool, of all conversations.
        lengths, lines: int32 and int64, of each.
        left_out: lines of the conversations that are not in it.
        num_lines: of the block, empty ones as well.
        num_one_by_one: conversations that ChatEncoder itself had to encode.
    """

    ids: np.ndarray
    learned: np.ndarray
    lengths: np.ndarray
    lines: np.ndarray
    left_out: list[int]
    num_lines: int
    num_cut: int
    num_supervised: int
    num_one_by_one: int = 0
    stop_token_ids: set[int] = field(default_factory=set)
    samples: list[Sample] = field(default_factory=list)


class BlockEncoder:
    """Encodes blocks of lines, exactly as ChatEncoder would one by one.

    Raises:
        EncoderRefusedError: the encoder cannot be used for this tokenizer.
    """

    def __init__(self, setup: BlockSetup) -> None:
        self._setup = setup
        self._tokenizer = LightTokenizer(setup.spec)
        self._exact = ChatEncoder(self._tokenizer)
        self._finder = AnswerFinder(
            self._tokenizer, ControlTokens(self._tokenizer).texts, batch_encoder(setup.encoder, setup.spec.backend)
        )

    def encode(self, block: Block) -> EncodedBlock:
        """Encode every conversation of the block.

        Raises:
            TrainerError: a line is not a chat or cannot be learned from; names the file and the line.
        """
        numbers, chats = _read(block, self._setup.file_name)
        rendered = [self._rendered(chat) for chat in chats]
        ids, learned, num_one_by_one = self._rows(chats, rendered)
        rows = _Chats(numbers, ids, learned)
        encoded = _cut(rows, block, self._setup.max_length)
        encoded.num_one_by_one = num_one_by_one
        stops: set[str] = set().union(*(rendering.stops for rendering in rendered))
        stop_ids = {self._tokenizer.convert_tokens_to_ids(stop) for stop in stops}
        encoded.stop_token_ids = {number for number in stop_ids if number is not None}
        encoded.samples = [
            _sample(chat, row, flags, self._setup.max_length)
            for number, chat, row, flags in zip(numbers, chats, rows.ids, rows.learned, strict=True)
            if number % self._setup.sample_every == 0 or number == numbers[0] == 1
        ]
        return encoded

    def _rows(self, chats: list[Chat], rendered: list[Rendering]) -> tuple[list[np.ndarray], list[np.ndarray], int]:
        """Ids and learned flags of each conversation, not cut, and how many ChatEncoder encoded."""
        if not chats:
            return [], [], 0
        batch = self._finder.find(rendered)
        ids, learned = np.split(batch.ids, batch.offsets[1:-1]), np.split(batch.learned, batch.offsets[1:-1])
        missing = np.flatnonzero(~batch.found)
        for index in missing:
            ids[index], learned[index] = _exactly(self._exact, chats[index])
        return ids, learned, len(missing)

    def _rendered(self, chat: Chat) -> Rendering:
        rendered = self._exact.render(chat)
        learned = (
            Answer(number, turn.start, turn.stop_start, turn.end)
            for number, turn in enumerate(rendered.turns)
            if turn.learned
        )
        return Rendering(rendered.text, len(rendered.turns), tuple(learned))


class ExactEncoder:
    """Encodes blocks of lines one by one, for tokenizers that only transformers itself reads as it does."""

    def __init__(self, reference: ChatEncoder, file_name: str, max_length: int) -> None:
        self._reference = reference
        self._file_name = file_name
        self._max_length = max_length

    def encode(self, block: Block) -> EncodedBlock:
        """Encode every conversation of the block; raises as BlockEncoder does."""
        numbers, chats = _read(block, self._file_name)
        rows = [_exactly(self._reference, chat) for chat in chats]
        encoded = _cut(_Chats(numbers, [ids for ids, _ in rows], [flags for _, flags in rows]), block, self._max_length)
        encoded.num_one_by_one = len(chats)
        encoded.stop_token_ids = set(self._reference.stop_token_ids)
        return encoded


@dataclass(frozen=True, slots=True)
class _Chats:
    """Whole conversations: the line, the ids and the learned flags of each."""

    numbers: list[int]
    ids: list[np.ndarray]
    learned: list[np.ndarray]


def _exactly(encoder: ChatEncoder, chat: Chat) -> tuple[np.ndarray, np.ndarray]:
    encoded = encoder.encode(chat, _NO_CUT)
    return np.array(encoded.input_ids, np.int32), np.array(encoded.labels) != IGNORED


def _cut(chats: _Chats, block: Block, max_length: int) -> EncodedBlock:
    """Cut the conversations, and leave out those of which nothing is learned then."""
    ids = [row[:max_length] for row in chats.ids]
    learned = [flags[:max_length] for flags in chats.learned]
    num_learned = [int(np.count_nonzero(flags[1:])) for flags in learned]
    kept = [index for index, number in enumerate(num_learned) if number]
    return EncodedBlock(
        ids=np.concatenate([np.empty(0, np.int32), *(ids[index] for index in kept)]),
        learned=np.concatenate([np.empty(0, bool), *(learned[index] for index in kept)]),
        lengths=np.array([len(ids[index]) for index in kept], np.int32),
        lines=np.array([chats.numbers[index] for index in kept], np.int64),
        left_out=[line for line, number in zip(chats.numbers, num_learned, strict=True) if not number],
        num_lines=block.text.count(b"\n") + (not block.text.endswith(b"\n")),
        num_cut=sum(len(row) > max_length for row in chats.ids),
        num_supervised=sum(num_learned),
    )


def _sample(chat: Chat, ids: np.ndarray, learned: np.ndarray, max_length: int) -> Sample:
    return Sample(chat, ids[:max_length], np.where(learned, ids, IGNORED)[:max_length])


def _read(block: Block, file_name: str) -> tuple[list[int], list[Chat]]:
    rows = list(read_block(block, file_name))
    return [number for number, _ in rows], [chat for _, chat in rows]


def read_block(block: Block, file_name: str) -> Iterator[tuple[int, Chat]]:
    """The conversations of a block with their line numbers.

    Raises:
        TrainerError: a line is not a chat.
    """
    for number, line in enumerate(block.text.split(b"\n"), start=block.first_line):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not line.strip():
            continue
        where = f"{file_name} line {number}"
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise TrainerError(f"{where} is not UTF-8: {error.reason}.", "Prepare it with trainer.data.") from error
        yield number, parse_chat(text, where)
