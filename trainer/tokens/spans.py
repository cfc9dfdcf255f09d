"""Finds on token ids what ChatEncoder finds on characters: which tokens of a rendered conversation are learned.

An answer begins behind a header, the special token before it and what the template writes up to the answer
("<|assistant|>\\n"), and ends with its stop token. Texts hold no special token as itself, so both are plain to see
among the ids. A conversation where the count of headers is not that of its answers is not decided here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from trainer.tokens.encoders import BatchEncoder
from trainer.tokens.light_tokenizer import LightTokenizer

_MOST_FRAMES = 8


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
    def numbers(self) -> set[int]:
        """Which answers are learned."""
        return {answer.number for answer in self.learned}

    def opens_with(self, header: str) -> bool:
        """Whether every learned answer stands behind it."""
        return all(self.text.endswith(header, 0, answer.start) for answer in self.learned)

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
class _Frame:
    """What stands before an answer, as text and as ids, and the id of the token that ends it."""

    header: str
    stop: str
    header_ids: np.ndarray
    stop_id: int


@dataclass(slots=True)
class _Expected:
    """What each conversation of a batch must have: which frame, how many answers, which of them learned."""

    frame: np.ndarray
    num_answers: np.ndarray
    learned: list[list[bool]]


class AnswerFinder:
    """Encodes rendered conversations and finds the learned tokens of each.

    Args:
        control: the texts of the tokens that no message holds as itself.
    """

    def __init__(self, tokenizer: LightTokenizer, control: Iterable[str], encode: BatchEncoder) -> None:
        self._encode = encode
        self._tokenizer = tokenizer
        self._control = tuple(control)
        self._unknown = tokenizer.unknown_token_id
        self._frames: list[_Frame] = []

    def find(self, chats: Sequence[Rendering]) -> Batch:
        """Encode the conversations and find what each learns."""
        ids, offsets = self._encode([chat.text for chat in chats])
        expected = self._expected(chats)
        learned = np.zeros(len(ids) + 1, np.int8)
        found = np.zeros(len(chats), bool)
        for number, frame in enumerate(self._frames):
            self._mark(frame, (expected, number), (ids, offsets), learned, found)
        if self._unknown is not None:  # text that the vocabulary lacks is refused one by one, by its row
            unknown = np.flatnonzero(ids == self._unknown)
            found[np.searchsorted(offsets, unknown, side="right") - 1] = False
        return Batch(ids, offsets, np.cumsum(learned[:-1], dtype=np.int8).astype(bool), found)

    def _mark(
        self,
        frame: _Frame,
        wanted: tuple[_Expected, int],
        encoded: tuple[np.ndarray, np.ndarray],
        learned: np.ndarray,
        found: np.ndarray,
    ) -> None:
        """Mark the answers of the conversations that have this frame and no surprise."""
        (expected, number), (ids, offsets) = wanted, encoded
        starts = _matches(ids, frame.header_ids)
        stops = np.flatnonzero(ids == frame.stop_id)
        if not len(starts) or not len(stops):
            return
        rows = np.searchsorted(offsets, starts, side="right") - 1
        next_stop = np.searchsorted(stops, starts + len(frame.header_ids))
        ends = stops[np.minimum(next_stop, len(stops) - 1)]
        wrong = (next_stop == len(stops)) | (ends >= offsets[rows + 1])
        counts = np.bincount(rows, minlength=len(found))
        complete = (expected.frame == number) & (counts == expected.num_answers)
        complete[rows[wrong]] = False
        found |= complete
        flags = [flag for row in np.flatnonzero(complete) for flag in expected.learned[row]]
        kept = np.flatnonzero(complete[rows])[np.array(flags, bool)]
        learned[starts[kept] + len(frame.header_ids)] += 1
        learned[ends[kept] + 1] -= 1

    def _expected(self, chats: Sequence[Rendering]) -> _Expected:
        frames = [self._frame(chat) for chat in chats]
        return _Expected(
            np.array([-1 if frame is None else frame for frame in frames], np.int64),
            np.array([chat.num_answers for chat in chats], np.int64),
            [[number in chat.numbers for number in range(chat.num_answers)] for chat in chats],
        )

    def _frame(self, chat: Rendering) -> int | None:
        """The number of the frame that all answers of the conversation have."""
        if len(chat.stops) != 1:
            return None
        (stop,) = chat.stops
        for number, frame in enumerate(self._frames):
            if frame.stop == stop and chat.opens_with(frame.header):
                return number
        return self._new_frame(chat, stop) if len(self._frames) < _MOST_FRAMES else None

    def _new_frame(self, chat: Rendering, stop: str) -> int | None:
        """Learn the shortest header that stands before the answers and nowhere else."""
        stop_id = self._tokenizer.convert_tokens_to_ids(stop)
        before = chat.text[: chat.learned[0].start]
        while stop_id is not None and (begin := self._last_control(before)) is not None:
            header = chat.text[begin : chat.learned[0].start]
            if not chat.opens_with(header):
                return None
            if chat.text.count(header) == chat.num_answers:
                self._frames.append(_Frame(header, stop, self._encode([header])[0], stop_id))
                return len(self._frames) - 1
            before = chat.text[:begin]
        return None

    def _last_control(self, text: str) -> int | None:
        places = [text.rfind(token) for token in self._control]
        return max(places) if max(places, default=-1) >= 0 else None


def _matches(ids: np.ndarray, header: np.ndarray) -> np.ndarray:
    """Where the header begins among the ids."""
    starts = np.flatnonzero(ids == header[0])
    starts = starts[starts + len(header) <= len(ids)]
    for step in range(1, len(header)):
        starts = starts[ids[starts + step] == header[step]]
    return starts
