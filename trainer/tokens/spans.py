"""Finds on token ids what ChatEncoder finds on characters: which tokens of a rendered conversation are learned.

An answer begins behind a header, the special token before it and what the template writes up to the answer
("<|assistant|>\\n"), and ends with the next special token, its stop token. Texts hold no special token as itself, so
both are plain to see among the ids. A row where the count of headers is not that of its answers, or any answer ends
otherwise, is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from trainer.tokens.encoders import BatchEncoder
from trainer.tokens.light_tokenizer import LightTokenizer

_MOST_HEADERS = 8


@dataclass(frozen=True, slots=True)
class Answer:
    """One learned answer: the how manieth answer of its conversation, and its characters as in chat_template."""

    number: int
    start: int
    stop_start: int
    end: int


@dataclass(frozen=True, slots=True)
class Rendering:
    """One conversation as text.

    Args:
        num_answers: how many the text has, those that are context only as well.
        learned: the others.
    """

    text: str
    num_answers: int
    learned: tuple[Answer, ...]

    @property
    def stops(self) -> set[str]:
        """The texts of the tokens that end the learned answers."""
        return {self.text[answer.stop_start : answer.end] for answer in self.learned}


@dataclass(frozen=True, slots=True)
class Batch:
    """Rendered conversations as ids one behind the other; conversation i is ids[offsets[i]:offsets[i + 1]].

    Args:
        learned: of each id, whether it is learned.
        found: of each conversation, whether its learned tokens were found.
    """

    ids: np.ndarray
    offsets: np.ndarray
    learned: np.ndarray
    found: np.ndarray


@dataclass(frozen=True, slots=True)
class _Header:
    text: str
    ids: np.ndarray


@dataclass(slots=True)
class _Expected:
    """What each conversation of a batch must have: a header, how many answers, and the token that ends them."""

    header: np.ndarray
    num_answers: np.ndarray
    stop_id: np.ndarray
    learned: list[list[bool]] = field(default_factory=list)


class AnswerFinder:
    """Encodes rendered conversations and finds the learned tokens of each.

    Args:
        control: the texts of the tokens that no message holds as itself.
    """

    def __init__(self, tokenizer: LightTokenizer, control: Iterable[str], encode: BatchEncoder) -> None:
        self._encode = encode
        self._tokenizer = tokenizer
        self._control = tuple(control)
        ids = {tokenizer.convert_tokens_to_ids(token) for token in self._control}
        self._is_special = np.zeros(tokenizer.backend.get_vocab_size(with_added_tokens=True) + 1, bool)
        self._is_special[[number for number in ids if number is not None]] = True
        self._unknown = tokenizer.unknown_token_id
        self._headers: list[_Header] = []

    def find(self, chats: Sequence[Rendering]) -> Batch:
        """Encode the conversations and find what each learns."""
        ids, offsets = self._encode([chat.text for chat in chats])
        expected = self._expected(chats)
        learned = np.zeros(len(ids) + 1, np.int8)
        found = np.zeros(len(chats), bool)
        special = np.flatnonzero(self._is_special[np.minimum(ids, len(self._is_special) - 1)])
        for number, header in enumerate(self._headers):
            self._mark(header.ids, expected, number, (ids, offsets, special), learned, found)
        if self._unknown is not None:  # text that the vocabulary lacks is refused one by one, by its row
            unknown = np.flatnonzero(ids == self._unknown)
            found[np.searchsorted(offsets, unknown, side="right") - 1] = False
        return Batch(ids, offsets, np.cumsum(learned[:-1], dtype=np.int8).astype(bool), found)

    def _mark(
        self,
        header: np.ndarray,
        expected: _Expected,
        number: int,
        encoded: tuple[np.ndarray, np.ndarray, np.ndarray],
        learned: np.ndarray,
        found: np.ndarray,
    ) -> None:
        ids, offsets, special = encoded
        starts = _matches(ids, special, header)
        rows = np.searchsorted(offsets, starts, side="right") - 1
        next_special = np.searchsorted(special, starts + len(header))
        inside = next_special < len(special)
        stops = special[np.minimum(next_special, len(special) - 1)] if len(special) else starts
        good = inside & (stops < offsets[rows + 1]) & (ids[stops] == expected.stop_id[rows])
        counts = np.bincount(rows, minlength=len(found))
        wrong = np.bincount(rows[~good], minlength=len(found))
        complete = (expected.header == number) & (counts == expected.num_answers) & (wrong == 0)
        found |= complete
        wanted = complete[rows]
        flags = [flag for row in np.flatnonzero(complete) for flag in expected.learned[row]]
        kept = np.flatnonzero(wanted)[np.array(flags, bool)] if flags else np.empty(0, np.int64)
        learned[starts[kept] + len(header)] += 1
        learned[stops[kept] + 1] -= 1

    def _expected(self, chats: Sequence[Rendering]) -> _Expected:
        expected = _Expected(
            np.full(len(chats), -1, np.int64), np.zeros(len(chats), np.int64), np.full(len(chats), -1, np.int64)
        )
        for row, chat in enumerate(chats):
            numbers = {answer.number for answer in chat.learned}
            expected.learned.append([number in numbers for number in range(chat.num_answers)])
            if len(chat.stops) != 1:
                continue
            header, stop = self._header(chat), self._tokenizer.convert_tokens_to_ids(*chat.stops)
            if header is not None and stop is not None:
                expected.header[row], expected.stop_id[row] = header, stop
                expected.num_answers[row] = chat.num_answers
        return expected

    def _header(self, chat: Rendering) -> int | None:
        """The number of the header that all answers of the conversation have."""
        for number, header in enumerate(self._headers):
            if all(chat.text.endswith(header.text, 0, answer.start) for answer in chat.learned):
                return number
        return self._new_header(chat) if len(self._headers) < _MOST_HEADERS else None

    def _new_header(self, chat: Rendering) -> int | None:
        """Learn the shortest header that stands before the answers and nowhere else."""
        start = chat.learned[0].start
        before = chat.text[:start]
        while (begin := self._last_control(before)) is not None:
            text = chat.text[begin:start]
            alike = all(chat.text.endswith(text, 0, answer.start) for answer in chat.learned)
            if alike and chat.text.count(text) == chat.num_answers:
                self._headers.append(_Header(text, self._encode([text])[0]))
                return len(self._headers) - 1
            if not alike or start - begin > 1000:
                return None
            before = chat.text[:begin]
        return None

    def _last_control(self, text: str) -> int | None:
        places = [text.rfind(token) for token in self._control]
        return max(places) if max(places, default=-1) >= 0 else None


def _matches(ids: np.ndarray, special: np.ndarray, header: np.ndarray) -> np.ndarray:
    """Where the header, which begins with a special token, begins among the ids."""
    starts = special[ids[special] == header[0]]
    starts = starts[starts + len(header) <= len(ids)]
    for step in range(1, len(header)):
        starts = starts[ids[starts + step] == header[step]]
    return starts
