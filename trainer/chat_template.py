"""Chats to tokens and labels: only what the assistant says, with its stop token, is learned - and verified.

Learned is what generation has to produce: from the end of the prompt through the stop token. Not learned is what a
template prints behind the stop token, such as Phi-3.5's line break and <|endoftext|>, which nobody generates; TRL's
marked template of that model learns both.
"""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from trainer.answers import AnswerFinder, Turn, broken
from trainer.chats import Chat, Message
from trainer.control_tokens import ControlTokens
from trainer.errors import TrainerError
from trainer.rendering import render

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)

IGNORED = -100
_Form = Literal["NFC", "NFKC"]
_WARNINGS = 3  # of rows whose text the tokenizer changes


@dataclass(frozen=True, slots=True)
class EncodedChat:
    """One conversation as tokens.

    Args:
        input_ids: the conversation, cut at the maximum length.
        labels: the same length; -100 where nothing is learned.
        prompt_ids: what generation is given for the last answer, not cut.
        prompt: the messages before the last answer.
        expected: the last answer.
        tools: what the assistant may call.
    """

    input_ids: list[int]
    labels: list[int]
    prompt_ids: list[int]
    prompt: tuple[Message, ...]
    expected: str
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def question(self) -> str:
        """The last message before the last answer."""
        return self.prompt[-1]["content"] if self.prompt else ""

    @property
    def num_learned_tokens(self) -> int:
        """Labels that count; the first token predicts nothing, so its label never does."""
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(frozen=True, slots=True)
class RenderedChat:
    """One conversation as the template writes it, up to its last learned answer.

    Args:
        messages: what was rendered, its texts cleaned; the last is the answer to `prompt`.
        text: all of it.
        turns: the answers that begin where their prompt ends, in order.
        tools: what the assistant may call, cleaned.
    """

    messages: tuple[Message, ...]
    text: str
    turns: tuple[Turn, ...]
    tools: tuple[dict[str, Any], ...] = ()

    @property
    def prompt(self) -> str:
        """What generation is given for the last answer."""
        return self.text[: self.turns[-1].start]

    @property
    def expected(self) -> str:
        """What the last answer should read as."""
        last = self.turns[-1]
        return self.text[last.start : last.stop_start].strip()


class ChatEncoder:
    """Encodes conversations with a tokenizer's own chat template.

    Raises:
        TrainerError: the tokenizer has no chat template or gives no offsets.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        if not tokenizer.chat_template:
            raise TrainerError(
                f"The tokenizer of {tokenizer.name_or_path} has no chat template.",
                "Choose an instruct model, which has one.",
                "configuration",
            )
        if not tokenizer.is_fast:
            raise TrainerError(
                f"The tokenizer of {tokenizer.name_or_path} gives no offsets (it has no tokenizer.json).",
                "Choose a model with a tokenizer.json.",
                "configuration",
            )
        self.tokenizer = tokenizer
        self._control = ControlTokens(tokenizer)
        self._finder = AnswerFinder(self._rendered, self._control)
        self._form = self._normal_form()
        self._num_altered = 0
        self.stop_token_ids: set[int] = set()

    def render(self, chat: Chat) -> RenderedChat:
        """The conversation as text, and what is learned of it.

        Raises:
            TrainerError: names the row; the template refused it, or where an answer stands cannot be told.
        """
        learned = [i for i, m in enumerate(chat.messages) if m["role"] == "assistant" and m.get("train", True)]
        messages = [self.prepared(message) for message in chat.messages[: learned[-1] + 1]]
        tools = tuple(self._control.neutralise(chat.tools))
        try:
            text = self._rendered(messages, tools, prompt=False)
            turns = self._finder.find(text, messages, tools, chat)
        except TrainerError:
            raise
        except Exception as error:  # a template raises what its author chose
            raise TrainerError(
                f"{chat.where}: the chat template refused the conversation: {error}.",
                "Remove the row, or choose a model whose template accepts its roles.",
            ) from error
        if self._form and not unicodedata.is_normalized(self._form, text):
            self._warn_of_altered(chat)
        turns = [turn if turn.message in learned else replace(turn, learned=False) for turn in turns]
        return RenderedChat(tuple(messages), text, tuple(turns), tools)

    def encode(self, chat: Chat, max_length: int) -> EncodedChat:
        """Encode one conversation and verify its labels.

        Raises:
            TrainerError: as render, or the labels are not the answers.
        """
        rendered = self.render(chat)
        encoding = self.tokenizer(rendered.text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoding["input_ids"]), encoding["offset_mapping"]
        labels = self.labels(rendered, ids, offsets, chat)
        return EncodedChat(
            input_ids=ids[:max_length],
            labels=labels[:max_length],
            prompt_ids=self._verified_prompt(rendered, ids, offsets, chat),
            prompt=rendered.messages[:-1],
            expected=rendered.expected,
            tools=rendered.tools,
        )

    def labels(
        self, rendered: RenderedChat, ids: Sequence[int], offsets: Sequence[tuple[int, int]], chat: Chat
    ) -> list[int]:
        """The token ids where an answer is, -100 elsewhere; verified to read as the answers.

        Args:
            offsets: of each token the characters it stands for.
        """
        labels = [IGNORED] * len(ids)
        for turn in rendered.turns:
            learned = [i for i, (start, _) in enumerate(offsets) if turn.start <= start < turn.end]
            self._verify(rendered.text, turn, [ids[i] for i in learned], chat)
            if turn.learned:
                self.stop_token_ids.add(ids[learned[-1]])
                for i in learned:
                    labels[i] = ids[i]
        return labels

    def prepared(self, message: Message) -> Message:
        """The message as it is rendered, in training and in serving."""
        # White space at the edge of an answer would merge with the template's own into tokens that
        # generation never sees. Template tokens inside a text stay text: a space breaks them.
        content = message["content"].strip() if message["role"] == "assistant" else message["content"]
        prepared = {"role": message["role"], "content": self._control.neutralise(content)}
        for key in message.keys() - {"role", "content", "train"}:
            prepared[key] = self._control.neutralise(message[key])
        return prepared

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Any], prompt: bool) -> str:
        return render(self.tokenizer, messages, tools=tools, prompt=prompt)

    def _verify(self, text: str, turn: Turn, learned: list[int], chat: Chat) -> None:
        if not learned:
            raise broken(chat, "an answer has no token of its own")
        wanted = text[turn.start : turn.end]
        decoded = self._decoded(learned)
        if self._folded(decoded) != self._folded(wanted):
            raise broken(chat, f"the learned tokens read {decoded[-60:]!r} and not {wanted[-60:]!r}")
        stop = self.tokenizer.convert_tokens_to_ids(text[turn.stop_start : turn.end])
        if learned[-1] != stop:
            raise broken(chat, f"the answer's last learned token is {learned[-1]} and not the stop token {stop}")

    def _verified_prompt(
        self, rendered: RenderedChat, ids: Sequence[int], offsets: Sequence[tuple[int, int]], chat: Chat
    ) -> list[int]:
        prompt_ids = list(self.tokenizer(rendered.prompt, add_special_tokens=False)["input_ids"])
        first = next(i for i, (start, _) in enumerate(offsets) if start >= len(rendered.prompt))
        if prompt_ids != list(ids[:first]):
            raise broken(chat, "the prompt has other tokens in training than in generation")
        return prompt_ids

    def _decoded(self, ids: list[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    def _folded(self, text: str) -> str:
        """What must be the same of a text and its tokens: all of it, in the form that the tokenizer gives it."""
        # Some tokenizers lose a space in front when they decode a part of a text.
        return (unicodedata.normalize(self._form, text) if self._form else text).removeprefix(" ")

    def _normal_form(self) -> _Form | None:
        """The Unicode form into which the tokenizer brings a text; None: it leaves it as it is, byte for byte."""
        samples: tuple[tuple[_Form, str], ...] = (("NFKC", "x\ufb01"), ("NFC", "xe\u0301"))
        for form, text in samples:
            decoded = self._decoded(self.tokenizer(text, add_special_tokens=False)["input_ids"])
            if decoded.strip() == unicodedata.normalize(form, text):
                return form
        return None

    def _warn_of_altered(self, chat: Chat) -> None:
        self._num_altered += 1
        if self._num_altered <= _WARNINGS:
            log.warning("Tokenizer changes the text of row=%s into its Unicode form=%s", chat.where, self._form)
